//! The differentiable model: decoder, adapters, heads. Never samples and never decides what to learn.

pub mod ops;
