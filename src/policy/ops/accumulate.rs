//! The mode of a product: what its sums are added to, and which threads run it. Never multiplies.

/// The initial value of a product's sums.
#[derive(Clone, Copy, Debug)]
pub enum Begin<'a> {
    Zero,
    /// One value per column.
    Bias(&'a [f32]),
    /// The values already in the output.
    Add,
}

/// Whether a product uses the ambient thread pool or stays on its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    Parallel,
    Here,
}
