//! The most memory that was taken.

use candle_core::Device;

/// The most memory that this process had at once, in bytes, where the system tells.
pub(crate) fn host_peak() -> Option<u64> {
    #[cfg(unix)]
    {
        // SAFETY: a struct of numbers may be all zeros, and the call writes into it alone.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) == 0).then_some(usage)
        };
        // Kibibytes, but bytes on Apple's systems.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        usage.and_then(|usage| u64::try_from(usage.ru_maxrss).ok()).map(|peak| peak * unit)
    }
    #[cfg(not(unix))]
    None
}

/// Begins to look for the most memory of a device anew, where the driver keeps it.
pub(super) fn forget_device_peak(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        crate::device::memory_pool::forget_most_used(device);
    }
    let _ = device;
}

/// The most memory of a device that tensors had at once since [`forget_device_peak`], in bytes. Where the driver doesn't keep it: what is
/// in use now, also by other programs.
pub(super) fn device_peak(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device
        && let Some(most) = crate::device::memory_pool::most_used(cuda)
    {
        return Some(most);
    }
    device_memory(device).map(|memory| memory.used)
}

/// Memory of a device in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceMemory {
    pub(crate) used: u64,
    pub(crate) total: u64,
}

/// What the driver says of its memory; none for the CPU, and where the driver says nothing.
pub(crate) fn device_memory(device: &Device) -> Option<DeviceMemory> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
        return Some(DeviceMemory { used: total.saturating_sub(free) as u64, total: total as u64 });
    }
    let _ = device;
    None
}

/// For people.
pub(crate) fn readable(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / size as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_the_cpu_tells_none() {
        if cfg!(unix) {
            assert!(host_peak().unwrap() > 1 << 20);
        }
        assert!(device_memory(&Device::Cpu).is_none());
        assert_eq!(readable(3 << 29), "1.5 GiB");
        assert_eq!(readable(12), "12 bytes");
    }
}
