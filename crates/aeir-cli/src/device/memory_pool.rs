//! The pool of memory that CUDA's driver keeps for a card, from which candle's tensors are taken.

use std::ffi::c_void;

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{result, sys};

use sys::CUmemPool_attribute_enum::{CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, CU_MEMPOOL_ATTR_USED_MEM_HIGH};

/// Lets the pool keep what tensors give back, for the next ones.
///
/// As it comes, it returns all of that to the driver at every synchronisation, so each fetched figure: the next step would ask the driver
/// for its memory anew. Where the driver refuses, it only takes longer.
pub(super) fn keep_freed(device: &CudaDevice) {
    let _ = set(device, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX);
}

/// The most bytes that tensors had at once since [`forget_most_used`]; none where the driver says nothing.
pub(crate) fn most_used(device: &CudaDevice) -> Option<u64> {
    let pool = pool(device)?;
    let mut bytes = 0u64;
    let value = (&raw mut bytes).cast::<c_void>();
    // SAFETY: the device's own pool is there as long as the driver; the value of this attribute is 64 bits wide.
    unsafe { result::mem_pool::get_attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, value) }.ok()?;
    Some(bytes)
}

/// Begins to count anew.
pub(crate) fn forget_most_used(device: &CudaDevice) {
    // Zero is the one value that it takes.
    let _ = set(device, CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0);
}

fn set(device: &CudaDevice, attribute: sys::CUmemPool_attribute, mut value: u64) -> Option<()> {
    let pool = pool(device)?;
    let value = (&raw mut value).cast::<c_void>();
    // SAFETY: the device's own pool is there as long as the driver; the values of both attributes are 64 bits wide.
    unsafe { result::mem_pool::set_attribute(pool, attribute, value) }.ok()
}

/// None where the card has no pools: there tensors are allocated one by one.
fn pool(device: &CudaDevice) -> Option<sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return None;
    }
    // SAFETY: the context got its device from the driver.
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }.ok()
}
