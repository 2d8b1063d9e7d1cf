//! The weights of a version, and where they are. Reads no file.

use std::path::PathBuf;

use crate::types::PolicyVersion;

/// Weights to serve: a version and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// The version.
    pub version: PolicyVersion,
    /// Where its weights are.
    pub source: Source,
}

/// Where the weights of a version are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The base model alone: the initial version.
    Base,
    /// An adapter on the base.
    Adapter(PathBuf),
    /// A whole model with the version's weights merged in, served instead of base and adapter.
    Whole(PathBuf),
}
