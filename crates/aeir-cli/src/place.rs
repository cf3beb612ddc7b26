//! Where things are: the device to compute on, the cache folder.

use std::path::PathBuf;
use std::str::FromStr;

use aeir_encoders::hub::HubConfig;
use candle_core::Device;

use crate::failure::{CliError, without_backtrace};
use crate::terminal::Terminal;

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
    /// Opens the device. `auto` takes the first that works, a GPU before the CPU.
    pub(crate) fn open(self, terminal: &Terminal) -> anyhow::Result<Device> {
        let explain = |name: &str, feature: &str, error: candle_core::Error| CliError::Usage {
            message: format!("device {name} can't be used: {}", without_backtrace(&error.to_string())),
            hint: format!(
                "build with `--features {feature}` on a machine that has one, or pass --device cpu"
            ),
        };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => {
                Device::new_cuda(number).map_err(|error| explain("cuda", "cuda", error).into())
            }
            Self::Metal => Device::new_metal(0).map_err(|error| explain("metal", "metal", error).into()),
            Self::Auto => {
                for (built, open) in [
                    (candle_core::utils::cuda_is_available(), Device::new_cuda as fn(usize) -> _),
                    (candle_core::utils::metal_is_available(), Device::new_metal),
                ] {
                    if !built {
                        continue;
                    }
                    match open(0) {
                        Ok(device) => return Ok(device),
                        Err(error) => terminal.warn(&format!("no GPU that works ({error}): using the CPU")),
                    }
                }
                Ok(Device::Cpu)
            }
        }
    }
}

/// The cache: `AEIR_CACHE_DIR`, else the platform's cache folder.
pub(crate) fn cache_folder() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("AEIR_CACHE_DIR").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    directories::ProjectDirs::from("", "", "aeir").map(|found| found.cache_dir().to_owned()).ok_or_else(
        || {
            CliError::Usage {
                message: "this user has no home folder to keep a cache in".into(),
                hint: "set AEIR_CACHE_DIR to a folder".into(),
            }
            .into()
        },
    )
}

/// The hub and its cache, as the environment variables of Hugging Face's own tools say.
pub(crate) fn hub_config() -> anyhow::Result<HubConfig> {
    let folders = directories::BaseDirs::new();
    let home = folders.as_ref().map(directories::BaseDirs::home_dir);
    HubConfig::from_variables(|name| std::env::var(name).ok(), home).ok_or_else(|| {
        CliError::Usage {
            message: "this user has no home folder with a cache of models".into(),
            hint: "set HF_HOME to a folder".into(),
        }
        .into()
    })
}

/// Where features of frozen encoders are kept, whether it is there or not.
pub(crate) fn feature_cache_path() -> anyhow::Result<PathBuf> {
    Ok(cache_folder()?.join("features"))
}

/// Where features of frozen encoders are kept, made where it is missing.
pub(crate) fn feature_cache() -> anyhow::Result<PathBuf> {
    let folder = feature_cache_path()?;
    std::fs::create_dir_all(&folder).map_err(|error| CliError::Usage {
        message: format!("could not make the cache folder `{}`: {error}", folder.display()),
        hint: "set AEIR_CACHE_DIR to a folder that can be written".into(),
    })?;
    Ok(folder)
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
}
