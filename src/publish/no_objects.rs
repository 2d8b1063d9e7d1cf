//! What stands for an object store in a library that is built without its clients.

use std::path::Path;

use crate::error::{Error, Result};
use crate::types::PolicyVersion;

/// There is none.
#[derive(Debug)]
pub enum Objects {}

impl Objects {
    pub fn open(_: &str) -> Result<Self> {
        Err(Error::unsupported("publish.store needs a library that is built with the feature `daemon`"))
    }

    pub fn put(&self, _: PolicyVersion, _: &Path) -> Result<String> {
        match *self {}
    }

    pub fn names(&self, _: PolicyVersion) -> Result<Vec<String>> {
        match *self {}
    }

    pub fn remove_one(&self, _: PolicyVersion, _: &str) -> Result<()> {
        match *self {}
    }

    pub fn lacks(&self, _: PolicyVersion) -> Error {
        match *self {}
    }

    pub fn get(&self, _: PolicyVersion, _: &str, _: &Path) -> Result<()> {
        match *self {}
    }

    pub fn remove(&self, _: PolicyVersion) -> Result<()> {
        match *self {}
    }
}
