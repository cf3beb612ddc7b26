//! What a folder of sentence-transformers says about pooling: `modules.json` and the files it names.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::pooling::Pooling;
use crate::error::{EncoderError, Result};
use crate::load::{parse_json, read_file};

const MODULES: &str = "modules.json";
const LIMIT: &str = "sentence_bert_config.json";
/// Module types, by the last part of their names.
const SUPPORTED: &[&str] = &["Transformer", "CLIPModel", "Pooling", "Normalize"];
/// What the modes of `1_Pooling/config.json` mean; all others are refused.
const MODES: [(&str, Pooling); 3] = [
    ("pooling_mode_cls_token", Pooling::First),
    ("pooling_mode_mean_tokens", Pooling::Mean),
    ("pooling_mode_max_tokens", Pooling::Max),
];
const MODE_PREFIX: &str = "pooling_mode_";

/// The modules of a folder.
pub(crate) struct Modules {
    /// Where `config.json`, weights and tokenizer are.
    pub(crate) transformer: PathBuf,
    /// None where the network pools by itself.
    pub(crate) pooling: Option<Pooling>,
    /// Whether the vector is scaled to unit length.
    pub(crate) normalise: bool,
    /// Tokens of a sentence at most.
    pub(crate) longest: Option<usize>,
    /// The files that were read, `modules.json` first.
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    r#type: String,
}

#[derive(Deserialize)]
struct Limit {
    max_seq_length: Option<usize>,
}

/// Where the `config.json` of a folder is: there, or where `modules.json` says.
pub(crate) fn transformer_folder(folder: &Path) -> Result<PathBuf> {
    Ok(Modules::read(folder)?.map_or_else(|| folder.to_path_buf(), |modules| modules.transformer))
}

impl Modules {
    /// Reads a folder; nothing if it has no `modules.json`.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join(MODULES);
        if !file.is_file() {
            return Ok(None);
        }
        let modules: Vec<Module> = parse_json(&read_file(&file)?, &file)?;
        let mut read = Self {
            transformer: folder.to_path_buf(),
            pooling: None,
            normalise: false,
            longest: None,
            files: vec![file.clone()],
        };
        for module in &modules {
            let home = module.home(folder, &file)?;
            match module.kind() {
                "Transformer" | "CLIPModel" => read.transformer = home,
                "Pooling" => read.read_pooling(home.join("config.json"))?,
                "Normalize" => read.normalise = true,
                other => {
                    return Err(EncoderError::Unsupported {
                        file,
                        key: "module type".to_owned(),
                        got: other.to_owned(),
                        supported: SUPPORTED,
                    });
                }
            }
        }
        read.read_limit(read.transformer.join(LIMIT))?;
        Ok(Some(read))
    }

    fn read_pooling(&mut self, file: PathBuf) -> Result<()> {
        let config: Map<String, Value> = parse_json(&read_file(&file)?, &file)?;
        let is_on = |value: &Value| value.as_bool() == Some(true);
        let on: Vec<&str> = config
            .iter()
            .filter(|(key, value)| key.starts_with(MODE_PREFIX) && is_on(value))
            .map(|(key, _)| key.as_str())
            .collect();
        let named = config.get("pooling_mode").and_then(Value::as_str);
        let pooling = match (on.as_slice(), named) {
            ([mode], _) => MODES.iter().find(|(name, _)| name == mode),
            ([], Some(mode)) => MODES
                .iter()
                .find(|(name, _)| name.strip_prefix(MODE_PREFIX).is_some_and(|it| it.starts_with(mode))),
            _ => None,
        };
        let Some((_, pooling)) = pooling else {
            return Err(EncoderError::Config {
                file,
                key: "pooling_mode".to_owned(),
                expected: "one of cls, mean and max".to_owned(),
                got: named.map_or_else(|| on.join(" and "), str::to_owned),
            });
        };
        self.pooling = Some(*pooling);
        self.files.push(file);
        Ok(())
    }

    fn read_limit(&mut self, file: PathBuf) -> Result<()> {
        if file.is_file() {
            let limit: Limit = parse_json(&read_file(&file)?, &file)?;
            self.longest = limit.max_seq_length;
            self.files.push(file);
        }
        Ok(())
    }
}

impl Module {
    /// `sentence_transformers.models.Pooling` is `Pooling`.
    fn kind(&self) -> &str {
        self.r#type.rsplit('.').next().unwrap_or(&self.r#type)
    }

    /// The module's folder, which lies in the model's: a bundle copies what is there and nothing else.
    fn home(&self, folder: &Path, file: &Path) -> Result<PathBuf> {
        let is_plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
        if Path::new(&self.path).components().all(is_plain) {
            return Ok(folder.join(&self.path));
        }
        Err(EncoderError::Config {
            file: file.to_path_buf(),
            key: "path".to_owned(),
            expected: "a folder in the model's folder".to_owned(),
            got: format!("\"{}\"", self.path),
        })
    }
}
