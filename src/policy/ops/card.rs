//! What a GPU says of itself. Computes nothing.

use std::fmt;

use candle_core::Device;

/// A GPU that trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its number among the cards.
    pub index: usize,
    /// Its model.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of its memory.
    pub total: u64,
    /// Bytes of it that nobody holds.
    pub free: u64,
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let ((major, minor), (free, total)) = (self.capability, (gib(self.free), gib(self.total)));
        write!(f, "cuda:{}, {} ({major}.{minor}), {free:.1} of {total:.1} GiB free", self.index, self.name)
    }
}

/// The card that is this device; `None` for the CPU, and if the driver does not answer.
#[cfg(feature = "train-cuda")]
pub fn card(device: &Device) -> Option<Card> {
    let Device::Cuda(gpu) = device else { return None };
    let stream = gpu.cuda_stream();
    let context = stream.context();
    let (free, total) = context.mem_get_info().ok()?;
    Some(Card {
        index: context.ordinal(),
        name: context.name().ok()?,
        capability: context.compute_capability().ok()?,
        total: total as u64,
        free: free as u64,
    })
}

/// The card that is this device: none, for this build knows none.
#[cfg(not(feature = "train-cuda"))]
pub fn card(_: &Device) -> Option<Card> {
    None
}
