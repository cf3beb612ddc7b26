//! PyTorch checkpoints, read without running what is pickled in them.
//!
//! `torch.save` writes a pickle: a program that names functions of Python to be called. Loading one with PyTorch can run
//! anything. Here nothing is called: tensors, dictionaries and lists are rebuilt from what the file says of them, and whatever
//! else it names stays a name (see [`LeftOut`]).
//!
//! Both formats are read: the zip archives since PyTorch 1.6 and the plain pickles before, which are what most published
//! `.pth` and `.pth.tar` files are.

mod container;
mod pickle;

use std::borrow::Cow;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{View, serialize_to_file};

use crate::error::{EncoderError, Result};
use crate::mapped_file::MappedFile;
use container::{Container, Damage, describe, element_bytes};
use pickle::{Id, Node, Tensor};

/// Dictionaries in dictionaries: more than any checkpoint has.
const MAX_DEPTH: usize = 32;
/// Places that are looked at. One dictionary put into another many times would otherwise be walked as often.
const MAX_PLACES: usize = 1 << 20;
/// Bytes of all names together.
const MAX_NAME_BYTES: usize = 1 << 26;
/// Tensors may share numbers, but not so often that a small file becomes a large one.
const MAX_EXPANSION: usize = 16;
/// Values that an error lists.
const MAX_GROUPS: usize = 16;

/// The tensors of a file that `torch.save` wrote, by name.
///
/// A name is the path to a tensor, with dots: `{"model": [{"fc.weight": ...}], "epoch": 3}` has the tensor `model.0.fc.weight`.
/// The file is memory-mapped; a tensor's numbers are read when they are asked for.
///
/// # Limits
/// Pickle protocols 2 to 5, little-endian, dense tensors. A tensor that repeats its numbers (stride 0) is refused: it would let a
/// small file ask for any amount of memory. Checksums of the archive are not compared, as PyTorch doesn't.
///
/// # Example
/// ```no_run
/// use aeir_encoders::TorchCheckpoint;
///
/// let checkpoint = TorchCheckpoint::open("model_best.pth.tar".as_ref())?;
/// let tensors = checkpoint.select(Some("model"))?;
/// checkpoint.save(&tensors, "model.safetensors".as_ref())?;
/// # Ok::<(), aeir_encoders::EncoderError>(())
/// ```
#[derive(Debug)]
pub struct TorchCheckpoint {
    file: PathBuf,
    bytes: MappedFile,
    tensors: Vec<TorchTensor>,
    left_out: Vec<LeftOut>,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct TorchTensor {
    path: Vec<String>,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// Where its numbers are in the file: from the first to the last that it uses.
    range: Range<usize>,
}

/// A value of a checkpoint that is no tensor: a number, a text, or an object of a class that is not known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The path to it, with dots.
    pub name: String,
    /// What it is, in words.
    pub what: String,
}

impl TorchCheckpoint {
    /// Reads what is in a file.
    ///
    /// # Errors
    /// [`EncoderError::MissingFile`] and [`EncoderError::Read`] for the file; [`EncoderError::Checkpoint`] where it is of another
    /// format, damaged, holds a kind of tensor that is not dense, or numbers of another type.
    pub fn open(file: &Path) -> Result<Self> {
        let bytes = MappedFile::open(file)?;
        let mut walk = Walk::default();
        Container::read(&bytes)
            .and_then(|container| walk.all(&container))
            .map_err(|damage| error(file, damage))?;
        Ok(Self { file: file.to_owned(), bytes, tensors: walk.tensors, left_out: walk.left_out })
    }

    /// Every tensor, in the order of the file.
    #[must_use]
    pub fn tensors(&self) -> &[TorchTensor] {
        &self.tensors
    }

    /// Every value that is no tensor.
    #[must_use]
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The tensors under `key` with their names below it; without a key all of them, below the one value that holds them
    /// all: of `{"state_dict": {...}, "epoch": 3}` those of `state_dict`.
    ///
    /// # Errors
    /// [`EncoderError::CheckpointKey`] where there is no tensor under `key`, or without a key several values hold tensors
    /// (a network and its optimiser, or several networks): the error names them. [`EncoderError::Checkpoint`] where there is no
    /// tensor at all.
    pub fn select(&self, key: Option<&str>) -> Result<Vec<(String, &TorchTensor)>> {
        if self.tensors.is_empty() {
            let got = self.left_out.first().map_or("an empty one", |other| other.what.as_str());
            return Err(error(&self.file, Damage::new("the checkpoint", "a dictionary of tensors", got)));
        }
        let depth = match key {
            Some(key) => return self.under(key),
            None => self.common_depth(),
        };
        let groups = self.groups(depth);
        if groups.len() > 1 {
            return Err(self.key_error(None, groups.join(", ")));
        }
        Ok(self.tensors.iter().map(|tensor| (tensor.name_below(depth), tensor)).collect())
    }

    fn under(&self, key: &str) -> Result<Vec<(String, &TorchTensor)>> {
        let found: Vec<_> = self
            .tensors
            .iter()
            .filter_map(|tensor| Some((tensor.name_below(tensor.depth_of(key)?), tensor)))
            .collect();
        if found.is_empty() {
            let groups = self.groups(0);
            let got = match self.left_out.iter().find(|other| other.name == key) {
                Some(other) => other.what.clone(),
                None if groups.is_empty() => format!("no tensors but {}", self.first_names()),
                None => groups.join(", "),
            };
            return Err(self.key_error(Some(key), got));
        }
        Ok(found)
    }

    fn key_error(&self, key: Option<&str>, got: String) -> EncoderError {
        EncoderError::CheckpointKey { file: self.file.clone(), key: key.map(str::to_owned), got }
    }

    fn first_names(&self) -> String {
        let names: Vec<String> =
            self.tensors.iter().take(3).map(|tensor| format!("`{}`", tensor.name())).collect();
        names.join(", ")
    }

    /// How many parts of their paths all tensors share, with at least one left for the name.
    fn common_depth(&self) -> usize {
        let Some(first) = self.tensors.first() else { return 0 };
        let shared = self.tensors.iter().map(|tensor| {
            let same = first.path.iter().zip(&tensor.path).take_while(|(a, b)| a == b).count();
            same.min(tensor.path.len().saturating_sub(1))
        });
        shared.min().unwrap_or(0)
    }

    /// The values at this depth that hold tensors, with how many; empty where tensors themselves lie at this depth.
    fn groups(&self, depth: usize) -> Vec<String> {
        let mut groups: Vec<(String, usize)> = Vec::new();
        for tensor in &self.tensors {
            if tensor.path.len() <= depth + 1 {
                return Vec::new();
            }
            let name = tensor.path.get(..=depth).unwrap_or_default().join(".");
            match groups.iter_mut().find(|(group, _)| *group == name) {
                Some((_, count)) => *count += 1,
                None => groups.push((name, 1)),
            }
            // A list of many would be no help.
            groups.truncate(MAX_GROUPS);
        }
        groups.into_iter().map(|(name, count)| format!("`{name}` ({count} tensors)")).collect()
    }

    /// The numbers of a tensor of this checkpoint, row-major and little-endian.
    #[must_use]
    pub fn data(&self, tensor: &TorchTensor) -> Cow<'_, [u8]> {
        tensor.data(&self.bytes)
    }

    /// Writes tensors into a safetensors file, which is there whole or not at all.
    ///
    /// # Errors
    /// [`EncoderError::Checkpoint`] where the tensors share numbers so often that the file would be many times as large as the
    /// checkpoint; [`EncoderError::Safetensors`] and [`EncoderError::Write`] for the file.
    pub fn save(&self, tensors: &[(String, &TorchTensor)], output: &Path) -> Result<()> {
        let total = tensors.iter().fold(0_usize, |sum, (_, tensor)| sum.saturating_add(tensor.byte_count()));
        let most = self.bytes.len().saturating_mul(MAX_EXPANSION);
        if total > most {
            let damage = Damage::new("the tensors", format!("at most {most} bytes"), total.to_string());
            return Err(error(&self.file, damage));
        }
        let views =
            tensors.iter().map(|(name, tensor)| (name.as_str(), Stored { tensor, bytes: &self.bytes }));
        let temporary = temporary_name(output);
        // safetensors makes files that their owner alone can read, but leaves the mode of one that is there.
        File::create(&temporary).map_err(EncoderError::write(output))?;
        let written = serialize_to_file(views, None, &temporary)
            .map_err(|source| match source {
                safetensors::SafeTensorError::IoError(source) => {
                    EncoderError::Write { file: output.to_owned(), source }
                }
                source => EncoderError::Safetensors { file: output.to_owned(), source },
            })
            .and_then(|()| {
                let synced = File::open(&temporary).and_then(|file| file.sync_all());
                synced.and_then(|()| fs::rename(&temporary, output)).map_err(EncoderError::write(output))
            });
        if written.is_err() {
            // The first error is the one to report; a leftover temporary file is never read.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn temporary_name(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

fn error(file: &Path, damage: Damage) -> EncoderError {
    let Damage { place, expected, got } = damage;
    EncoderError::Checkpoint { file: file.to_owned(), place, expected, got }
}

impl TorchTensor {
    /// The path to it in the checkpoint, with dots.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.join(".")
    }

    /// Type of its elements.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its sizes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn name_below(&self, depth: usize) -> String {
        self.path.get(depth..).unwrap_or_default().join(".")
    }

    /// How many parts of the path make up `key`; none where it is not under it.
    fn depth_of(&self, key: &str) -> Option<usize> {
        let mut rest = key;
        for (index, part) in self.path.iter().enumerate() {
            rest = rest.strip_prefix(part.as_str())?;
            if rest.is_empty() {
                return (index + 1 < self.path.len()).then_some(index + 1);
            }
            rest = rest.strip_prefix('.')?;
        }
        None
    }

    fn width(&self) -> usize {
        element_bytes(Some(self.dtype))
    }

    fn byte_count(&self) -> usize {
        self.shape.iter().product::<usize>().saturating_mul(self.width())
    }

    fn is_row_major(&self) -> bool {
        let mut expected = 1;
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *size != 1 && *stride != expected {
                return false;
            }
            expected = expected.saturating_mul(*size);
        }
        true
    }

    fn data<'a>(&self, file: &'a [u8]) -> Cow<'a, [u8]> {
        let bytes = file.get(self.range.clone()).unwrap_or_default();
        if bytes.is_empty() || self.is_row_major() {
            return Cow::Borrowed(bytes);
        }
        let mut gathered = Vec::with_capacity(self.byte_count());
        self.gather(bytes, 0, 0, &mut gathered);
        Cow::Owned(gathered)
    }

    /// Appends what lies at `offset` and beyond in `dimension` and those after it, row by row.
    fn gather(&self, bytes: &[u8], dimension: usize, offset: usize, gathered: &mut Vec<u8>) {
        let width = self.width();
        let (Some(size), Some(stride)) = (self.shape.get(dimension), self.strides.get(dimension)) else {
            let at = offset * width;
            gathered.extend_from_slice(bytes.get(at..at + width).unwrap_or_default());
            return;
        };
        for index in 0..*size {
            self.gather(bytes, dimension + 1, offset + index * stride, gathered);
        }
    }
}

/// A tensor as safetensors wants it.
struct Stored<'a> {
    tensor: &'a TorchTensor,
    bytes: &'a [u8],
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.tensor.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.tensor.data(self.bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.byte_count()
    }
}

/// Finds the tensors of a tree of values.
#[derive(Default)]
struct Walk {
    tensors: Vec<TorchTensor>,
    left_out: Vec<LeftOut>,
    places: usize,
    name_bytes: usize,
}

impl Walk {
    fn all(&mut self, container: &Container) -> Result<(), Damage> {
        self.value(container, container.pickle.root, &mut Vec::new())
    }

    fn value(&mut self, container: &Container, id: Id, path: &mut Vec<String>) -> Result<(), Damage> {
        let place =
            || if path.is_empty() { "the checkpoint".into() } else { format!("`{}`", path.join(".")) };
        self.places += 1;
        if self.places > MAX_PLACES || path.len() > MAX_DEPTH || self.name_bytes > MAX_NAME_BYTES {
            let expected = format!(
                "at most {MAX_PLACES} values, {MAX_DEPTH} deep, with names of {MAX_NAME_BYTES} bytes"
            );
            return Err(Damage::new(place(), expected, "more"));
        }
        let pickle = &container.pickle;
        match pickle.node(id) {
            Node::Tensor(tensor) => {
                let tensor = Self::tensor(container, tensor, path).map_err(|damage| damage.or_at(place()))?;
                self.name_bytes += tensor.path.iter().map(String::len).sum::<usize>();
                self.tensors.push(tensor);
                Ok(())
            }
            Node::Mapping(entries) => {
                for (key, value) in entries {
                    self.child(container, key_name(pickle.node(*key)), *value, path)?;
                }
                Ok(())
            }
            // Numbers in lists are sizes or scores: a line for each would hide the rest.
            Node::Sequence(items) if !items.iter().any(|item| holds(pickle.node(*item))) => {
                self.leave_out(path, pickle.node(id));
                Ok(())
            }
            Node::Sequence(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.child(container, index.to_string(), *item, path)?;
                }
                Ok(())
            }
            other => {
                self.leave_out(path, other);
                Ok(())
            }
        }
    }

    fn child(
        &mut self,
        container: &Container,
        name: String,
        value: Id,
        path: &mut Vec<String>,
    ) -> Result<(), Damage> {
        path.push(name);
        let walked = self.value(container, value, path);
        path.pop();
        walked
    }

    fn leave_out(&mut self, path: &[String], node: &Node) {
        let name = path.join(".");
        self.name_bytes += name.len();
        self.left_out.push(LeftOut { name, what: describe(node) });
    }

    /// Checks that a tensor lies within its storage, and the storage within the file.
    fn tensor(container: &Container, tensor: &Tensor, path: &[String]) -> Result<TorchTensor, Damage> {
        let damage = |expected: String, got: String| Damage { place: String::new(), expected, got };
        let Node::Storage(storage) = container.pickle.node(tensor.storage) else {
            return Err(damage("a storage".into(), "none".into()));
        };
        let Some(stored) = container.storages.get(&storage.key) else {
            return Err(damage(format!("storage `{}`", storage.key), "no such storage in the file".into()));
        };
        let width = element_bytes(Some(tensor.dtype));
        let elements = stored.len() / width;
        let announced = usize::try_from(storage.elements)
            .ok()
            .and_then(|count| count.checked_mul(element_bytes(storage.dtype)));
        if storage.skipped == 0 && announced.is_none_or(|bytes| bytes > stored.len()) {
            let expected = format!("{} elements in storage `{}`", storage.elements, storage.key);
            return Err(damage(expected, format!("{} bytes", stored.len())));
        }
        let count = tensor.shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
        let count = count.filter(|count| *count <= elements).ok_or_else(|| {
            damage(
                format!("at most the {elements} elements of its storage"),
                format!("shape {:?}", tensor.shape),
            )
        })?;
        let last = if count == 0 { Some(0) } else { last_element(&tensor.shape, &tensor.strides) };
        let range = last.and_then(|last| {
            let offset = usize::try_from(tensor.offset).ok()?;
            let end = if count == 0 { offset } else { offset.checked_add(last)?.checked_add(1)? };
            (end <= elements).then(|| stored.start + offset * width..stored.start + end * width)
        });
        let range = range.ok_or_else(|| {
            let got =
                format!("offset {}, shape {:?}, strides {:?}", tensor.offset, tensor.shape, tensor.strides);
            damage(format!("a place within the {elements} elements of its storage"), got)
        })?;
        let strides =
            tensor.strides.iter().map(|stride| usize::try_from(*stride).unwrap_or(usize::MAX)).collect();
        Ok(TorchTensor {
            path: path.to_vec(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            strides,
            range,
        })
    }
}

impl Damage {
    fn or_at(mut self, place: String) -> Self {
        if self.place.is_empty() {
            self.place = place;
        }
        self
    }
}

/// Position of the last element, counted from the first.
fn last_element(shape: &[usize], strides: &[u64]) -> Option<usize> {
    shape.iter().zip(strides).try_fold(0_usize, |last, (size, stride)| {
        let stride = usize::try_from(*stride).ok()?;
        size.saturating_sub(1).checked_mul(stride)?.checked_add(last)
    })
}

/// Whether there may be tensors in it.
fn holds(node: &Node) -> bool {
    matches!(node, Node::Tensor(_) | Node::Mapping(_) | Node::Sequence(_) | Node::Object(_))
}

fn key_name(node: &Node) -> String {
    match node {
        Node::Text(text) => text.to_string(),
        Node::Integer(value) => value.to_string(),
        other => describe(other),
    }
}
