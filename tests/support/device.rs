//! Where tests of the trainer compute. Tests nothing.

use candle_core::Device;

/// The CPU, or what `APA_TEST_DEVICE` names, such as `cuda:0`.
pub fn device() -> Device {
    let name = std::env::var("APA_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    apa::policy::device(&name).unwrap_or_else(|e| panic!("APA_TEST_DEVICE is {name}: {e}"))
}
