//! `cargo xtask dist`: an archive to give away, with completions, manual pages and the small backbones.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::binary::{self, output};
use crate::say;
use crate::tree::workspace_root;

pub(crate) const HELP: &str = "\
cargo xtask dist [--binary FILE] [--output DIR]

  --binary FILE  An `aeir` that is built already [default: builds target/release/aeir]
  --output DIR   Where the archive and its SHA-256 go [default: target/dist]
";

/// With the file names that shells look for.
const SHELLS: [(&str, &str); 5] = [
    ("bash", "aeir.bash"),
    ("zsh", "_aeir"),
    ("fish", "aeir.fish"),
    ("powershell", "_aeir.ps1"),
    ("elvish", "aeir.elv"),
];
/// What goes along as it is.
const FILES: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];
/// Without them the program has no encoders to begin with.
const BACKBONES: &str = "fixtures/backbones";

/// Writes the archive.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<()> {
    let root = workspace_root()?;
    let (mut named, mut folder) = (None, root.join("target").join("dist"));
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("`{word}` needs a value\n\n{HELP}"));
        match *word {
            "--help" | "-h" => return say(HELP),
            "--binary" => named = Some(PathBuf::from(value()?)),
            "--output" => folder = PathBuf::from(value()?),
            other => bail!("no option `{other}`\n\n{HELP}"),
        }
    }
    let program = match named {
        Some(program) => program,
        None => binary::release(&root)?,
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("could not make `{}`", folder.display()))?;
    let name = format!("{}-{}", name_of(&program)?, binary::host()?);
    let archive = archive(&program, &root, &folder, &name)?;
    let file = folder.join(format!("{name}.tar.gz"));
    std::fs::write(&file, &archive).with_context(|| format!("could not write `{}`", file.display()))?;
    let sum: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(folder.join(format!("{name}.tar.gz.sha256")), format!("{sum}  {name}.tar.gz\n"))?;
    say(&format!("{}  {sum}\n", file.display()))
}

/// `aeir-0.1.0`.
fn name_of(program: &Path) -> anyhow::Result<String> {
    Ok(output(Command::new(program).arg("--version"))?.trim().replace(' ', "-"))
}

/// The bytes of the archive: the same for the same files.
fn archive(program: &Path, root: &Path, scratch: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut archive =
        Archive { builder: tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best())), name };
    let executable = format!("aeir{}", std::env::consts::EXE_SUFFIX);
    archive.add(&executable, &read(program)?, 0o755)?;
    for file in FILES {
        archive.add(file, &read(&root.join(file))?, 0o644)?;
    }
    for (shell, file) in SHELLS {
        let script = output(Command::new(program).args(["completions", shell]))?;
        archive.add(&format!("completions/{file}"), script.as_bytes(), 0o644)?;
    }
    let pages = scratch.join(format!(".man-{}", std::process::id()));
    std::fs::create_dir_all(&pages)?;
    let written =
        output(Command::new(program).arg("man").arg(&pages)).and_then(|_| archive.add_folder("man", &pages));
    std::fs::remove_dir_all(&pages)?;
    written?;
    archive.add_folder(BACKBONES, &root.join(BACKBONES))?;
    Ok(archive.builder.into_inner()?.finish()?)
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("could not read `{}`", file.display()))
}

struct Archive<'a, W: Write> {
    builder: tar::Builder<W>,
    /// The one folder that it unpacks to.
    name: &'a str,
}

impl<W: Write> Archive<'_, W> {
    fn add(&mut self, path: &str, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_mtime(0);
        Ok(self.builder.append_data(&mut header, format!("{}/{path}", self.name), bytes)?)
    }

    fn add_folder(&mut self, path: &str, folder: &Path) -> anyhow::Result<()> {
        let entries =
            std::fs::read_dir(folder).with_context(|| format!("could not read `{}`", folder.display()))?;
        let mut entries = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
        entries.sort();
        for entry in entries {
            let name =
                entry.file_name().and_then(|name| name.to_str()).context("a file's name is not UTF-8")?;
            let inner = format!("{path}/{name}");
            if entry.is_dir() {
                self.add_folder(&inner, &entry)?;
            } else {
                self.add(&inner, &read(&entry)?, 0o644)?;
            }
        }
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_archive_holds_the_program_completions_pages_and_backbones() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("aeir");
        std::fs::write(
            &program,
            "#!/bin/sh\nif [ \"$1\" = man ]; then echo page > \"$2/aeir.1\"; else echo \"$@\"; fi\n",
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let root = workspace_root().unwrap();
        let bytes = archive(&program, &root, folder.path(), "aeir-1").unwrap();
        assert!(
            bytes == archive(&program, &root, folder.path(), "aeir-1").unwrap(),
            "the same bytes each time"
        );
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let mut found = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, mode) = (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(path, (mode, content));
        }
        assert_eq!(found["aeir-1/aeir"].0, 0o755);
        assert_eq!(found["aeir-1/completions/_aeir"].1, b"completions zsh\n");
        assert_eq!(found["aeir-1/man/aeir.1"].1, b"page\n");
        assert!(found.contains_key("aeir-1/fixtures/backbones/static-minilm/model.safetensors"));
        assert!(
            !folder.path().read_dir().unwrap().any(|entry| entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with(".man"))
        );
    }
}
