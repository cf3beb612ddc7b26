//! Archives made for tests: also such as no honest program writes.

use std::io::Write;

use flate2::write::{DeflateEncoder, GzEncoder};
use flate2::{Compression, Crc};

/// A zip archive of these members, deflated; a false checksum where `damaged`.
pub(crate) fn zip(members: &[(&str, &[u8])], damaged: bool) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in members {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        let packed = encoder.finish().unwrap();
        let mut crc = Crc::new();
        crc.update(content);
        let crc = if damaged { !crc.sum() } else { crc.sum() };
        let mut fields = Vec::new();
        for short in [20_u16, 0, 8, 0, 0x21] {
            fields.extend(short.to_le_bytes());
        }
        for long in [crc, packed.len() as u32, content.len() as u32] {
            fields.extend(long.to_le_bytes());
        }
        for short in [name.len() as u16, 0] {
            fields.extend(short.to_le_bytes());
        }
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend((bytes.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&fields);
        bytes.extend(name.as_bytes());
        bytes.extend(packed);
    }
    let start = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    for short in [members.len() as u16; 2] {
        bytes.extend(short.to_le_bytes());
    }
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// A gzipped tar archive; names are taken as they are.
pub(crate) fn tar_gz(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        // `set_path` would refuse the names that these tests are about.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// A tar archive with a link out of the folder and a file behind it.
pub(crate) fn tar_with_link() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "inside", "..").unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    builder.append_data(&mut header, "inside/evil", &b"evil"[..]).unwrap();
    builder.into_inner().unwrap()
}
