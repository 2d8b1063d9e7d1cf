//! What this machine is, and what a model will need of it, before anything is loaded. Starts nothing and keeps nothing.

use std::path::Path;

use candle_core::Device;
use serde::Serialize;

use crate::config::Config;
use crate::forecast::{self, Forecast};
use crate::ledger::Place;
use crate::policy;
use crate::processor::{Gap, KernelCheck, Processor};
use crate::publish::store_answers;
use crate::{llama, system};

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The processor.
    pub processor: Processor,
    /// Threads that run at once.
    pub cores: u32,
    /// Whose kernels serve.
    pub serving_kernels: &'static str,
    /// What frozen products of the trainer are computed in.
    pub training_kernels: &'static str,
    /// The trainer's device, or why the one that is set can't be had.
    pub device: std::result::Result<String, String>,
    /// Bytes of memory that could be had, a limit on the process's group included, where the system says.
    pub free_memory: Option<u64>,
    /// Bytes that may be written where the data folder is or will be.
    pub free_disk: Option<u64>,
    /// Where the ledger is and, if that is a database, that it answers; or why it doesn't.
    pub ledger: std::result::Result<String, String>,
    /// Where versions are kept as well, if anywhere, and that it can be read; or why it can't.
    pub store: Option<std::result::Result<String, String>>,
    /// What the model needs, if one was named; or why it can't be read.
    pub model: Option<std::result::Result<Forecast, String>>,
}

/// Looks at the machine, and at the model that the settings name, if they do.
pub fn examine(config: &Config) -> Report {
    let device = policy::device(&config.train.device);
    let named = !config.model.as_os_str().is_empty();
    let free_memory = system::free_memory();
    Report {
        processor: Processor::detect(),
        cores: system::cores_or(0),
        serving_kernels: llama::kernels(),
        training_kernels: policy::ops::precision(),
        model: named.then(|| forecast::forecast(config, free_memory, device.as_ref().ok()).map_err(|e| e.to_string())),
        device: device.map(|device| policy::describe(&device)).map_err(|e| e.to_string()),
        free_memory,
        ledger: Place::of(config).answers().map_err(|e| e.to_string()),
        store: config.publish.store.as_ref().map(|url| store_answers(url).map_err(|e| e.to_string())),
        free_disk: existing(&config.data).and_then(system::disk_room).map(|room| room.free),
    }
}

/// The nearest folder above that exists.
fn existing(folder: &Path) -> Option<&Path> {
    let here = Path::new(".");
    folder.ancestors().map(|f| if f.as_os_str().is_empty() { here } else { f }).find(|f| f.exists())
}

/// Every kernel that serving and training use here, those of a GPU that trains included. One that the processor can't
/// run ends its process.
pub fn kernels(device: &Device) -> impl Iterator<Item = &'static KernelCheck> {
    let gpu: &[KernelCheck] = if device.is_cpu() { &[] } else { policy::ops::GPU_KERNELS };
    llama::KERNELS.iter().chain(policy::ops::KERNELS).chain(gpu)
}

/// Tries one of them.
///
/// # Errors
/// What the kernel failed with.
pub fn try_kernel(kernel: &KernelCheck, device: &Device) -> crate::error::Result<Gap> {
    let on_gpu = policy::ops::GPU_KERNELS.iter().any(|known| known.name == kernel.name);
    (kernel.run)(if on_gpu { device } else { &Device::Cpu })
}
