//! What a sweep is to train: the file, checked whole before anything runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aeir_train::TrainConfig;
use aeir_train::run::settings_that_differ;
use anyhow::Context;
use clap::Parser;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::commands::train::check_target_flags;
use crate::failure::CliError;
use crate::flags::{Command, EvalFlags, Flags, Protocol, Rerank, TrainFlags};
use crate::report::runs::{Evaluation, flatten_settings};
use crate::report::slug;

/// The format this version reads.
const VERSION: u32 = 1;
/// Longest name of a setting's folder.
const LONGEST_NAME: usize = 80;
/// Flags that a sweep gives its runs itself.
const OWN_FLAGS: [&str; 7] = ["config", "dry-run", "output", "overwrite", "resume", "seed", "json"];
/// The sweep's file as it was run last; marks the folder as a sweep's.
pub(super) const PLAN_FILE: &str = "sweep.toml";
/// The settings of every run.
const SETTINGS_FOLDER: &str = "settings";

/// A sweep file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<PathBuf>,
    seeds: Vec<u64>,
    #[serde(default)]
    values: Table,
    train: Table,
    #[serde(default)]
    eval: Table,
}

/// Everything that is to be trained.
pub(super) struct Plan {
    /// Folder of all runs.
    pub(super) output: PathBuf,
    /// Names of the settings that are varied.
    pub(super) keys: Vec<String>,
    pub(super) cells: Vec<Cell>,
    /// Flags of `aeir eval`; none without test pairs.
    pub(super) eval: Option<Vec<String>>,
    /// What `aeir eval` measures, as the results name it.
    pub(super) test: Option<Test>,
    file: File,
}

/// The test pairs of a sweep and how they are scored.
pub(super) struct Test {
    data: PathBuf,
    split: Option<String>,
    /// What is asked for; none leaves it to the model.
    rerank: Option<Rerank>,
}

impl Test {
    /// Whether an evaluation measured this. A model without a head that scores pairs has nothing to re-rank.
    pub(super) fn is_of(&self, found: &Evaluation) -> bool {
        let same_rerank = match (&self.rerank, &found.rerank) {
            (Some(asked), Some(done)) => asked.to_string() == *done,
            _ => true,
        };
        (&self.data, &self.split) == (&found.data, &found.split) && same_rerank
    }
}

/// One run of a sweep.
pub(super) struct Cell {
    /// The values of the varied settings, in the order of their keys.
    pub(super) values: Vec<String>,
    pub(super) seed: u64,
    /// Its run folder.
    pub(super) folder: PathBuf,
    /// The settings, as `aeir train --config` takes them.
    settings: String,
    settings_file: PathBuf,
    /// What the run will write down.
    resolved: TrainConfig,
    /// Flags of `aeir train`.
    pub(super) flags: Vec<String>,
}

impl Plan {
    /// Reads a sweep's file and checks every run that it stands for.
    pub(super) fn read(file: &Path, output: Option<&Path>) -> anyhow::Result<Self> {
        let text = fs::read_to_string(file)
            .map_err(|error| usage(format!("could not read the sweep `{}`: {error}", file.display())))?;
        let parsed: File = toml::from_str(&text).map_err(|error| {
            usage(format!("sweep `{}`: {}", file.display(), error.to_string().trim_end()))
        })?;
        Self::new(parsed, file, output)
    }

    fn new(file: File, path: &Path, output: Option<&Path>) -> anyhow::Result<Self> {
        let refuse = |what: String| usage(format!("sweep `{}`: {what}", path.display()));
        if file.version != VERSION {
            return Err(refuse(format!("`version` must be {VERSION}, got {}", file.version)));
        }
        check_seeds(&file.seeds).map_err(refuse)?;
        let lists = lists(&file.values).map_err(refuse)?;
        if lists.contains_key("seed") {
            return Err(refuse("`seed` is among the values: list it under `seeds`".into()));
        }
        let stem = path.file_stem().unwrap_or(path.as_os_str());
        let output =
            output.or(file.output.as_deref()).map_or_else(|| Path::new("runs").join(stem), Path::to_owned);
        let base = match &file.config {
            None => Table::new(),
            Some(base) => fs::read_to_string(base)
                .map_err(|error| {
                    refuse(format!("could not read `config` = \"{}\": {error}", base.display()))
                })?
                .parse()
                .map_err(|error| refuse(format!("`{}`: {error}", base.display())))?,
        };
        let train = flags_of("train", &file.train).map_err(refuse)?;
        let keys: Vec<String> = lists.keys().cloned().collect();
        let mut cells = Vec::new();
        let mut names = BTreeMap::new();
        for values in combinations(&lists) {
            let name = name_of(&keys, &values);
            if let Some(other) = names.insert(name.clone(), values.clone()) {
                return Err(refuse(format!("{other:?} and {values:?} have the same folder `{name}`")));
            }
            for seed in &file.seeds {
                let draft = Draft {
                    base: &base,
                    keys: &keys,
                    values: &values,
                    seed: *seed,
                    output: &output,
                    name: &name,
                    train: &train,
                };
                cells.push(
                    draft
                        .cell()
                        .with_context(|| format!("sweep `{}`: run {name}, seed {seed}", path.display()))?,
                );
            }
        }
        let (eval, test) = match file.eval.is_empty() {
            true => (None, None),
            false => {
                let flags = flags_of("eval", &file.eval).map_err(refuse)?;
                let parsed = parse_eval(&flags, &output)
                    .with_context(|| format!("sweep `{}`: [eval]", path.display()))?;
                if parsed.protocol != Protocol::Full {
                    return Err(refuse(format!(
                        "`eval.protocol` must be \"full\", got \"{}\": runs are compared on all test pairs at once",
                        parsed.protocol.name()
                    )));
                }
                let Some(data) = &parsed.data else {
                    return Err(refuse("`eval.data` is missing: runs are compared on test pairs".into()));
                };
                exists("eval", "data", data).map_err(refuse)?;
                let test = Test {
                    data: std::path::absolute(data)?,
                    split: parsed.split.map(crate::flags::SplitFlag::name),
                    rerank: parsed.rerank,
                };
                (Some(flags), Some(test))
            }
        };
        Ok(Self { output, keys, cells, eval, test, file })
    }

    /// Takes the folder: new, empty, or one in which this sweep, perhaps of fewer values, was run before. Writes the settings
    /// of every run.
    pub(super) fn claim(&self) -> anyhow::Result<()> {
        let marker = self.output.join(PLAN_FILE);
        match fs::read_to_string(&marker) {
            Ok(text) => {
                let before: File = toml::from_str(&text)
                    .with_context(|| format!("could not read `{}`", marker.display()))?;
                if before.train != self.file.train {
                    return Err(CliError::Usage {
                        message: format!(
                            "`{}` holds a sweep with other flags under [train]",
                            self.output.display()
                        ),
                        hint: "name another folder with --output, or remove that one".into(),
                    }
                    .into());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if fs::read_dir(&self.output).is_ok_and(|mut entries| entries.next().is_some()) {
                    return Err(CliError::Usage {
                        message: format!("`{}` holds other things than a sweep", self.output.display()),
                        hint: "name a new or empty folder with --output".into(),
                    }
                    .into());
                }
            }
            Err(error) => {
                return Err(error).with_context(|| format!("could not read `{}`", marker.display()));
            }
        }
        for cell in &self.cells {
            cell.check_earlier()?;
        }
        let settings = self.output.join(SETTINGS_FOLDER);
        fs::create_dir_all(&settings).with_context(|| format!("could not make `{}`", settings.display()))?;
        super::write(&marker, &toml::to_string(&self.file)?)?;
        self.cells.iter().try_for_each(|cell| super::write(&cell.settings_file, &cell.settings))
    }
}

impl Cell {
    /// Its setting and seed, for messages.
    pub(super) fn name(&self) -> String {
        let parts: Vec<_> =
            self.folder.iter().rev().take(2).map(|part| part.to_string_lossy().into_owned()).collect();
        parts.into_iter().rev().collect::<Vec<_>>().join("/")
    }

    /// Refuses a run of other settings in its place: as finished it would be taken for this one.
    fn check_earlier(&self) -> anyhow::Result<()> {
        let Some(differences) = settings_that_differ(&self.folder, &self.resolved)? else { return Ok(()) };
        Err(CliError::Usage {
            message: format!("`{}` was trained with {differences}", self.folder.display()),
            hint: "name another folder with --output, or remove that run".into(),
        }
        .into())
    }
}

/// What a cell is made from.
struct Draft<'a> {
    base: &'a Table,
    keys: &'a [String],
    values: &'a [Value],
    seed: u64,
    output: &'a Path,
    name: &'a str,
    train: &'a [String],
}

impl Draft<'_> {
    fn cell(&self) -> anyhow::Result<Cell> {
        let mut table = self.base.clone();
        for (key, value) in self.keys.iter().zip(self.values) {
            set(&mut table, key, value.clone()).map_err(usage)?;
        }
        set(&mut table, "seed", Value::Integer(self.seed.try_into()?)).map_err(usage)?;
        let settings = toml::to_string(&table)?;
        let settings_file =
            self.output.join(SETTINGS_FOLDER).join(format!("{},seed-{}.toml", self.name, self.seed));
        let folder = self.output.join(self.name).join(format!("seed-{}", self.seed));
        let mut flags = self.train.to_vec();
        flags.extend([
            format!("--config={}", settings_file.display()),
            format!("--output={}", folder.display()),
            "--resume=latest".to_owned(),
        ]);
        let parsed = parse_train(&flags)?;
        for (flag, path) in parsed
            .source
            .iter()
            .map(|path| ("source", path))
            .chain(parsed.target_images.iter().map(|path| ("target-images", path)))
            .chain(parsed.target_sentences.iter().map(|path| ("target-sentences", path)))
        {
            exists("train", flag, path).map_err(usage)?;
        }
        let resolved =
            parsed.apply(TrainConfig::from_toml(&settings, "its settings")?.with(&parsed.set)?).resolved()?;
        check_target_flags(&parsed, &resolved)?;
        let cell = Cell {
            values: self.values.iter().map(plain).collect(),
            seed: self.seed,
            folder,
            settings,
            settings_file,
            resolved,
            flags,
        };
        self.check_overruled(&cell)?;
        Ok(cell)
    }

    /// A flag, or the variable that stands for it, wins over the settings: a value that it hides would be trained several times
    /// under different names.
    fn check_overruled(&self, cell: &Cell) -> anyhow::Result<()> {
        let mut resolved = BTreeMap::new();
        flatten_settings("", &Value::Table(cell.resolved.to_toml()?.parse()?), &mut resolved);
        let seed = ("seed".to_owned(), self.seed.to_string());
        let varied = self.keys.iter().zip(self.values).flat_map(|(key, value)| {
            let mut flat = BTreeMap::new();
            flatten_settings(key, value, &mut flat);
            flat
        });
        for (key, value) in varied.chain([seed]) {
            let got = resolved.get(&key).map_or("not set", String::as_str);
            let same = got == value || got.parse::<f64>().is_ok_and(|got| value.parse() == Ok(got));
            if !same {
                return Err(usage(format!(
                    "`{key}` is to be {value}, but it would be {got}: a flag under [train], a variable AEIR_.. or the method decides it"
                )));
            }
        }
        Ok(())
    }
}

fn usage(message: String) -> anyhow::Error {
    CliError::Usage { message, hint: "docs/observing.md shows a sweep's file".into() }.into()
}

fn check_seeds(seeds: &[u64]) -> Result<(), String> {
    if seeds.is_empty() {
        return Err("`seeds` is empty: name at least one".into());
    }
    match seeds.iter().enumerate().find(|(index, seed)| seeds.iter().take(*index).any(|other| other == *seed))
    {
        Some((_, seed)) => Err(format!("`seeds` has {seed} twice")),
        None => Ok(()),
    }
}

/// The varied settings by dotted key, each with its values.
fn lists(values: &Table) -> Result<BTreeMap<String, Vec<Value>>, String> {
    let mut lists = BTreeMap::new();
    collect_lists("", values, &mut lists)?;
    Ok(lists)
}

fn collect_lists(path: &str, table: &Table, lists: &mut BTreeMap<String, Vec<Value>>) -> Result<(), String> {
    for (key, value) in table {
        let key = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            Value::Table(table) => collect_lists(&key, table, lists)?,
            Value::Array(values) if values.is_empty() => {
                return Err(format!("`values.{key}` is empty: list what to try"));
            }
            Value::Array(values) => {
                if let Some(value) = values
                    .iter()
                    .enumerate()
                    .find(|(index, value)| values.iter().take(*index).any(|it| it == *value))
                {
                    return Err(format!("`values.{key}` has {} twice", plain(value.1)));
                }
                lists.insert(key, values.clone());
            }
            value => {
                return Err(format!(
                    "`values.{key}` must be a list, got {}: write [{}]",
                    plain(value),
                    value
                ));
            }
        }
    }
    Ok(())
}

/// Every combination, the first key varying slowest.
fn combinations(lists: &BTreeMap<String, Vec<Value>>) -> Vec<Vec<Value>> {
    lists.values().fold(vec![Vec::new()], |before, values| {
        before
            .iter()
            .flat_map(|chosen: &Vec<Value>| {
                values.iter().map(move |value| chosen.iter().cloned().chain([value.clone()]).collect())
            })
            .collect()
    })
}

/// Sets a dotted key, making the tables on the way.
fn set(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    let Some((first, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return Ok(());
    };
    match table.entry(first).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => set(inner, rest, value),
        _ => Err(format!("`{first}` is a value, not a table: it has no `{rest}`")),
    }
}

/// A value as people read it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A folder's name for a setting, such as `method-aeir,learning_rate-0.002`.
fn name_of(keys: &[String], values: &[Value]) -> String {
    if keys.is_empty() {
        return "all".to_owned();
    }
    let last = |key: &String| key.rsplit('.').next().unwrap_or(key).to_owned();
    let parts = keys.iter().zip(values).map(|(key, value)| {
        let alone = keys.iter().filter(|other| last(other) == last(key)).count() == 1;
        format!("{}-{}", if alone { last(key) } else { key.clone() }, slug(&plain(value)))
    });
    let name = parts.collect::<Vec<_>>().join(",");
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let hash = aeir_encoders::fingerprint::sha256_parts([("name", name.as_bytes())]);
    format!("{}-{}", name.get(..LONGEST_NAME).unwrap_or_default(), hash.get(..8).unwrap_or_default())
}

/// A table of flags as they stand on a command line.
fn flags_of(command: &str, table: &Table) -> Result<Vec<String>, String> {
    let mut flags = Vec::new();
    for (name, value) in table {
        if OWN_FLAGS.contains(&name.as_str()) || (command == "eval" && name == "model") {
            return Err(format!("`{command}.{name}`: the sweep sets --{name} itself"));
        }
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            match value {
                Value::Boolean(true) => flags.push(format!("--{name}")),
                Value::Boolean(false) => {}
                Value::String(_) | Value::Integer(_) | Value::Float(_) => {
                    flags.push(format!("--{name}={}", plain(value)))
                }
                _ => {
                    return Err(format!(
                        "`{command}.{name}` must be a text, a number, true or a list of these"
                    ));
                }
            }
        }
    }
    Ok(flags)
}

/// The flags as `aeir` itself reads them, with what the environment adds.
fn parse(command: &str, flags: &[String]) -> anyhow::Result<Command> {
    let line = ["aeir", command].into_iter().chain(flags.iter().map(String::as_str));
    match Flags::try_parse_from(line) {
        Ok(flags) => Ok(flags.command),
        Err(error) => {
            let text = error.to_string();
            let told: Vec<&str> = text
                .lines()
                .take_while(|line| !line.starts_with("Usage:"))
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .collect();
            Err(usage(format!("[{command}]: {}", told.join(" ").trim_start_matches("error: "))))
        }
    }
}

fn parse_train(flags: &[String]) -> anyhow::Result<TrainFlags> {
    match parse("train", flags)? {
        Command::Train(flags) => Ok(flags),
        _ => Err(usage("[train] names another command".into())),
    }
}

fn parse_eval(flags: &[String], output: &Path) -> anyhow::Result<EvalFlags> {
    let mut flags = flags.to_vec();
    flags.push(format!("--model={}", output.display()));
    match parse("eval", &flags)? {
        Command::Eval(flags) => Ok(flags),
        _ => Err(usage("[eval] names another command".into())),
    }
}

/// A pattern of shards is looked at by its reader.
fn exists(command: &str, flag: &str, path: &Path) -> Result<(), String> {
    if path.exists() || path.to_string_lossy().contains(['{', '*', '?']) {
        return Ok(());
    }
    Err(format!("`{command}.{flag}`: `{}` is not there", path.display()))
}
