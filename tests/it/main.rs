//! The one integration binary: the crate as its users see it.

mod engine;
mod ffi;
mod ffi_engine;
mod golden;
#[path = "../support/tiny.rs"]
mod tiny;
mod trainer;
