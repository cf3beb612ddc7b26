//! `aeir push`.

use std::fs;
use std::path::{Path, PathBuf};

use aeir_encoders::Bundle;
use aeir_encoders::VOCABULARY_FILE;
use aeir_encoders::bundle::{MANIFEST_FILE, WEIGHTS_FILE};
use aeir_encoders::hub::ModelId;
use aeir_train::run::{CONFIG_FILE, EVENT_FOLDER, METRICS_FILE, SELECTION_FILE};
use anyhow::Context;
use candle_core::Device;
use serde::Serialize;

use super::{print, print_json};
use crate::failure::CliError;
use crate::flags::runs::PushFlags;
use crate::place::hub_config;
use crate::terminal::Terminal;

const CARD_FILE: &str = "README.md";
const ENCODER_FOLDER: &str = "encoders";
/// What of a run belongs to the model. Lists of skipped items and results of scoring name paths of this machine.
const NAMES: [&str; 9] = [
    MANIFEST_FILE,
    WEIGHTS_FILE,
    VOCABULARY_FILE,
    ENCODER_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    SELECTION_FILE,
    EVENT_FOLDER,
];

/// A file to be pushed.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only read where it is sent"))]
    #[serde(skip)]
    path: PathBuf,
    bytes: u64,
}

/// Puts a model onto the hub, whole and checked.
pub(crate) fn run(flags: &PushFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let id = model_id(flags)?;
    // Checks every file against the manifest: a damaged model is not spread.
    let bundle = Bundle::load(&flags.run, &Device::Cpu)?;
    if bundle.is_zero_shot() {
        return Err(CliError::Usage {
            message: format!("`{}` is a pre-trained model as it was published", flags.run.display()),
            hint: "name the folder of a run: what `aeir train` wrote".into(),
        }
        .into());
    }
    let staging = Staging::of(&bundle, &flags.run)?;
    let files = staging.files()?;
    if !files.iter().any(|file| file.name == CARD_FILE) {
        terminal.warn(&format!("`{}` has no model card: no `{CARD_FILE}` in it", flags.run.display()));
    }
    if flags.dry_run {
        return list(&id, &files, flags.json);
    }
    send(flags, &id, &files, terminal)
}

/// The model and its branch: in one with `@`, or apart.
fn model_id(flags: &PushFlags) -> anyhow::Result<ModelId> {
    let text = match &flags.revision {
        Some(revision) if flags.repository.contains('@') => {
            return Err(CliError::Usage {
                message: format!(
                    "`{}` names a revision, and --revision {revision} another",
                    flags.repository
                ),
                hint: "leave one of them out".into(),
            }
            .into());
        }
        Some(revision) => format!("{}@{revision}", flags.repository),
        None => flags.repository.clone(),
    };
    text.parse().map_err(|error| {
        CliError::Usage {
            message: format!("{error}"),
            hint: "owner and name are letters, digits, `-`, `_` and `.`, as in `my-name/my-model`".into(),
        }
        .into()
    })
}

/// The files of the model in the hub's layout.
struct Staging {
    folders: Vec<PathBuf>,
    temporary: Option<PathBuf>,
}

impl Staging {
    /// The run's own folder; where its encoders are shared with other runs, a whole copy beside it.
    fn of(bundle: &Bundle, run: &Path) -> anyhow::Result<Self> {
        let manifest = bundle.manifest();
        let elsewhere = [&manifest.image_backbone, &manifest.sentence_backbone]
            .into_iter()
            .flatten()
            .any(|reference| !reference.folder.starts_with(ENCODER_FOLDER));
        if !elsewhere {
            return Ok(Self { folders: vec![run.to_owned()], temporary: None });
        }
        let folder = private_folder()?;
        let staging = Self { folders: vec![folder.clone(), run.to_owned()], temporary: Some(folder.clone()) };
        bundle.copy_to(&folder)?;
        Ok(staging)
    }

    /// All files by name; of two with the same name the first folder's.
    fn files(&self) -> anyhow::Result<Vec<Listed>> {
        let mut files: Vec<Listed> = Vec::new();
        for folder in &self.folders {
            let mut found = Vec::new();
            for name in NAMES {
                collect(&folder.join(name), name, &mut found)
                    .with_context(|| format!("could not read `{}`", folder.display()))?;
            }
            found.retain(|file| files.iter().all(|earlier| earlier.name != file.name));
            files.extend(found);
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }
}

/// A new folder that only this user can look into. One that is there already, perhaps another user's, is not taken.
fn private_folder() -> anyhow::Result<PathBuf> {
    const TRIES: usize = 1_000;
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    for number in 0..TRIES {
        let folder = std::env::temp_dir().join(format!("aeir-push-{}-{number}", std::process::id()));
        match builder.create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("could not make `{}`", folder.display()));
            }
        }
    }
    anyhow::bail!("could not make a new folder in `{}`", std::env::temp_dir().display())
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(folder) = &self.temporary {
            // In the system's own folder for such things: what stays there is cleared in time.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// A file, or all files below a folder; nothing where there is none. Hidden ones and leftovers of a killed write are no part of
/// a model.
fn collect(path: &Path, name: &str, files: &mut Vec<Listed>) -> std::io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let inner = entry.file_name().to_string_lossy().into_owned();
            if !inner.starts_with('.') && !inner.ends_with(".tmp") {
                collect(&entry.path(), &format!("{name}/{inner}"), files)?;
            }
        }
    } else if path.is_file() {
        files.push(Listed { name: name.to_owned(), path: path.to_owned(), bytes: fs::metadata(path)?.len() });
    }
    Ok(())
}

fn list(id: &ModelId, files: &[Listed], json: bool) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Planned<'a> {
        repository: &'a str,
        revision: &'a str,
        files: &'a [Listed],
    }
    if json {
        return print_json(&Planned { repository: id.name(), revision: id.revision(), files });
    }
    let endpoint = hub_config()?.endpoint;
    let mut text = format!("to {endpoint}/{}, branch {}; nothing was sent\n", id.name(), id.revision());
    for Listed { name, bytes, .. } in files {
        text.push_str(&format!("{bytes:>12}  {name}\n"));
    }
    let sum: u64 = files.iter().map(|file| file.bytes).sum();
    print(&format!("{text}{sum:>12}  bytes in {} files\n", files.len()))
}

#[cfg(feature = "hub")]
fn send(flags: &PushFlags, id: &ModelId, files: &[Listed], terminal: &Terminal) -> anyhow::Result<()> {
    use aeir_encoders::hub::{Hub, Push, PushFile};

    let message =
        flags.message.clone().unwrap_or_else(|| format!("A model of aeir {}", env!("CARGO_PKG_VERSION")));
    let files =
        files.iter().map(|file| PushFile { name: file.name.clone(), path: file.path.clone() }).collect();
    let push = Push { id: id.clone(), private: flags.private, message, files };
    let pushed = Hub::new(hub_config()?).push(&push, &mut crate::progress::transfer(terminal, "sending"))?;
    for name in &pushed.ignored {
        terminal.warn(&format!("`{name}` was left out: the repository's .gitignore names it"));
    }
    if flags.json {
        return print_json(&pushed);
    }
    let what = match &pushed.commit {
        Some(commit) => {
            format!("commit  {commit}, {} files, {} unchanged\n", pushed.sent.len(), pushed.unchanged.len())
        }
        None if !pushed.sent.is_empty() => {
            format!(
                "commit  made, {} files, {} unchanged; the answer that names it was lost\n",
                pushed.sent.len(),
                pushed.unchanged.len()
            )
        }
        None => format!("commit  none: all {} files are there already\n", pushed.unchanged.len()),
    };
    print(&format!("model   {}\n{what}", pushed.url))
}

#[cfg(not(feature = "hub"))]
fn send(_flags: &PushFlags, _id: &ModelId, _files: &[Listed], _terminal: &Terminal) -> anyhow::Result<()> {
    Err(CliError::Usage {
        message: "this aeir was built without the hub's network code".into(),
        hint: "build it with `cargo build --release -p aeir-cli --features hub`; --dry-run lists what would be sent".into(),
    }
    .into())
}
