//! Where things are: the cache folder, the hub's cache.

use std::path::PathBuf;

use aeir_encoders::hub::HubConfig;

use crate::failure::CliError;

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
