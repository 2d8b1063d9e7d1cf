//! Maps the file of a model, so that frozen weights are read where they lie. Never writes, and knows no format.

use std::fs::File;
use std::sync::Arc;

use memmap2::Mmap;

use super::quantized::Bytes;
use crate::error::{Error, Result};

/// The bytes of an open file. The system takes them back from memory when it needs it, and reads them again.
///
/// # Errors
/// `Io` if the file can't be mapped.
pub fn map(file: &File) -> Result<Bytes> {
    // SAFETY: the mapping is private and only read. That nobody shortens a model's file while it serves is asked of
    // whoever keeps it, for llama.cpp maps it too; other bytes in it would be other numbers.
    let map = unsafe { Mmap::map(file) };
    Ok(Arc::new(map.map_err(|e| Error::from(e).context("mapping the weights"))?))
}
