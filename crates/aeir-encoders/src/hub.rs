//! Models by id, in the cache that Hugging Face's own tools use, and with the `hub` feature from the hub itself.
//!
//! The cache is a folder of folders:
//!
//! ```text
//! CACHE/models--ORG--NAME/
//!   refs/main                the commit that `main` was when it was fetched
//!   snapshots/COMMIT/        the model's files by name, links into blobs/
//!   blobs/HASH               what they contain
//! ```
//!
//! What another tool fetched is found here, and the other way round. A model that is in the cache needs no network: a branch stays
//! at the commit that it was when it was fetched. Another revision is named with `@`, a commit makes sure.
//!
//! Without network, files may also be put by hand into `snapshots/REVISION/`.

#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
mod needed_files;
#[cfg(feature = "hub")]
mod upload;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::error::{EncoderError, Result};
#[cfg(feature = "hub")]
use download::git_blob_hash;
use needed_files::missing_files;
#[cfg(feature = "hub")]
pub use upload::{Push, PushFile, Pushed};

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_REVISION: &str = "main";
const MAX_PART: usize = 96;

/// A model on the hub: `org/name` or `org/name@revision`.
///
/// # Example
/// ```
/// use aeir_encoders::hub::ModelId;
///
/// let id: ModelId = "sentence-transformers/all-MiniLM-L6-v2@v2".parse()?;
/// assert_eq!((id.name(), id.revision()), ("sentence-transformers/all-MiniLM-L6-v2", "v2"));
/// assert!("../secrets".parse::<ModelId>().is_err());
/// # Ok::<(), aeir_encoders::EncoderError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    name: String,
    revision: String,
}

impl ModelId {
    /// Owner and name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Branch, tag or commit; `main` where none was given.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.name)?;
        if self.revision == DEFAULT_REVISION { Ok(()) } else { write!(formatter, "@{}", self.revision) }
    }
}

impl FromStr for ModelId {
    type Err = EncoderError;

    /// # Errors
    /// [`EncoderError::ModelId`]: owner and name are letters, digits, `-`, `_` and `.`; a revision may have `/` as well. Neither
    /// can lead out of the cache.
    fn from_str(text: &str) -> Result<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let named = name.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name));
        let revised = revision.len() <= 2 * MAX_PART && revision.split('/').all(is_part);
        if named && revised {
            return Ok(Self { name: name.to_owned(), revision: revision.to_owned() });
        }
        Err(EncoderError::ModelId { got: text.chars().take(2 * MAX_PART).collect() })
    }
}

fn is_part(part: &str) -> bool {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let edge = |character: char| ".-".contains(character);
    !part.is_empty()
        && part.len() <= MAX_PART
        && part.chars().all(allowed)
        && !part.starts_with(edge)
        && !part.ends_with(edge)
        && !part.contains("..")
        && !part.contains("--")
}

/// Where models are kept and how they are fetched. This crate reads no environment variables: the caller does, with
/// [`HubConfig::from_variables`] if it wants Hugging Face's own.
#[derive(Clone)]
pub struct HubConfig {
    /// The cache: a folder of `models--ORG--NAME`.
    pub cache: PathBuf,
    /// The hub, or a mirror of it.
    pub endpoint: String,
    /// Who asks: for models that are private or gated. Sent to the endpoint alone.
    pub token: Option<String>,
    /// Never use the network.
    pub offline: bool,
    /// A proxy to go through, such as `http://proxy:3128`.
    pub proxy: Option<String>,
    /// How often a request is repeated that failed for a while (a cut connection, 429, 5xx) without any progress.
    pub retries: u32,
    /// Wait before the first repetition; it doubles each time. `Retry-After` of the server wins.
    pub backoff: Duration,
    /// Longest wait for a connection, an answer, or further bytes.
    pub timeout: Duration,
}

impl HubConfig {
    /// The public hub with its cache in `cache`, without a token.
    #[must_use]
    pub fn new(cache: PathBuf) -> Self {
        Self {
            cache,
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            offline: false,
            proxy: None,
            retries: 5,
            backoff: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
        }
    }

    /// As Hugging Face's own tools have it: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `XDG_CACHE_HOME/huggingface`, else in
    /// `.cache/huggingface` of the home folder; `HF_ENDPOINT`; `HF_TOKEN`, else the file that `HF_TOKEN_PATH` names, else `token`
    /// in `HF_HOME`; `HF_HUB_OFFLINE`; `HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY` unless `NO_PROXY` names the endpoint's host. None
    /// without any place for a cache.
    ///
    /// `variable` gives the value of an environment variable. An empty value counts as none.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>, home: Option<&Path>) -> Option<Self> {
        let set = |name: &str| {
            variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let folder = |name: &str| {
            set(name).map(|value| match (value.strip_prefix("~/"), home) {
                (Some(rest), Some(home)) => home.join(rest),
                _ => PathBuf::from(value),
            })
        };
        let hugging_face = folder("HF_HOME").or_else(|| {
            let caches = folder("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")))?;
            Some(caches.join("huggingface"))
        });
        let cache = folder("HF_HUB_CACHE").or_else(|| Some(hugging_face.as_ref()?.join("hub")))?;
        let token_file = folder("HF_TOKEN_PATH").or_else(|| Some(hugging_face?.join("token")));
        let stored = || fs::read_to_string(token_file?).ok().map(|token| token.trim().to_owned());
        let on = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str());
        let mut config = Self::new(cache);
        config.endpoint = set("HF_ENDPOINT").unwrap_or(config.endpoint).trim_end_matches('/').to_owned();
        config.token = set("HF_TOKEN").or_else(stored).filter(|token| !token.is_empty());
        config.offline = set("HF_HUB_OFFLINE").is_some_and(on);
        let schemed = if config.endpoint.starts_with("https") {
            ["HTTPS_PROXY", "https_proxy"]
        } else {
            ["HTTP_PROXY", "http_proxy"]
        };
        let direct = ["NO_PROXY", "no_proxy"]
            .into_iter()
            .find_map(set)
            .is_some_and(|list| exempts(&list, &config.endpoint));
        let proxies = schemed.into_iter().chain(["ALL_PROXY", "all_proxy"]);
        config.proxy = proxies.filter(|_| !direct).find_map(set);
        Some(config)
    }
}

impl fmt::Debug for HubConfig {
    /// Without the token, and without a proxy's password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HubConfig")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .field("proxy", &self.proxy.as_ref().map(|_| "set"))
            .finish_non_exhaustive()
    }
}

/// How far a file is on its way from the hub, or to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubProgress<'a> {
    /// The file, as the model calls it.
    pub file: &'a str,
    /// Bytes that are there, or were sent.
    pub done: u64,
    /// Bytes that it has.
    pub total: u64,
}

/// The cache, and with the `hub` feature the hub behind it.
#[derive(Debug, Clone)]
pub struct Hub {
    config: HubConfig,
}

impl Hub {
    /// Does nothing yet.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        Self { config }
    }

    /// Where the cache keeps a model.
    #[must_use]
    pub fn folder(&self, id: &ModelId) -> PathBuf {
        self.config.cache.join(format!("models--{}", id.name().replace('/', "--")))
    }

    /// The folder with a model's files, from the cache alone.
    ///
    /// # Errors
    /// [`EncoderError::NotCached`] where the cache does not have it, or not all of it: the error names the folder to fill and the
    /// files that are missing.
    pub fn cached(&self, id: &ModelId) -> Result<PathBuf> {
        let snapshot = self.snapshot(id);
        let missing = missing_files(&snapshot);
        if missing.is_empty() {
            return Ok(snapshot);
        }
        Err(EncoderError::NotCached { id: id.to_string(), folder: snapshot, missing })
    }

    /// The folder of a revision; it need not be there.
    fn snapshot(&self, id: &ModelId) -> PathBuf {
        let folder = self.folder(id);
        // A file that is no reference, or a reference that leads elsewhere, counts as none.
        let reference = fs::read_to_string(folder.join("refs").join(id.revision())).ok();
        let commit = reference.as_deref().map(str::trim).filter(|commit| is_commit(commit));
        folder.join("snapshots").join(commit.unwrap_or(id.revision()))
    }

    /// The folder with a model's files: from the cache if it has all of them, else they are fetched.
    ///
    /// Only what a backbone needs is fetched: configuration, safetensors weights, tokenizer, preprocessing and the modules of
    /// sentence-transformers. Each file is checked against the hash that the hub gives (SHA-256, for small files git's SHA-1).
    /// A download that was cut off goes on where it stopped, also in another process; of several processes that want the same file
    /// one fetches it.
    ///
    /// # Errors
    /// [`EncoderError::NotCached`] when offline; [`EncoderError::HubStatus`], [`EncoderError::HubTransport`],
    /// [`EncoderError::HubReply`] and [`EncoderError::HubHash`] from the hub; [`EncoderError::Write`] for the cache.
    #[cfg(feature = "hub")]
    pub fn fetch(&self, id: &ModelId, progress: &mut dyn FnMut(HubProgress<'_>)) -> Result<PathBuf> {
        match self.cached(id) {
            Err(EncoderError::NotCached { .. }) if !self.config.offline => {
                download::Download::new(&self.config, self.folder(id))?.model(id, progress)
            }
            found => found,
        }
    }

    /// Puts files onto the hub as one commit, making the model and the branch where they are missing.
    ///
    /// Files that are there already are not sent again: after an interruption the same push goes on. A large file goes to the
    /// hub's object storage, in parts where the hub asks for them; a part that fails is repeated alone. A commit whose answer was
    /// lost is not made twice. Files on the hub that `push` does not name stay.
    ///
    /// # Errors
    /// [`EncoderError::HubToken`] without a token, [`EncoderError::HubOffline`] when offline; [`EncoderError::HubPush`] around what
    /// the hub said; [`EncoderError::Read`] for a file.
    #[cfg(feature = "hub")]
    pub fn push(&self, push: &Push, progress: &mut dyn FnMut(HubProgress<'_>)) -> Result<Pushed> {
        if self.config.offline {
            return Err(EncoderError::HubOffline { id: push.id.to_string() });
        }
        if self.config.token.is_none() {
            return Err(EncoderError::HubToken { id: push.id.to_string() });
        }
        upload::Upload::new(&self.config, push)?.run(progress)
    }
}

/// Whether a list of hosts, as `NO_PROXY` has it, names that of a URL, or a domain that it is in.
fn exempts(list: &str, url: &str) -> bool {
    let authority = url.split("://").nth(1).unwrap_or(url).split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    list.split(',').map(|entry| entry.trim().trim_start_matches('.')).any(|entry| {
        let within = || host.strip_suffix(entry).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        entry == "*" || (!entry.is_empty() && within())
    })
}

/// Whether a text is a commit's hash: anything else from a file or a server must not become a path.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for (text, name, revision) in [
            ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32", "main"),
            ("a/b@refs/pr/3", "a/b", "refs/pr/3"),
            (
                "a/b_c.d@0123456789012345678901234567890123456789",
                "a/b_c.d",
                "0123456789012345678901234567890123456789",
            ),
        ] {
            let id: ModelId = text.parse().unwrap();
            assert_eq!((id.name(), id.revision()), (name, revision));
            assert_eq!(id.to_string(), text);
        }
        let long = format!("a/{}", "b".repeat(97));
        for wrong in [
            "", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/b@", "a/b@../c", "a/b@/c", "a/b c", "a\\b/c",
            "a--b/c", &long,
        ] {
            assert!(matches!(wrong.parse::<ModelId>(), Err(EncoderError::ModelId { .. })), "{wrong}");
        }
    }

    #[test]
    fn variables_of_the_hub() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "stored\n").unwrap();
        let config = |variables: &[(&str, &str)]| {
            let variables: Vec<_> =
                variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let value = move |name: &str| {
                variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            };
            HubConfig::from_variables(value, Some(Path::new("home"))).unwrap()
        };
        let plain = config(&[("HF_HOME", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(plain.cache, Path::new("home/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), (DEFAULT_ENDPOINT, None, false));
        assert_eq!(config(&[("XDG_CACHE_HOME", "x")]).cache, Path::new("x/huggingface/hub"));
        assert_eq!(config(&[("HF_HOME", "~/h")]).cache, Path::new("home/h/hub"));
        assert_eq!(config(&[("HF_HOME", "h"), ("HF_HUB_CACHE", "c")]).cache, Path::new("c"));
        let home = folder.path().to_str().unwrap();
        let full =
            config(&[("HF_HOME", home), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "true")]);
        assert_eq!(
            (full.endpoint.as_str(), full.token.as_deref(), full.offline),
            ("http://mirror", Some("stored"), true)
        );
        let told = config(&[("HF_HOME", home), ("HF_TOKEN", "secret")]);
        assert_eq!(told.token.as_deref(), Some("secret"));
        assert!(!format!("{told:?}").contains("secret"));
        assert!(HubConfig::from_variables(|_| None, None).is_none());

        let proxied = |variables: &[(&str, &str)]| config(variables).proxy;
        let both = [("HTTPS_PROXY", "http://s:1"), ("http_proxy", "http://p:1")];
        assert_eq!(proxied(&both).as_deref(), Some("http://s:1"));
        assert_eq!(
            proxied(&[both[0], both[1], ("HF_ENDPOINT", "http://mirror:80/x")]).as_deref(),
            Some("http://p:1")
        );
        for (list, direct) in
            [("*", true), ("other,.huggingface.co", true), ("ingface.co", false), ("", false)]
        {
            assert_eq!(proxied(&[both[0], ("NO_PROXY", list)]).is_none(), direct, "{list}");
        }
    }
}
