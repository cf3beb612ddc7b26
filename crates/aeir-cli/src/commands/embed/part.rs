//! Rows and their names as they are appended, and how far they are known to be whole.

use std::fs::{File, OpenOptions};
#[cfg(feature = "parquet")]
use std::io::{BufRead, BufReader, Read};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[cfg(feature = "parquet")]
use aeir_data::EmbeddingName;
use aeir_data::Skipped;
use aeir_encoders::write_atomically;
use anyhow::Context;
use half::f16;
use serde::{Deserialize, Serialize};

use super::arrays::NPY_HEADER;
use crate::failure::CliError;
use crate::flags::PrecisionFlag;

/// Images or sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Images,
    Sentences,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Sentences => "sentences",
        }
    }
}

/// How far a part is: everything before is whole, everything behind is cut off.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Mark {
    /// Items tried.
    done: usize,
    /// Of them embedded.
    rows: usize,
    /// Values a row; 0 while there is none.
    dimension: usize,
    names_bytes: u64,
    skipped_bytes: u64,
}

/// The rows of one kind, their names, and what was left out; written batch by batch.
pub(super) struct Part {
    kind: Kind,
    precision: PrecisionFlag,
    folder: PathBuf,
    rows: BufWriter<File>,
    names: BufWriter<File>,
    skipped: BufWriter<File>,
    mark: Mark,
    saved: Instant,
}

impl Part {
    /// A killed run does at most this much of its work again, and the last batch.
    const SAVE_EVERY: Duration = Duration::from_millis(500);

    /// Opens what a run left in `folder`, cut back to its last mark, or begins anew.
    pub(super) fn open(folder: &Path, kind: Kind, precision: PrecisionFlag) -> anyhow::Result<Self> {
        let name = kind.name();
        let mark_file = folder.join(format!("{name}.mark.json"));
        let mark: Mark = match std::fs::read(&mark_file) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("`{}`", mark_file.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Mark::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("could not read `{}`", mark_file.display()));
            }
        };
        let row_bytes = (mark.rows * mark.dimension * precision.bytes() + NPY_HEADER) as u64;
        Ok(Self {
            kind,
            precision,
            rows: open_at(&rows_file(folder, kind), row_bytes)?,
            names: open_at(&names_file(folder, kind), mark.names_bytes)?,
            skipped: open_at(&skipped_file(folder, kind), mark.skipped_bytes)?,
            folder: folder.to_owned(),
            mark,
            saved: Instant::now(),
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Items tried so far.
    pub(super) fn done(&self) -> usize {
        self.mark.done
    }

    /// Rows so far and values a row.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.mark.rows, self.mark.dimension)
    }

    /// Leaves an item out.
    pub(super) fn skip(&mut self, skipped: &Skipped) -> anyhow::Result<()> {
        let line = json_line(skipped)?;
        self.mark.skipped_bytes += line.len() as u64;
        self.skipped.write_all(&line).context(failed(&skipped_file(&self.folder, self.kind)))
    }

    /// Adds rows with their names. A row with a value that the precision can't hold is left out.
    pub(super) fn add<T: Serialize>(
        &mut self,
        names: &[T],
        shown: impl Fn(&T) -> &str,
        rows: Vec<Vec<f32>>,
    ) -> anyhow::Result<()> {
        for (name, row) in names.iter().zip(rows) {
            let rounded = |value: f32| match self.precision {
                PrecisionFlag::F32 => value,
                PrecisionFlag::F16 => f16::from_f32(value).to_f32(),
            };
            if let Some(value) = row.iter().find(|value| !rounded(**value).is_finite()) {
                let reason = format!(
                    "its embedding has the value {value}, which is not finite in {}",
                    self.precision.name()
                );
                let item = shown(name).to_owned();
                self.skip(&Skipped { item, line: None, file: None, reason })?;
                continue;
            }
            if self.mark.rows > 0 && row.len() != self.mark.dimension {
                return Err(CliError::Data {
                    message: format!("expected {} values a row, got {}", self.mark.dimension, row.len()),
                    hint: String::new(),
                }
                .into());
            }
            let bytes: Vec<u8> = match self.precision {
                PrecisionFlag::F32 => row.iter().flat_map(|value| value.to_le_bytes()).collect(),
                PrecisionFlag::F16 => {
                    row.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
                }
            };
            self.rows.write_all(&bytes).context(failed(&rows_file(&self.folder, self.kind)))?;
            let line = json_line(name)?;
            self.names.write_all(&line).context(failed(&names_file(&self.folder, self.kind)))?;
            self.mark.names_bytes += line.len() as u64;
            self.mark.rows += 1;
            self.mark.dimension = row.len();
        }
        Ok(())
    }

    /// Every row with its name, in order, as they were made safe.
    #[cfg(feature = "parquet")]
    pub(super) fn each_row(
        &self,
        mut visit: impl FnMut(&EmbeddingName, &[f32]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (rows, names) = (rows_file(&self.folder, self.kind), names_file(&self.folder, self.kind));
        let opened =
            |path: &Path| File::open(path).with_context(|| format!("could not read `{}`", path.display()));
        let mut values = BufReader::with_capacity(1 << 20, opened(&rows)?);
        values.seek(SeekFrom::Start(NPY_HEADER as u64)).context(failed(&rows))?;
        let mut bytes = vec![0; self.mark.dimension * self.precision.bytes()];
        let mut row = vec![0.0; self.mark.dimension];
        for line in BufReader::new(opened(&names)?).lines() {
            let line = line.with_context(|| format!("could not read `{}`", names.display()))?;
            let name: EmbeddingName =
                serde_json::from_str(&line).with_context(|| format!("`{}`", names.display()))?;
            values.read_exact(&mut bytes).with_context(|| format!("could not read `{}`", rows.display()))?;
            match self.precision {
                PrecisionFlag::F32 => {
                    row.iter_mut()
                        .zip(bytes.as_chunks().0)
                        .for_each(|(to, from)| *to = f32::from_le_bytes(*from));
                }
                PrecisionFlag::F16 => {
                    let values = bytes.as_chunks().0.iter().map(|from| f16::from_le_bytes(*from).to_f32());
                    row.iter_mut().zip(values).for_each(|(to, from)| *to = from);
                }
            }
            visit(&name, &row)?;
        }
        Ok(())
    }

    /// Ends a batch: from time to time all so far is made safe.
    pub(super) fn batch_done(&mut self, count: usize) -> anyhow::Result<()> {
        self.mark.done += count;
        if self.saved.elapsed() < Self::SAVE_EVERY { Ok(()) } else { self.save() }
    }

    /// Makes all so far safe. To be called between batches.
    pub(super) fn save(&mut self) -> anyhow::Result<()> {
        for (file, path) in [
            (&mut self.rows, rows_file(&self.folder, self.kind)),
            (&mut self.names, names_file(&self.folder, self.kind)),
            (&mut self.skipped, skipped_file(&self.folder, self.kind)),
        ] {
            file.flush().and_then(|()| file.get_ref().sync_data()).context(failed(&path))?;
        }
        let path = self.folder.join(format!("{}.mark.json", self.kind.name()));
        write_atomically(&path, &serde_json::to_vec(&self.mark)?).context(failed(&path))?;
        self.saved = Instant::now();
        Ok(())
    }
}

/// The values, with room for a header.
pub(super) fn rows_file(folder: &Path, kind: Kind) -> PathBuf {
    folder.join(format!("{}.rows", kind.name()))
}

pub(super) fn names_file(folder: &Path, kind: Kind) -> PathBuf {
    folder.join(format!("{}.jsonl", kind.name()))
}

pub(super) fn skipped_file(folder: &Path, kind: Kind) -> PathBuf {
    folder.join(format!("{}.skipped.jsonl", kind.name()))
}

/// A file cut (or, for the room of the header, stretched) to `length`, to be appended to.
fn open_at(path: &Path, length: u64) -> anyhow::Result<BufWriter<File>> {
    let open = || {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(length)?;
        file.seek(SeekFrom::End(0))?;
        Ok::<_, std::io::Error>(BufWriter::with_capacity(1 << 20, file))
    };
    open().with_context(|| failed(path))
}

fn json_line(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

fn failed(path: &Path) -> String {
    format!("could not write `{}`", path.display())
}
