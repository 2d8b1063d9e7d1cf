//! Finds and checks the files of a version's weights. Never loads them.

use crate::error::Result;
use crate::publish::VersionStore;
use crate::scheduler::{Source, Weights};
use crate::trainer::ADAPTER_FILE;
use crate::types::PolicyVersion;

/// The file of a version's weights, checked against its manifest, and fetched first if it is in the object store alone.
/// Files that only the trainer needs are not checked.
pub(super) fn weights_of(store: &VersionStore, version: PolicyVersion) -> Result<Weights> {
    if version == PolicyVersion::INITIAL {
        return Ok(Weights { version, source: Source::Base });
    }
    store.obtain(version)?;
    store.verify_file(version, ADAPTER_FILE)?;
    Ok(Weights { version, source: Source::Adapter(store.path(version).join(ADAPTER_FILE)) })
}
