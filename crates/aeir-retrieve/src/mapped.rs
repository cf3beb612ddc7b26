//! Files of an index as numbers and texts, without reading them: memory-mapped, and verified before they are looked at.

use std::fs::File;
use std::path::Path;

use bytemuck::Pod;
use half::f16;
use memmap2::Mmap;

use crate::Result;
use crate::files::at;

/// Maps a whole file. None where it is empty: that can't be mapped.
pub(crate) fn map(path: &Path) -> Result<Option<Mmap>> {
    let file = File::open(path).map_err(at(path))?;
    if file.metadata().map_err(at(path))?.len() == 0 {
        return Ok(None);
    }
    // SAFETY: mapped read-only; `Index` says in its documentation what a later writer into the file would do.
    let map = unsafe { Mmap::map(&file) }.map_err(at(path))?;
    Ok(Some(map))
}

/// A number that is little-endian in a file.
pub(crate) trait Number: Copy + Send + Sync + 'static {
    /// What has the same size and any bits.
    type Bits: Pod;
    /// From the bits of this machine.
    fn slice(bits: &[Self::Bits]) -> &[Self];
    /// From bytes of a file.
    fn decode(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! number {
    ($type:ty) => {
        impl Number for $type {
            type Bits = $type;
            fn slice(bits: &[Self::Bits]) -> &[Self] {
                bits
            }
            fn decode(bytes: &[u8]) -> Vec<Self> {
                bytes.as_chunks().0.iter().map(|bytes| Self::from_le_bytes(*bytes)).collect()
            }
        }
    };
}
number!(u8);
number!(f32);
number!(u32);
number!(u64);

impl Number for f16 {
    type Bits = u16;
    fn slice(bits: &[u16]) -> &[Self] {
        half::slice::HalfBitsSliceExt::reinterpret_cast(bits)
    }
    fn decode(bytes: &[u8]) -> Vec<Self> {
        bytes.as_chunks().0.iter().map(|bytes| Self::from_le_bytes(*bytes)).collect()
    }
}

/// The numbers of a file.
#[derive(Debug)]
pub(crate) enum Numbers<T> {
    Mapped(Mmap),
    /// Where the machine's own numbers are big-endian, or there are none.
    Decoded(Vec<T>),
}

impl<T: Number> Numbers<T> {
    pub(crate) fn of(map: Option<Mmap>) -> Self {
        match map {
            Some(map) if cfg!(target_endian = "little") => Self::Mapped(map),
            Some(map) => Self::Decoded(T::decode(&map)),
            None => Self::Decoded(Vec::new()),
        }
    }

    /// None of a file that does not hold whole numbers.
    pub(crate) fn values(&self) -> &[T] {
        match self {
            Self::Mapped(map) => bytemuck::try_cast_slice(map).map(T::slice).unwrap_or_default(),
            Self::Decoded(values) => values,
        }
    }
}

/// Texts one after the other, each with a line end behind it, and where each begins.
#[derive(Debug)]
pub(crate) struct Texts {
    text: Option<Mmap>,
    offsets: Numbers<u64>,
}

impl Texts {
    /// None where text and offsets do not belong together.
    pub(crate) fn of(text: Option<Mmap>, offsets: Option<Mmap>) -> Option<Self> {
        let texts = Self { text, offsets: Numbers::of(offsets) };
        let text = std::str::from_utf8(texts.bytes()).ok()?;
        let offsets = texts.offsets.values();
        let (first, last) = (*offsets.first()?, *offsets.last()?);
        let fits = first == 0
            && last == text.len() as u64
            && offsets.is_sorted_by(|from, to| from < to)
            && offsets.iter().all(|offset| text.is_char_boundary(*offset as usize));
        fits.then_some(texts)
    }

    fn bytes(&self) -> &[u8] {
        self.text.as_deref().unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.values().len().saturating_sub(1)
    }

    /// Text `i`, or `None` past the last.
    pub(crate) fn get(&self, i: usize) -> Option<&str> {
        let offsets = self.offsets.values();
        let (from, to) = (*offsets.get(i)? as usize, *offsets.get(i + 1)? as usize);
        std::str::from_utf8(self.bytes().get(from..to.checked_sub(1)?)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str, offsets: &[u64]) -> Option<Texts> {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        std::fs::write(folder.path().join("text"), text).unwrap();
        std::fs::write(folder.path().join("offsets"), bytes).unwrap();
        Texts::of(map(&folder.path().join("text")).unwrap(), map(&folder.path().join("offsets")).unwrap())
    }

    #[test]
    fn texts_come_back_and_offsets_that_do_not_fit_are_refused() {
        let good = texts("a\n\nüb\n", &[0, 2, 3, 7]).unwrap();
        assert_eq!((good.len(), good.get(0), good.get(1), good.get(2)), (3, Some("a"), Some(""), Some("üb")));
        assert_eq!((good.get(3), good.get(usize::MAX - 1)), (None, None));
        assert_eq!(texts("", &[0]).unwrap().len(), 0);
        for offsets in [&[][..], &[0, 2], &[1, 7], &[0, 3, 2, 7], &[0, 4, 7], &[0, 2, 2, 7], &[0, 99, 7]] {
            assert!(texts("a\n\nüb\n", offsets).is_none(), "{offsets:?}");
        }
    }
}
