//! How a kernel is run: its arguments, its grid, and memory for what it computes.

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, LaunchConfig, PushKernelArg, result, sys,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{DType, Layout, Result, Shape, Storage, Tensor, bail};

mod ptx {
    #![expect(unreachable_pub, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// Kernels that are loaded together.
pub(crate) struct Module {
    name: &'static str,
    ptx: &'static str,
}

pub(crate) const ALIGNMENT: Module = Module { name: "aeir-alignment", ptx: ptx::ALIGNMENT };
pub(crate) const ATTENTION: Module = Module { name: "aeir-attention", ptx: ptx::ATTENTION };
pub(crate) const ELEMENTS: Module = Module { name: "aeir-elements", ptx: ptx::ELEMENTS };
pub(crate) const FILTER: Module = Module { name: "aeir-filter", ptx: ptx::FILTER };
pub(crate) const FRAGMENTS: Module = Module { name: "aeir-fragments", ptx: ptx::FRAGMENTS };
pub(crate) const OPTIMIZER: Module = Module { name: "aeir-optimizer", ptx: ptx::OPTIMIZER };
pub(crate) const ROWS: Module = Module { name: "aeir-rows", ptx: ptx::ROWS };
pub(crate) const SENTENCES: Module = Module { name: "aeir-sentences", ptx: ptx::SENTENCES };

/// Threads of a block, where nothing else decides.
pub(crate) const THREADS: u32 = 256;
/// Threads of a warp.
const WARP: u32 = 32;
/// Blocks that walk over single numbers, at most.
const MOST_BLOCKS: usize = 1 << 16;

/// Blocks, threads of each, and bytes that they share.
pub(crate) struct Grid {
    pub(crate) blocks: (u32, u32),
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

impl Grid {
    /// A warp for each of `rows`.
    pub(crate) fn warps(rows: usize) -> Result<Self> {
        Self::blocks(rows.div_ceil((THREADS / WARP) as usize), 1)
    }

    /// Blocks that walk over `count` numbers.
    pub(crate) fn walking(count: usize) -> Result<Self> {
        Self::blocks(count.div_ceil(THREADS as usize).min(MOST_BLOCKS), 1)
    }

    /// A thread for each of `count` numbers.
    pub(crate) fn threads(count: usize) -> Result<Self> {
        Self::blocks(count.div_ceil(THREADS as usize), 1)
    }

    /// A thread for each column of `width`, a block in the second axis for each of `blocks` parts of the rows.
    pub(crate) fn columns(width: usize, blocks: usize) -> Result<Self> {
        /// Few rows of our widths leave half of a larger block idle.
        const COLUMNS: u32 = 128;
        let x = width.div_ceil(COLUMNS as usize);
        Ok(Self { threads: COLUMNS, ..Self::blocks(x, blocks)? })
    }

    pub(crate) fn blocks(x: usize, y: usize) -> Result<Self> {
        // The second axis has room for 65,535.
        if y > usize::from(u16::MAX) {
            bail!("a kernel of {x} x {y} blocks: at most {} in the second axis", u16::MAX);
        }
        Ok(Self { blocks: (number(x)?, number(y)?), threads: THREADS, shared: 0 })
    }

    /// With room for so many f32 numbers in each block.
    pub(crate) fn sharing(self, numbers: usize) -> Result<Self> {
        Ok(Self { shared: number(4 * numbers)?, ..self })
    }
}

/// A size as a kernel takes it.
pub(crate) fn number(size: usize) -> Result<u32> {
    match u32::try_from(size) {
        Ok(number) if number <= i32::MAX as u32 => Ok(number),
        _ => bail!("a kernel's size: {size} is more than {}", i32::MAX),
    }
}

/// One argument of a kernel.
pub(crate) enum Argument<'a> {
    /// A tensor without gaps, of f32, u32 or u8.
    Tensor(&'a Tensor),
    /// A tensor in f32 from its first number on, of whatever strides.
    View(&'a Tensor),
    /// Bytes.
    Bytes(&'a CudaSlice<u8>),
    /// What the kernel fills.
    Out(&'a CudaSlice<f32>),
    /// What it fills from a place on.
    OutFrom(&'a CudaSlice<f32>, usize),
    Number(u32),
    Long(u64),
    Real(f32),
    Words([u32; 10]),
    Strides([u64; 3]),
}

/// An argument as it is handed over; its address has to stay until then.
enum Value<'a> {
    Real(CudaView<'a, f32>),
    Index(CudaView<'a, u32>),
    Byte(CudaView<'a, u8>),
    Number(u32),
    Long(u64),
    Single(f32),
    Words([u32; 10]),
    Strides([u64; 3]),
}

/// Where tensors lie and kernels run.
pub(crate) struct Card(CudaDevice);

impl Card {
    /// The card that a tensor lies on.
    pub(crate) fn of(x: &Tensor) -> Result<Self> {
        Ok(Self(x.device().as_cuda_device()?.clone()))
    }

    pub(crate) fn on(device: &CudaDevice) -> Self {
        Self(device.clone())
    }

    /// Refuses work whose tensors, `numbers` f32 in all, can't lie on the card beside what is in use. Asked before the first of them: the
    /// driver was seen not to come back from such work.
    pub(crate) fn refuse_beyond_memory(&self, what: &str, numbers: usize) -> Result<()> {
        let needed = numbers.saturating_mul(size_of::<f32>()) as u64;
        match self.memory_left() {
            Some(left) if needed > left => {
                bail!("CUDA_ERROR_OUT_OF_MEMORY: {what} would take {needed} bytes, and the card has {left}")
            }
            _ => Ok(()),
        }
    }

    /// Bytes of the card that tensors of this process do not hold, whether or not others do; none where the driver does not tell.
    fn memory_left(&self) -> Option<u64> {
        let stream = self.0.cuda_stream();
        let context = stream.context();
        let (_, total) = context.mem_get_info().ok()?;
        if !context.has_async_alloc() {
            return Some(total as u64);
        }
        // SAFETY: the context got its device from the driver.
        let pool = unsafe { result::device::get_default_mem_pool(context.cu_device()) }.ok()?;
        let mut used = 0u64;
        let value = (&raw mut used).cast::<c_void>();
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        // SAFETY: the device's own pool is there as long as the driver; the value of this attribute is 64 bits wide.
        unsafe { result::mem_pool::get_attribute(pool, attribute, value) }.ok()?;
        Some((total as u64).saturating_sub(used))
    }

    /// Room for `count` numbers, which a kernel has to fill.
    pub(crate) fn room(&self, count: usize) -> Result<CudaSlice<f32>> {
        // SAFETY: every caller hands it to a kernel that writes all of it before anything reads it.
        unsafe { self.0.alloc::<f32>(count) }
    }

    /// Pieces of bytes behind one another on the card.
    pub(crate) fn sent(&self, pieces: &[&[u8]]) -> Result<CudaSlice<u8>> {
        // SAFETY: all of it is written below, piece by piece.
        let mut bytes = unsafe { self.0.alloc::<u8>(pieces.iter().map(|piece| piece.len()).sum()) }?;
        let mut start = 0;
        for piece in pieces {
            let Some(mut place) = bytes.try_slice_mut(start..start + piece.len()) else {
                bail!("bytes for a card: {start} is behind their end")
            };
            self.0.memcpy_htod(*piece, &mut place)?;
            start += piece.len();
        }
        Ok(bytes)
    }

    /// A tensor of what a kernel filled.
    pub(crate) fn tensor(&self, filled: CudaSlice<f32>, shape: impl Into<Shape>) -> Tensor {
        untracked(self.storage(filled), shape)
    }

    pub(crate) fn storage(&self, filled: CudaSlice<f32>) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(filled, self.0.clone())
    }

    /// Runs a kernel behind everything that was begun before.
    pub(crate) fn launch(
        &self,
        module: &Module,
        name: &str,
        grid: &Grid,
        arguments: &[Argument<'_>],
    ) -> Result<()> {
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return Ok(());
        }
        let function = self.0.get_or_load_custom_func(name, module.name, module.ptx)?;
        let held: Vec<_> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Tensor(tensor) | Argument::View(tensor) => Some(tensor.storage_and_layout()),
                _ => None,
            })
            .collect();
        let values = arguments
            .iter()
            .zip(&held)
            .map(|(argument, held)| {
                Ok(match (argument, held) {
                    (Argument::Tensor(_), Some((storage, layout))) => view(storage, layout)?,
                    (Argument::View(_), Some((storage, layout))) => behind(storage, layout)?,
                    (Argument::Bytes(bytes), _) => Value::Byte(bytes.as_view()),
                    (Argument::Out(slice), _) => Value::Real(slice.as_view()),
                    (Argument::OutFrom(slice, start), _) => match slice.try_slice(*start..) {
                        Some(view) => Value::Real(view),
                        None => bail!("{name}: {start} is behind the end of {} numbers", slice.len()),
                    },
                    (Argument::Number(number), _) => Value::Number(*number),
                    (Argument::Long(number), _) => Value::Long(*number),
                    (Argument::Real(number), _) => Value::Single(*number),
                    (Argument::Words(words), _) => Value::Words(*words),
                    (Argument::Strides(strides), _) => Value::Strides(*strides),
                    (Argument::Tensor(_) | Argument::View(_), None) => {
                        bail!("{name}: a tensor that is not held")
                    }
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut launch = function.builder();
        for value in &values {
            match value {
                Value::Real(view) => launch.arg(view),
                Value::Index(view) => launch.arg(view),
                Value::Byte(view) => launch.arg(view),
                Value::Number(number) => launch.arg(number),
                Value::Long(number) => launch.arg(number),
                Value::Single(number) => launch.arg(number),
                Value::Words(words) => launch.arg(words),
                Value::Strides(strides) => launch.arg(strides),
            };
        }
        let (x, y) = grid.blocks;
        let config = LaunchConfig {
            grid_dim: (x, y, 1),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared,
        };
        // SAFETY: each caller gives the arguments that its kernel declares, with sizes that are those of the tensors and of the room; what is
        // filled is seen by nobody else yet, and the stream keeps the order.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }
}

/// A tensor outside of any graph.
pub(crate) fn untracked(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// The numbers of a storage from a view's first one on.
fn behind<'a>(storage: &'a Storage, layout: &Layout) -> Result<Value<'a>> {
    let Storage::Cuda(storage) = storage else { bail!("a kernel's tensor is not on a card") };
    match storage.as_cuda_slice::<f32>()?.try_slice(layout.start_offset()..) {
        Some(view) => Ok(Value::Real(view)),
        None => bail!("a kernel's tensor: layout outside of the storage"),
    }
}

/// The numbers of a tensor without gaps.
fn view<'a>(storage: &'a Storage, layout: &Layout) -> Result<Value<'a>> {
    let Storage::Cuda(storage) = storage else { bail!("a kernel's tensor is not on a card") };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a kernel's tensor has gaps: strides {:?}", layout.stride())
    };
    let outside = || candle_core::Error::Msg("a kernel's tensor: layout outside of the storage".into());
    match candle_core::backend::BackendStorage::dtype(storage) {
        DType::F32 => {
            let all = storage.as_cuda_slice::<f32>()?;
            Ok(Value::Real(all.try_slice(start..end).ok_or_else(outside)?))
        }
        DType::U32 => {
            let all = storage.as_cuda_slice::<u32>()?;
            Ok(Value::Index(all.try_slice(start..end).ok_or_else(outside)?))
        }
        DType::U8 => {
            let all = storage.as_cuda_slice::<u8>()?;
            Ok(Value::Byte(all.try_slice(start..end).ok_or_else(outside)?))
        }
        other => bail!("a kernel's tensor of {other:?}: expected f32, u32 or u8"),
    }
}
