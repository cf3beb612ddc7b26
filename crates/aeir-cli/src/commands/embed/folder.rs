//! What the embeddings are made of, what is left of an interrupted run, when they count as finished.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use aeir_data::Skipped;
use aeir_encoders::write_atomically;
use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Kinds;
use super::arrays::{NPY_HEADER, Named, npy_header, safetensors_header};
use super::encoders::{Encoders, Fingerprints};
use super::output::Output;
use super::part::{Kind, Part, names_file, rows_file, skipped_file};
use crate::failure::CliError;
use crate::flags::{ArrayFormat, EmbedFlags, PrecisionFlag};

const IDENTITY: &str = "identity.json";
const LOCK: &str = "lock";
const FORMAT: &str = "aeir embeddings";
const VERSION: u32 = 1;

/// All that the bytes of the embeddings depend on, apart from the content of the image files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    format: String,
    version: u32,
    /// What made them. Embeddings can be compared only where this is the same.
    encoders: Fingerprints,
    normalised: bool,
    precision: String,
    arrays: String,
    shard: String,
    /// Position of the first item of this part in the data set.
    first_item: usize,
    items: usize,
    /// SHA-256 over the names and sentences of the items.
    data: String,
    images: bool,
    sentences: bool,
    batch_size: Option<usize>,
    max_pixels: u64,
    max_side: u32,
    max_image_bytes: u64,
}

impl Identity {
    pub(super) fn new(
        flags: &EmbedFlags,
        format: ArrayFormat,
        encoders: &Encoders,
        kinds: Kinds,
        data: &str,
        first_item: usize,
        items: usize,
    ) -> Self {
        let limits = flags.loading.limits();
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            encoders: encoders.fingerprints(),
            normalised: flags.normalise || flags.model.is_some(),
            precision: flags.precision.name().to_owned(),
            arrays: format.name().to_owned(),
            shard: flags.shard.to_string(),
            first_item,
            items,
            data: data.to_owned(),
            images: kinds.images,
            sentences: kinds.sentences,
            batch_size: flags.batch_size,
            max_pixels: limits.max_pixels,
            max_side: limits.max_side,
            max_image_bytes: limits.max_bytes,
        }
    }

    /// What a file says about itself that holds more than values.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        let Fingerprints { model, image_encoder, text_encoder } = self.encoders.clone();
        let known = [
            ("format", Some(FORMAT.to_owned())),
            ("model", model),
            ("image_encoder", image_encoder),
            ("text_encoder", text_encoder),
        ];
        known.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// The first setting in which two runs differ, in words.
    fn difference(&self, other: &Self) -> &'static str {
        [
            (self.format != other.format || self.version != other.version, "another version of aeir"),
            (self.encoders != other.encoders, "another encoder"),
            (self.data != other.data || self.items != other.items, "other data"),
            (self.shard != other.shard, "another --shard"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
        .unwrap_or("other settings")
    }
}

impl ArrayFormat {
    pub(super) const ALL: [Self; 3] = [Self::Npy, Self::Safetensors, Self::Parquet];

    /// As the suffix of a file has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Npy => "npy",
            Self::Safetensors => "safetensors",
            Self::Parquet => "parquet",
        }
    }
}

/// An array of a finished folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Rows {
    /// The array.
    pub(super) file: String,
    /// Its tensor, in a file of several.
    tensor: Option<String>,
    /// One JSON object a row, in the order of the rows; none where the array has the names in it.
    names: Option<String>,
    pub(super) rows: usize,
    pub(super) dimension: usize,
}

/// What a finished folder holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) images: Option<Rows>,
    pub(super) sentences: Option<Rows>,
    /// Items listed in `skipped.jsonl`.
    skipped: usize,
    /// How long each file is; empty in the manifests of earlier versions.
    #[serde(default)]
    bytes: BTreeMap<String, u64>,
}

impl Finished {
    /// The files of an output and how long they are.
    fn measured(mut self, folder: &Path) -> anyhow::Result<Self> {
        for rows in [&self.images, &self.sentences].into_iter().flatten() {
            for file in [Some(&rows.file), rows.names.as_ref()].into_iter().flatten() {
                let path = folder.join(file);
                let length = fs::metadata(&path).with_context(|| failed(&path))?.len();
                self.bytes.insert(file.clone(), length);
            }
        }
        Ok(self)
    }

    /// Refuses an output of which a file is gone or has another length than when it was written.
    fn check(&self, folder: &Path) -> anyhow::Result<()> {
        for (file, expected) in &self.bytes {
            let path = folder.join(file);
            let got = fs::metadata(&path).ok().map(|metadata| metadata.len());
            if got != Some(*expected) {
                let got = got.map_or_else(|| "it is gone".to_owned(), |got| format!("got {got}"));
                return Err(CliError::Data {
                    message: format!(
                        "`{}`: expected {expected} bytes, as its manifest says, {got}",
                        path.display()
                    ),
                    hint: "copy it again from where it was made, or remove the output and embed again".into(),
                }
                .into());
            }
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    #[serde(flatten)]
    identity: Identity,
    #[serde(rename = "files")]
    finished: Finished,
}

/// An output that is being filled, by this process alone.
pub(super) struct EmbeddingFolder {
    output: Output,
    parts: Vec<Part>,
    precision: PrecisionFlag,
    _lock: File,
}

/// What [`EmbeddingFolder::open`] found.
pub(super) enum Opened {
    Ready(EmbeddingFolder),
    Finished(Finished),
}

impl EmbeddingFolder {
    /// Opens the output, creating it where needed, and goes on with what the same command left. Where anything else is, nothing is
    /// touched.
    pub(super) fn open(output: Output, identity: &Identity, flags: &EmbedFlags) -> anyhow::Result<Opened> {
        let path = output.path();
        if let Some(bytes) = read_if_there(&output.manifest())? {
            let manifest: Option<Manifest> = serde_json::from_slice(&bytes).ok();
            return match manifest {
                Some(manifest) if manifest.identity == *identity => {
                    manifest.finished.check(output.folder())?;
                    Ok(Opened::Finished(manifest.finished))
                }
                Some(manifest) => Err(refuse(
                    path,
                    &format!("holds the embeddings of {}", manifest.identity.difference(identity)),
                )),
                None => Err(refuse(path, "holds other things")),
            };
        }
        let work = output.work();
        if !work.is_dir() {
            match output.occupied() {
                Ok(false) => {}
                Ok(true) => return Err(refuse(path, "holds other things")),
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    return Err(refuse(path, "is a file, not a folder"));
                }
                Err(error) => return Err(error).with_context(|| failed(path)),
            }
        }
        fs::create_dir_all(&work).with_context(|| failed(&work))?;
        let lock = lock(path, &work)?;
        let identity_file = work.join(IDENTITY);
        match read_if_there(&identity_file)? {
            Some(bytes) => {
                let begun: Identity = serde_json::from_slice(&bytes)
                    .with_context(|| format!("`{}`", identity_file.display()))?;
                if begun != *identity {
                    let what = begun.difference(identity);
                    return Err(refuse(path, &format!("holds the unfinished embeddings of {what}")));
                }
            }
            None => write_atomically(&identity_file, &serde_json::to_vec_pretty(identity)?)
                .with_context(|| failed(&identity_file))?,
        }
        let kinds = [(identity.images, Kind::Images), (identity.sentences, Kind::Sentences)];
        let mut parts = Vec::new();
        for kind in kinds.into_iter().filter_map(|(wanted, kind)| wanted.then_some(kind)) {
            let (array, rows) = (output.folder().join(output.array(kind)), rows_file(&work, kind));
            if output.format == ArrayFormat::Npy && array.exists() && !rows.exists() {
                // Killed between the arrays and the manifest.
                fs::rename(&array, &rows).with_context(|| failed(&rows))?;
            }
            parts.push(Part::open(&work, kind, flags.precision)?);
        }
        Ok(Opened::Ready(Self { output, parts, precision: flags.precision, _lock: lock }))
    }

    /// The part of a kind that is embedded.
    pub(super) fn part(&mut self, kind: Kind) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.kind() == kind)
    }

    /// All rows.
    pub(super) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.shape().0).sum()
    }

    /// What was left out, of all kinds.
    pub(super) fn skipped(&self) -> anyhow::Result<Vec<Skipped>> {
        let mut skipped = Vec::new();
        for part in &self.parts {
            let path = skipped_file(&self.output.work(), part.kind());
            let text =
                fs::read_to_string(&path).with_context(|| format!("could not read `{}`", path.display()))?;
            for line in text.lines() {
                skipped.push(serde_json::from_str(line).with_context(|| format!("`{}`", path.display()))?);
            }
        }
        Ok(skipped)
    }

    /// Leaves nothing but the list of skipped items: the next run starts afresh.
    pub(super) fn give_up(self) {
        // What can't be removed is found by the next run, which then has nothing to do.
        let _ = fs::remove_dir_all(self.output.work());
    }

    /// Puts everything in its place. The manifest comes last: without it the output is unfinished, and this is done again.
    pub(super) fn finish(self, identity: &Identity, skipped: usize) -> anyhow::Result<Finished> {
        let (work, format) = (self.output.work(), self.output.format);
        let mut finished = Finished { images: None, sentences: None, skipped, bytes: BTreeMap::new() };
        for part in &self.parts {
            let (kind, (rows, dimension)) = (part.kind(), part.shape());
            let file = self.output.array(kind);
            let to = self.output.folder().join(&file);
            let names = self.output.names(kind);
            if let Some(names) = &names {
                copy(&[(names_file(&work, kind), 0)], &[], &self.output.folder().join(names))?;
            }
            match format {
                ArrayFormat::Npy => {
                    let header = npy_header(rows, dimension, self.precision);
                    put_in_place(&rows_file(&work, kind), &header, &to)?;
                }
                ArrayFormat::Safetensors => {}
                ArrayFormat::Parquet => self.write_parquet(part, identity, &to)?,
            }
            let tensor = (format == ArrayFormat::Safetensors).then(|| kind.name().to_owned());
            let rows = Some(Rows { file, tensor, names, rows, dimension });
            match kind {
                Kind::Images => finished.images = rows,
                Kind::Sentences => finished.sentences = rows,
            }
        }
        if format == ArrayFormat::Safetensors {
            self.write_safetensors(identity)?;
        }
        let finished = finished.measured(self.output.folder())?;
        let manifest = Manifest { identity: identity.clone(), finished };
        let path = self.output.manifest();
        write_atomically(&path, &[serde_json::to_vec_pretty(&manifest)?, b"\n".to_vec()].concat())
            .with_context(|| failed(&path))?;
        // The embeddings are whole: what can't be removed is in nobody's way.
        let _ = fs::remove_dir_all(&work);
        Ok(manifest.finished)
    }

    fn write_safetensors(&self, identity: &Identity) -> anyhow::Result<()> {
        let work = self.output.work();
        let tensors: Vec<Named<'_>> = self
            .parts
            .iter()
            .map(|part| Named { name: part.kind().name(), rows: part.shape().0, dimension: part.shape().1 })
            .collect();
        let metadata = identity.metadata().into_iter().map(|(key, value)| (key.to_owned(), value.into()));
        let header = safetensors_header(&tensors, self.precision, &metadata.collect());
        let values: Vec<(PathBuf, u64)> =
            self.parts.iter().map(|part| (rows_file(&work, part.kind()), NPY_HEADER as u64)).collect();
        copy(&values, &header, &self.output.folder().join(self.output.array(Kind::Images)))
    }

    /// Rows and names into one file.
    #[cfg(feature = "parquet")]
    fn write_parquet(&self, part: &Part, identity: &Identity, to: &Path) -> anyhow::Result<()> {
        let columns = aeir_data::EmbeddingColumns {
            sentences: part.kind() == Kind::Sentences,
            item_metadata: false,
            half_precision: self.precision == PrecisionFlag::F16,
            metadata: identity.metadata(),
        };
        let mut writer = aeir_data::EmbeddingWriter::create(to, &columns)?;
        part.each_row(|name, values| Ok(writer.add(name, values)?))?;
        Ok(writer.finish()?)
    }

    #[cfg(not(feature = "parquet"))]
    fn write_parquet(&self, _: &Part, _: &Identity, _: &Path) -> anyhow::Result<()> {
        anyhow::bail!("this build writes no Parquet")
    }
}

/// Writes the header into the room that was left for it, and renames: the values may be many, and are not copied.
fn put_in_place(rows: &Path, header: &[u8], to: &Path) -> anyhow::Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).open(rows)?;
        file.write_all(header)?;
        file.sync_all()?;
        fs::rename(rows, to)
    };
    write().with_context(|| failed(to))
}

/// Writes a header and what lies behind an offset in some files into a new file.
fn copy(from: &[(PathBuf, u64)], header: &[u8], to: &Path) -> anyhow::Result<()> {
    let temporary = to.with_extension("tmp");
    let write = || {
        let mut output = File::create(&temporary)?;
        output.write_all(header)?;
        for (path, offset) in from {
            let mut input = File::open(path)?;
            input.seek(SeekFrom::Start(*offset))?;
            io::copy(&mut input, &mut output)?;
        }
        output.sync_all()?;
        fs::rename(&temporary, to)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary))).with_context(|| failed(to))
}

fn lock(path: &Path, work: &Path) -> anyhow::Result<File> {
    let file = work.join(LOCK);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file)
        .with_context(|| failed(&file))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(refuse(path, "is being written by another process")),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| failed(&file)),
    }
}

fn read_if_there(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("could not read `{}`", path.display())),
    }
}

fn refuse(path: &Path, what: &str) -> anyhow::Error {
    CliError::Usage {
        message: format!("`{}` {what}", path.display()),
        hint: "name another --output: embeddings of different encoders or data are never mixed".into(),
    }
    .into()
}

fn failed(path: &Path) -> String {
    format!("could not write `{}`", path.display())
}
