//! What is served: a version, and where its weights are. Reads no file.

use std::path::PathBuf;

use crate::types::PolicyVersion;

/// Weights to serve: a version, and where they are.
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
    /// In the base model alone: the initial version.
    Base,
    /// In an adapter on the base.
    Adapter(PathBuf),
    /// In a whole model with the version's weights merged in, served in place of base and adapter.
    Whole(PathBuf),
}
