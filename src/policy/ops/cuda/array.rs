//! Values in the memory of a CUDA device, and places in them. Computes nothing.

use std::marker::PhantomData;
use std::ops::Deref;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};

/// Where values begin that live for `'a`. Work on a device is done in the order in which it is asked for, memory given
/// back included, so a place may be used by work that is done later.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub pointer: u64,
    pub dtype: DType,
    life: PhantomData<&'a ()>,
}

impl At<'_> {
    /// The place `count` values further on.
    pub fn plus(self, count: usize) -> Self {
        Self { pointer: self.pointer + (count * self.dtype.size_in_bytes()) as u64, ..self }
    }
}

/// An array in f32, bf16 or u32.
pub struct Array {
    storage: CudaStorage,
}

impl Array {
    /// Values that are written before they are read.
    pub fn new(gpu: &CudaDevice, dtype: DType, count: usize) -> Result<Self> {
        // SAFETY: a number of any bits is a number, and whoever asks writes it first.
        let storage = unsafe { gpu.alloc_uninit(&Shape::from(count.max(1)), dtype)? };
        Ok(Self { storage })
    }

    pub fn zeros(gpu: &CudaDevice, dtype: DType, count: usize) -> Result<Self> {
        Ok(Self { storage: gpu.zeros_impl(&Shape::from(count.max(1)), dtype)? })
    }

    /// A copy of values of the host.
    pub fn of<T: candle_core::WithDType>(gpu: &CudaDevice, values: &[T]) -> Result<Self> {
        Ok(Self { storage: gpu.storage_from_slice(values)? })
    }

    pub fn all(&self) -> At<'_> {
        at(&self.storage, 0)
    }

    pub fn into_storage(self) -> CudaStorage {
        self.storage
    }

    /// The same memory as a tensor outside any graph.
    pub fn into_tensor(self, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(Storage::Cuda(self.storage), shape, BackpropOp::none(), false)
    }
}

fn at(storage: &CudaStorage, offset: usize) -> At<'_> {
    fn pointer<T>(slice: &CudaSlice<T>) -> u64 {
        slice.device_ptr(slice.stream()).0
    }
    let (pointer, dtype) = match &storage.slice {
        CudaStorageSlice::F32(s) => (pointer(s), DType::F32),
        CudaStorageSlice::BF16(s) => (pointer(s), DType::BF16),
        CudaStorageSlice::U32(s) => (pointer(s), DType::U32),
        CudaStorageSlice::U8(s) => (pointer(s), DType::U8),
        // Operands are checked, and nothing else is made here.
        _ => (0, DType::F32),
    };
    At { pointer, dtype, life: PhantomData }.plus(offset)
}

/// The values of a contiguous operand of an operation named `op`.
pub fn operand<'a>(op: &str, storage: &'a CudaStorage, layout: &Layout) -> Result<At<'a>> {
    let known = matches!(
        storage.slice,
        CudaStorageSlice::F32(_) | CudaStorageSlice::BF16(_) | CudaStorageSlice::U32(_) | CudaStorageSlice::U8(_)
    );
    match layout.contiguous_offsets() {
        Some((start, _)) if known => Ok(at(storage, start)),
        _ => bail!("{op}: expected a contiguous tensor of f32 or bf16, got {layout:?}"),
    }
}

/// A copy of an operation's operand as a tensor outside any graph.
pub fn tensor(storage: &CudaStorage, layout: &Layout) -> Result<Tensor> {
    let copy = storage.try_clone(layout)?;
    match layout.contiguous_offsets() {
        Some((0, end)) if end == layout.shape().elem_count() => {}
        _ => bail!("expected a contiguous tensor with all its values, got {layout:?}"),
    }
    Ok(Tensor::from_storage(Storage::Cuda(copy), layout.shape(), BackpropOp::none(), false))
}

/// The storage of a contiguous tensor on a CUDA device, borrowed.
pub struct Values<'a> {
    guard: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Values<'a> {
    pub fn of(t: &'a Tensor) -> Result<Self> {
        let (guard, layout) = t.storage_and_layout();
        match &*guard {
            Storage::Cuda(storage) => operand("tensor", storage, layout).map(|_| ())?,
            _ => bail!("expected a tensor on a CUDA device, got one on {:?}", t.device().location()),
        }
        Ok(Self { guard, layout })
    }

    pub fn at(&self) -> Result<At<'_>> {
        operand("tensor", self, self.layout)
    }
}

impl Deref for Values<'_> {
    type Target = CudaStorage;

    fn deref(&self) -> &CudaStorage {
        match &*self.guard {
            Storage::Cuda(storage) => storage,
            _ => unreachable!("checked when it was made"),
        }
    }
}
