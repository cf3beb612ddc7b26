//! Where a file of an asset comes from.

use std::path::{Path, PathBuf};

use super::manifest::{Asset, AssetFile};

/// A place that holds everything, laid out as `fetch` leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mirror {
    Folder(PathBuf),
    Server(String),
}

impl std::str::FromStr for Mirror {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Server(text.trim_end_matches('/').to_owned()));
        }
        let folder = PathBuf::from(text);
        if folder.is_dir() {
            Ok(Self::Folder(folder))
        } else {
            Err("no such folder, and no `https://..`".to_owned())
        }
    }
}

/// One way to a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    Url(String),
    /// The first of these files that is there.
    Copy(Vec<PathBuf>),
    Pip,
    Nowhere,
}

impl Source {
    /// How to come by a file, and how to say so.
    pub(super) fn of(
        asset: &Asset,
        file: &AssetFile,
        mirror: Option<&Mirror>,
        endpoint: &str,
        repository: &Path,
    ) -> Self {
        match mirror {
            Some(Mirror::Server(base)) => {
                return Self::Url(format!("{base}/{}/{}", asset.place(), encoded(&file.path)));
            }
            Some(Mirror::Folder(folder)) => return Self::Copy(places_in(folder, asset, file)),
            None => {}
        }
        if let Some(original) = &file.copy_of {
            return Self::Copy(vec![repository.join(original)]);
        }
        if let Some(url) = &file.url {
            return Self::Url(url.clone());
        }
        if let Some(hub) = &asset.hub {
            let kind = if hub.dataset { "datasets/" } else { "" };
            return Self::Url(format!(
                "{endpoint}/{kind}{}/resolve/{}/{}",
                hub.id,
                hub.revision.replace('/', "%2F"),
                encoded(&file.path)
            ));
        }
        if asset.pip.is_some() { Self::Pip } else { Self::Nowhere }
    }

    /// In a few words.
    pub(super) fn text(&self, asset: &Asset) -> String {
        match (self, &asset.pip) {
            (Self::Url(url), None) => url.clone(),
            (Self::Url(url), Some(pip)) => format!("{url}, or the Python package {}", pip.requirement),
            (Self::Copy(places), _) => {
                places.first().map(|place| place.display().to_string()).unwrap_or_default()
            }
            (Self::Pip, Some(pip)) => format!("the Python package {}", pip.requirement),
            (Self::Pip | Self::Nowhere, _) => "a place that --mirror names".to_owned(),
        }
    }
}

/// The folder itself may be the mirror, the folder of a kind, or that of the asset.
fn places_in(folder: &Path, asset: &Asset, file: &AssetFile) -> Vec<PathBuf> {
    let name = asset.place();
    let last = name.rsplit('/').next().unwrap_or(&name).to_owned();
    [folder.join(&name), folder.join(&last), folder.to_owned()]
        .into_iter()
        // A folder of several assets must not give one's file for another's.
        .filter(|place| place != folder || folder.file_name().is_some_and(|name| name == last.as_str()))
        .map(|place| place.join(&file.path))
        .collect()
}

/// Path parts as they stand in an address.
fn encoded(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_no_blanks() {
        assert_eq!(encoded("1_Pooling/a b#.json"), "1_Pooling/a%20b%23.json");
    }

    #[test]
    fn a_mirror_is_a_folder_or_a_server() {
        assert_eq!("https://m/x/".parse::<Mirror>().unwrap(), Mirror::Server("https://m/x".into()));
        assert!("not/there".parse::<Mirror>().is_err());
        assert!(matches!(".".parse::<Mirror>().unwrap(), Mirror::Folder(_)));
    }
}
