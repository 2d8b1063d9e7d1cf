//! The card that llama.cpp computes on, if there is one. Loads nothing.

use llama_cpp_sys_2 as sys;

use super::model::backend;

/// Bytes that are free on the first card that llama.cpp computes on; `None` if this build or machine has none.
pub fn card_memory() -> Option<u64> {
    backend();
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: the backend is up; a device that is there is asked for two numbers.
    unsafe {
        let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_GPU);
        if device.is_null() {
            return None;
        }
        sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
    }
    Some(free as u64)
}
