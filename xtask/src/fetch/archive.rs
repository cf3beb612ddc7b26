//! Archives: every member is looked at before one is written, and none leaves the folder.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::Crc;
use flate2::read::{DeflateDecoder, GzDecoder};
use zip::{CompressionMethod, ZipArchive};

use super::client::Again;
use super::disk::{free_bytes, readable};
use super::download::{Failure, not_written};
use super::manifest::{Unpack, inside};

/// What one system puts into its archives for itself.
const FOREIGN: &str = "__MACOSX/";

/// Unpacks the members, or those called `members` wherever they lie; the number of files.
pub(crate) fn unpack(archive: &Path, how: Unpack, into: &Path, members: &[String]) -> Result<usize, Failure> {
    let job = Job { archive, into, members };
    let files = match how {
        Unpack::Zip => job.zip()?,
        Unpack::Tar => job.tar(|file| Ok(Box::new(BufReader::new(file))))?,
        Unpack::TarGz => job.tar(|file| Ok(Box::new(GzDecoder::new(BufReader::new(file)))))?,
    };
    if files == 0 {
        return Err(job.refused("it holds none of the files that were looked for"));
    }
    Ok(files)
}

/// Takes a member: its bytes, name, place and declared length.
type Visit<'a> = &'a mut dyn FnMut(&mut dyn Read, &str, &Path, u64) -> Result<(), Failure>;

struct Job<'a> {
    archive: &'a Path,
    into: &'a Path,
    members: &'a [String],
}

impl Job<'_> {
    fn refused(&self, why: &str) -> Failure {
        let message = format!("`{}`: {why}; nothing was unpacked", self.archive.display());
        Failure { message, again: Again::FromTheStart }
    }

    fn damaged(&self, member: &str, why: &dyn std::fmt::Display) -> Failure {
        let message = format!("`{}`: member `{member}` is damaged: {why}", self.archive.display());
        Failure { message, again: Again::FromTheStart }
    }

    /// Where a member goes; none where it is not wanted.
    fn place(&self, name: &str) -> Option<PathBuf> {
        if name.starts_with(FOREIGN) {
            return None;
        }
        if self.members.is_empty() {
            return Some(self.into.join(name));
        }
        let last = name.rsplit('/').next().unwrap_or(name);
        self.members.iter().any(|member| member == last).then(|| self.into.join(last))
    }

    /// Refuses a member that would lie, or lead, elsewhere.
    fn check(&self, name: &str, plain: bool) -> Result<(), Failure> {
        if !inside(name.trim_end_matches('/')) {
            return Err(self.refused(&format!("member `{name}` leads out of the folder")));
        }
        if !plain {
            return Err(self.refused(&format!("member `{name}` is a link or a device")));
        }
        Ok(())
    }

    fn check_space(&self, bytes: u64) -> Result<(), Failure> {
        match free_bytes(self.into).filter(|free| *free < bytes) {
            Some(free) => Err(Failure::never(format!(
                "`{}`: no space left: unpacked it takes {}, {} are free; it is kept and was not unpacked",
                self.archive.display(),
                readable(bytes),
                readable(free)
            ))),
            None => Ok(()),
        }
    }

    fn open(&self) -> Result<File, Failure> {
        File::open(self.archive).map_err(|error| self.refused(&format!("could not be read: {error}")))
    }

    fn zip(&self) -> Result<usize, Failure> {
        let mut zip = ZipArchive::new(BufReader::new(self.open()?))
            .map_err(|error| self.refused(&format!("is no zip archive: {error}")))?;
        let mut wanted = Vec::new();
        let mut bytes = 0_u64;
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(|error| self.refused(&error.to_string()))?;
            let name = entry.name().map_err(|error| self.refused(&error.to_string()))?.into_owned();
            self.check(&name, !entry.is_symlink())?;
            let known = matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::DEFLATE);
            if !known || entry.encrypted() {
                return Err(
                    self.refused(&format!("member `{name}` is neither stored nor deflated, or encrypted"))
                );
            }
            if let Some(place) = self.place(&name).filter(|_| !entry.is_dir()) {
                bytes = bytes.saturating_add(entry.size());
                wanted.push((index, name, place));
            }
        }
        self.check_space(bytes)?;
        for (index, name, place) in &wanted {
            let entry = zip.by_index_raw(*index).map_err(|error| self.damaged(name, &error))?;
            let (size, crc, method) = (entry.size(), entry.crc32(), entry.compression());
            let mut reader: Box<dyn Read> = match method {
                CompressionMethod::DEFLATE => Box::new(DeflateDecoder::new(entry)),
                _ => Box::new(entry),
            };
            let found = self.write(&mut reader, name, place, size)?;
            if found != (size, crc) {
                return Err(self.damaged(name, &"its checksum is another"));
            }
        }
        Ok(wanted.len())
    }

    fn tar(&self, open: impl Fn(File) -> io::Result<Box<dyn Read>>) -> Result<usize, Failure> {
        let reader = |job: &Self| {
            open(job.open()?).map_err(|error| job.refused(&format!("could not be read: {error}")))
        };
        let bytes = self.walk_tar(reader(self)?, &mut |_, _, _, _| Ok(()))?;
        self.check_space(bytes)?;
        let mut files = 0;
        self.walk_tar(reader(self)?, &mut |entry, name, place, size| {
            files += 1;
            let found = self.write(entry, name, place, size)?;
            if found.0 == size { Ok(()) } else { Err(self.damaged(name, &"it ends too early")) }
        })?;
        Ok(files)
    }

    /// Goes through the wanted members; their bytes together.
    fn walk_tar(&self, reader: Box<dyn Read>, each: Visit<'_>) -> Result<u64, Failure> {
        let wrong = |error: io::Error| self.refused(&format!("is no tar archive, or is cut: {error}"));
        let mut archive = tar::Archive::new(reader);
        let mut bytes = 0_u64;
        for entry in archive.entries().map_err(wrong)? {
            let mut entry = entry.map_err(wrong)?;
            let kind = entry.header().entry_type();
            if kind.is_pax_global_extensions() {
                continue;
            }
            let path = entry.path_bytes().into_owned();
            let name = String::from_utf8(path).map_err(|_| self.refused("a member's name is not UTF-8"))?;
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            if name.is_empty() {
                continue;
            }
            self.check(&name, kind.is_file() || kind.is_dir())?;
            if let Some(place) = self.place(&name).filter(|_| kind.is_file()) {
                let size = entry.size();
                bytes = bytes.saturating_add(size);
                each(&mut entry, &name, &place, size)?;
            }
        }
        Ok(bytes)
    }

    /// Writes one member, no more of it than was declared; its length and checksum.
    fn write(
        &self,
        reader: &mut dyn Read,
        name: &str,
        place: &Path,
        size: u64,
    ) -> Result<(u64, u32), Failure> {
        let folder = place.parent().unwrap_or(self.into);
        fs::create_dir_all(folder).map_err(|error| not_written(folder, &error))?;
        let mut file = File::create(place).map_err(|error| not_written(place, &error))?;
        let mut crc = Crc::new();
        let mut reader = reader.take(size.saturating_add(1));
        let mut buffer = vec![0; 1 << 16];
        let mut done = 0_u64;
        loop {
            let read = reader.read(&mut buffer).map_err(|error| self.damaged(name, &error))?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            io::Write::write_all(&mut file, bytes).map_err(|error| not_written(place, &error))?;
            crc.update(bytes);
            done = done.saturating_add(read as u64);
        }
        Ok((done, crc.sum()))
    }
}
