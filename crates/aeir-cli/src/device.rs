//! The device to compute on: opened, tried, and what is known of it.

#[cfg(feature = "cuda")]
pub(crate) mod memory_pool;

use std::str::FromStr;

use candle_core::{Device, DeviceLocation, Tensor};
use serde::Serialize;

use crate::failure::{CliError, without_backtrace};
use crate::terminal::Terminal;

/// The commit that the program was built from, where the build was told (`AEIR_COMMIT`).
pub(crate) const COMMIT: Option<&str> = option_env!("AEIR_COMMIT");

/// A device as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Auto,
    Cpu,
    Cuda(usize),
    Metal,
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda, cuda:N or metal".to_owned()),
        }
    }
}

impl DeviceName {
    /// Opens the device and tries it. `auto` takes the first that works, a GPU before the CPU.
    pub(crate) fn open(self, terminal: &Terminal) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => open_gpu(Gpu::Cuda, number).map_err(|why| why.error().into()),
            Self::Metal => open_gpu(Gpu::Metal, 0).map_err(|why| why.error().into()),
            Self::Auto => {
                for gpu in [Gpu::Cuda, Gpu::Metal] {
                    match open_gpu(gpu, 0) {
                        Ok(device) => return Ok(device),
                        Err(Refusal { why: Why::NotBuilt, .. }) => {}
                        Err(Refusal { why: Why::Broken(reason), .. }) => terminal
                            .warn(&format!("no {} device works ({reason}): using the CPU", gpu.name())),
                    }
                }
                Ok(Device::Cpu)
            }
        }
    }
}

/// A kind of GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gpu {
    Cuda,
    Metal,
}

impl Gpu {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cuda => "CUDA",
            Self::Metal => "Metal",
        }
    }

    fn feature(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    /// How a program for it is made.
    fn build(self) -> &'static str {
        match self {
            Self::Cuda => "build one with `cargo xtask cuda build`, which needs no CUDA toolkit",
            Self::Metal => "build one with `cargo build --release -p aeir-cli --features metal`",
        }
    }

    pub(crate) fn is_built(self) -> bool {
        match self {
            Self::Cuda => candle_core::utils::cuda_is_available(),
            Self::Metal => candle_core::utils::metal_is_available(),
        }
    }
}

/// Why a GPU can't be used.
pub(crate) struct Refusal {
    gpu: Gpu,
    number: usize,
    pub(crate) why: Why,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The program has no code for it.
    NotBuilt,
    /// It is not there, or computes nothing or something wrong.
    Broken(String),
}

impl Refusal {
    fn error(&self) -> CliError {
        let Self { gpu, number, why } = self;
        let (name, feature) = (gpu.name(), gpu.feature());
        match why {
            Why::NotBuilt => CliError::Usage {
                message: format!("device {feature} can't be used: this aeir was built without {name}"),
                hint: format!("{} (docs/{feature}.md), or pass --device cpu", gpu.build()),
            },
            Why::Broken(reason) => CliError::Usage {
                message: format!("device {feature}:{number} can't be used: {reason}"),
                hint: self.hint(reason),
            },
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self, reason: &str) -> String {
        let what = match self.gpu {
            Gpu::Metal => "it needs a Mac with Metal",
            Gpu::Cuda if reason.contains("INVALID_DEVICE") => {
                "there are fewer cards: `nvidia-smi` lists them, counted from 0; CUDA_VISIBLE_DEVICES hides some"
            }
            Gpu::Cuda if reason.contains("NO_DEVICE") => {
                "no card is seen: does `nvidia-smi` list one, and is CUDA_VISIBLE_DEVICES unset or right?"
            }
            Gpu::Cuda
                if [
                    "NO_BINARY_FOR_GPU",
                    "UNSUPPORTED_PTX_VERSION",
                    "INVALID_PTX",
                    "SYSTEM_DRIVER_MISMATCH",
                ]
                .iter()
                .any(|name| reason.contains(name)) =>
            {
                "the driver or the card is older than what this aeir was built for: build it with CUDA_COMPUTE_CAP of the card, or update the driver"
            }
            Gpu::Cuda if reason.contains("OUT_OF_MEMORY") => {
                "other programs hold its memory: `nvidia-smi` shows which"
            }
            Gpu::Cuda => "`nvidia-smi` shows card and driver; docs/cuda.md says what each error means",
        };
        format!("{what}; --device cpu does without")
    }
}

/// Opens a GPU and lets it compute something small.
pub(crate) fn open_gpu(gpu: Gpu, number: usize) -> Result<Device, Refusal> {
    let refuse = |why| Refusal { gpu, number, why };
    if !gpu.is_built() {
        return Err(refuse(Why::NotBuilt));
    }
    let opened = match gpu {
        Gpu::Cuda => Device::new_cuda(number),
        Gpu::Metal => Device::new_metal(number),
    };
    let broken =
        |error: candle_core::Error| refuse(Why::Broken(without_backtrace(&error.to_string()).to_owned()));
    let device = opened.map_err(broken)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = &device {
        memory_pool::keep_freed(cuda);
    }
    if computes(&device).map_err(broken)? {
        Ok(device)
    } else {
        Err(refuse(Why::Broken("a small product came out wrong".into())))
    }
}

/// Whether a small product, with something element-wise behind it, comes out right.
pub(crate) fn computes(device: &Device) -> candle_core::Result<bool> {
    let a = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], device)?;
    let b = Tensor::new(&[[1f32, -1.], [0., 2.], [1., 0.]], device)?;
    let c = (a.matmul(&b)? * 2.0)?.relu()?.to_vec2::<f32>()?;
    Ok(c == [[8.0, 6.0], [20.0, 12.0]])
}

/// What a device is.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(crate) struct DeviceFacts {
    /// `cpu`, `cuda` or `metal`.
    pub(crate) kind: &'static str,
    /// As `--device` takes it: with its number where there may be several.
    pub(crate) device: String,
    /// Of the card, or of the processor.
    pub(crate) name: String,
    /// `9.0`, say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) compute_capability: Option<String>,
    /// The newest CUDA that the driver knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) driver: Option<String>,
    /// Of cuBLAS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cublas: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
}

/// `cuda:1`, say.
fn numbered(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { .. } => "metal".to_owned(),
    }
}

/// What the driver says of a device.
pub(crate) fn device_facts(device: &Device) -> DeviceFacts {
    let mut facts = DeviceFacts {
        kind: "cpu",
        device: numbered(device),
        name: processor(),
        compute_capability: None,
        driver: None,
        cublas: None,
        memory_bytes: crate::selftest::device_memory(device).map(|memory| memory.total),
    };
    match device {
        Device::Cpu => {}
        Device::Metal(_) => (facts.kind, facts.name) = ("metal", "Metal device".to_owned()),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let stream = cuda.cuda_stream();
            let context = stream.context();
            facts.kind = "cuda";
            facts.name = context.name().unwrap_or_else(|_| "CUDA device".to_owned());
            facts.compute_capability =
                context.compute_capability().ok().map(|(major, minor)| format!("{major}.{minor}"));
            facts.driver = versions::driver();
            facts.cublas = versions::cublas(cuda);
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => (facts.kind, facts.name) = ("cuda", "CUDA device".to_owned()),
    }
    facts
}

/// Versions that libraries tell.
#[cfg(feature = "cuda")]
mod versions {
    use candle_core::CudaDevice;
    use candle_core::cuda_backend::cudarc;

    /// The newest CUDA that the driver knows.
    pub(super) fn driver() -> Option<String> {
        let mut version = 0;
        // SAFETY: the call writes one number.
        unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
        Some(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// Of the cuBLAS that is loaded.
    pub(super) fn cublas(device: &CudaDevice) -> Option<String> {
        let mut version = 0;
        let blas = device.cublas_handle();
        // SAFETY: the handle lives as long as `blas`; the call writes one number.
        let status = unsafe { cudarc::cublas::sys::cublasGetVersion_v2(*blas.handle(), &raw mut version) };
        status.result().ok()?;
        Some(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
    }
}

/// The processor's name, where the system tells.
fn processor() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    told.filter(|name| !name.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_parse() {
        assert_eq!("cuda:3".parse(), Ok(DeviceName::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for wrong in ["gpu", "cuda:", "cuda:x", ""] {
            assert!(wrong.parse::<DeviceName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_cpu_computes_and_has_a_name() {
        assert!(computes(&Device::Cpu).unwrap());
        let facts = device_facts(&Device::Cpu);
        assert!(facts.kind == "cpu" && facts.device == "cpu" && !facts.name.is_empty(), "{facts:?}");
    }

    #[test]
    fn auto_takes_the_cpu_where_no_gpu_is_built_in() {
        if !Gpu::Cuda.is_built() && !Gpu::Metal.is_built() {
            assert!(DeviceName::Auto.open(&Terminal::new(true)).unwrap().is_cpu());
            let refusal = open_gpu(Gpu::Cuda, 0).err().unwrap();
            assert_eq!(refusal.why, Why::NotBuilt);
            let hint = |gpu| {
                let error = Refusal { gpu, number: 0, why: Why::NotBuilt }.error();
                let CliError::Usage { hint, .. } = error else { panic!("{error}") };
                hint
            };
            assert!(hint(Gpu::Cuda).contains("`cargo xtask cuda build`"));
            assert!(hint(Gpu::Metal).contains("--features metal` (docs/metal.md)"));
        }
    }

    #[test]
    fn errors_of_the_driver_have_a_hint_of_their_own() {
        let hint = |reason: &str| {
            Refusal { gpu: Gpu::Cuda, number: 1, why: Why::Broken(reason.into()) }.hint(reason)
        };
        assert!(hint("DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device\")").contains("nvidia-smi"));
        assert!(hint("DriverError(CUDA_ERROR_INVALID_DEVICE, \"invalid\")").contains("fewer cards"));
        assert!(hint("DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"x\")").contains("CUDA_COMPUTE_CAP"));
        assert!(hint("something else").contains("docs/cuda.md"));
    }
}
