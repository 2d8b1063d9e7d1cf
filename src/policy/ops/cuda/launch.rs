//! How kernels are launched: blocks, threads and shared memory. Knows none of them.

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, LaunchConfig, sys};
use candle_core::{DType, Result, bail};

use super::array::At;

/// Made of kernels.cu by the build.
pub const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Threads of a block where each has a value of its own.
const EACH: u32 = 256;
/// Threads of a block that has a row.
const ROW: u32 = 256;

/// Blocks, threads of a block, and bytes of shared memory that are asked for at the launch.
pub struct Launch {
    pub blocks: (usize, usize),
    pub threads: u32,
    pub shared: usize,
}

impl Launch {
    pub fn each(count: usize) -> Self {
        Self { blocks: (count.div_ceil(EACH as usize), 1), threads: EACH, shared: 0 }
    }

    pub fn rows(rows: usize) -> Self {
        Self { blocks: (rows, 1), threads: ROW, shared: 0 }
    }

    pub fn config(&self) -> Result<LaunchConfig> {
        let size = |n: usize| u32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("{n} blocks of a kernel")));
        Ok(LaunchConfig {
            grid_dim: (size(self.blocks.0)?, size(self.blocks.1)?, 1),
            block_dim: (self.threads, 1, 1),
            shared_mem_bytes: size(self.shared)?,
        })
    }

    /// Lets a kernel have as much shared memory as this launch asks for.
    pub fn allow(&self, kernel: &CudaFunction, name: &str) -> Result<()> {
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        if self.shared > 48 << 10 && kernel.set_attribute(most, self.shared as i32).is_err() {
            bail!("{name} takes {} bytes of shared memory, and this card has less", self.shared);
        }
        Ok(())
    }
}

/// Launches a kernel with these arguments, in the order and of the types of its declaration; nothing for no blocks.
macro_rules! launch {
    ($gpu:expr, $name:expr, $launch:expr, $($arg:expr),* $(,)?) => {{
        let (launch, name): ($crate::policy::ops::cuda::launch::Launch, &str) = ($launch, $name);
        if launch.blocks.0 > 0 && launch.blocks.1 > 0 {
            let name = format!("apa_{name}");
            let kernel = $gpu.get_or_load_custom_func(&name, "apa", $crate::policy::ops::cuda::launch::PTX)?;
            launch.allow(&kernel, &name)?;
            let mut builder = kernel.builder();
            candle_core::builder_arg!(builder, $($arg),*);
            // SAFETY: the arguments are those that the kernel declares, and the places hold as much as it reads and
            // writes, which each function here says of its own.
            unsafe { builder.launch(launch.config()?) }.w()?;
        }
    }};
}

/// A number format in the names of kernels.
pub fn name(dtype: DType) -> &'static str {
    if dtype == DType::BF16 { "bf16" } else { "f32" }
}

/// The address of what may be left out.
pub fn address(at: Option<At>) -> u64 {
    at.map_or(0, |at| at.pointer)
}

pub(super) use launch;
