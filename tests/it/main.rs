//! The one integration binary: the crate as its users see it.

mod ffi;
mod golden;
