//! Which libraries a program needs to start: the dynamic section of an ELF file, as System V's ABI lays it out.

use std::path::Path;

use anyhow::{Context, bail};

/// `DT_NULL`, `DT_NEEDED` and `DT_STRTAB`: tags of dynamic entries.
const END: u64 = 0;
const NEEDED: u64 = 1;
const STRINGS: u64 = 5;
/// `PT_LOAD` and `PT_DYNAMIC`: kinds of segments.
const LOADED: u32 = 1;
const DYNAMIC: u32 = 2;

/// The names of the libraries that a 64-bit little-endian ELF program asks for, in its order.
///
/// # Errors
/// When the file can't be read, is no such program, or is cut.
pub(super) fn needed(program: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = std::fs::read(program).with_context(|| format!("could not read `{}`", program.display()))?;
    names(&bytes).with_context(|| format!("`{}`", program.display()))
}

fn names(bytes: &[u8]) -> anyhow::Result<Vec<String>> {
    // Class 2 is 64 bits, data 1 little-endian.
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("is no 64-bit ELF program");
    }
    let file = Elf(bytes);
    let segments = file.segments()?;
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == DYNAMIC) else {
        return Ok(Vec::new());
    };
    let (mut offsets, mut strings) = (Vec::new(), None);
    for entry in 0..dynamic.size / 16 {
        let at = dynamic.offset.saturating_add(16 * entry);
        match (file.long(at)?, file.long(at.saturating_add(8))?) {
            (END, _) => break,
            (NEEDED, offset) => offsets.push(offset),
            (STRINGS, address) => strings = Some(address),
            _ => {}
        }
    }
    let strings = strings.context("has no table of strings")?;
    // The table is named by its address in memory; a loaded segment says where that lies in the file.
    let holds = |segment: &&Segment| {
        segment.kind == LOADED
            && (segment.address..segment.address.saturating_add(segment.size)).contains(&strings)
    };
    let segment = segments.iter().find(holds).context("has its table of strings in no segment")?;
    let table = segment.offset.saturating_add(strings - segment.address);
    offsets.into_iter().map(|offset| file.text(table.saturating_add(offset))).collect()
}

struct Elf<'a>(&'a [u8]);

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

impl Elf<'_> {
    fn segments(&self) -> anyhow::Result<Vec<Segment>> {
        let (first, size, count) = (self.long(32)?, self.short(54)?, self.short(56)?);
        let segment = |index: u16| {
            let at = first.saturating_add(u64::from(index) * u64::from(size));
            Ok(Segment {
                kind: u32::from_le_bytes(self.array(at)?),
                offset: self.long(at.saturating_add(8))?,
                address: self.long(at.saturating_add(16))?,
                size: self.long(at.saturating_add(32))?,
            })
        };
        (0..count).map(segment).collect()
    }

    fn array<const N: usize>(&self, at: u64) -> anyhow::Result<[u8; N]> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.0.get(start..).and_then(|rest| rest.first_chunk());
        bytes.copied().context("is cut")
    }

    fn short(&self, at: u64) -> anyhow::Result<u16> {
        Ok(u16::from_le_bytes(self.array(at)?))
    }

    fn long(&self, at: u64) -> anyhow::Result<u64> {
        Ok(u64::from_le_bytes(self.array(at)?))
    }

    /// Up to the next zero.
    fn text(&self, at: u64) -> anyhow::Result<String> {
        let rest = self.0.get(usize::try_from(at).unwrap_or(usize::MAX)..).context("is cut")?;
        let end = rest.iter().position(|byte| *byte == 0).context("is cut")?;
        Ok(String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned())
    }
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64", target_endian = "little"))]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_this_very_program_are_found() {
        let own = needed(&std::env::current_exe().unwrap()).unwrap();
        assert!(own.iter().any(|name| name.starts_with("libc.")), "{own:?}");
        assert!(own.iter().all(|name| name.contains(".so")), "{own:?}");
    }

    #[test]
    fn other_files_and_cut_ones_are_refused() {
        assert!(names(b"#!/bin/sh\n").unwrap_err().to_string().contains("ELF"));
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [6, 40, 60, 100, 200] {
            assert!(names(&whole[..length]).unwrap_err().to_string().contains("is cut"), "{length}");
        }
    }

    #[test]
    fn hostile_offsets_end_in_errors() {
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let end = whole.len().min(1 << 16);
        for at in (0..1_024).step_by(8) {
            let mut bytes = whole[..end].to_vec();
            bytes[at..at + 8].fill(0xff);
            // Names or an error, no panic and no endless loop.
            let _ = names(&bytes);
        }
    }
}
