//! How a product is carried out: what its sums are added to, and on which threads. Never multiplies.

/// What becomes of the values that are already in the result.
#[derive(Clone, Copy, Debug)]
pub enum Begin<'a> {
    Zero,
    /// One value a column.
    Bias(&'a [f32]),
    /// The product is added to what is there.
    Add,
}

/// Whether a product uses the ambient pool or stays on its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    Parallel,
    Here,
}
