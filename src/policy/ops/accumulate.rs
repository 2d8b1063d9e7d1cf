//! How a product is carried out: what its sums are added to, and on which threads. Never multiplies.

/// What a product's sums start from.
#[derive(Clone, Copy, Debug)]
pub enum Begin<'a> {
    Zero,
    /// One value per column.
    Bias(&'a [f32]),
    /// The values already in the result.
    Add,
}

/// Whether a product uses the ambient pool or stays on its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    Parallel,
    Here,
}
