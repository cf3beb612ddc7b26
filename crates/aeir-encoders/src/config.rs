//! `config.json` of a Hugging Face folder. A key that a file leaves out has the default of its architecture.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{EncoderError, Result};
use crate::ops::Activation;

/// The keys of one configuration, or of a part of it.
pub(crate) struct Config<'a> {
    file: &'a Path,
    /// Name of the part with a point, or nothing.
    part: String,
    keys: Map<String, Value>,
}

impl<'a> Config<'a> {
    /// The whole file.
    pub(crate) fn new(file: &'a Path, value: &Value) -> Result<Self> {
        Self::of(file, String::new(), value)
    }

    fn of(file: &'a Path, part: String, value: &Value) -> Result<Self> {
        match value {
            Value::Object(keys) => Ok(Self { file, part, keys: keys.clone() }),
            other => Err(EncoderError::Config {
                file: file.to_path_buf(),
                key: part.trim_end_matches('.').to_owned(),
                expected: "an object".to_owned(),
                got: other.to_string(),
            }),
        }
    }

    /// The part `name`, empty if the file leaves it out. `name_dict`, which early CLIP files have, overrides it.
    pub(crate) fn part(&self, name: &str) -> Result<Self> {
        let empty = Value::Object(Map::new());
        let value = self.keys.get(name).filter(|value| !value.is_null()).unwrap_or(&empty);
        let mut part = Self::of(self.file, format!("{}{name}.", self.part), value)?;
        if let Some(Value::Object(overrides)) = self.keys.get(&format!("{name}_dict")) {
            part.keys.extend(overrides.clone());
        }
        Ok(part)
    }

    /// The value of a key that is there and not null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// The error for a key whose value can't be used.
    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>) -> EncoderError {
        let got = self.keys.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
        EncoderError::Config {
            file: self.file.to_path_buf(),
            key: format!("{}{key}", self.part),
            expected: expected.into(),
            got,
        }
    }

    /// A size: 1 or more, and small enough that two of them can be multiplied.
    pub(crate) fn size(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .filter(|size| (1..=u64::from(u32::MAX)).contains(size))
                .and_then(|size| usize::try_from(size).ok())
                .ok_or_else(|| self.wrong(key, "a whole number of 1 or more")),
        }
    }

    /// How many layers there are. No published network has more than some hundred.
    pub(crate) fn layers(&self, key: &str, default: usize) -> Result<usize> {
        match self.size(key, default)? {
            layers if layers <= 10_000 => Ok(layers),
            _ => Err(self.wrong(key, "10000 or less")),
        }
    }

    /// A list of sizes, one a stage.
    pub(crate) fn sizes(&self, key: &str, default: &[usize]) -> Result<Vec<usize>> {
        let Some(value) = self.get(key) else { return Ok(default.to_vec()) };
        let size = |value: &Value| match value.as_u64() {
            Some(size @ 1..=0xffff) => usize::try_from(size).ok(),
            _ => None,
        };
        let sizes = value.as_array().filter(|sizes| (1..=16).contains(&sizes.len()));
        sizes
            .and_then(|sizes| sizes.iter().map(size).collect())
            .ok_or_else(|| self.wrong(key, "1 to 16 whole numbers of 1 to 65535"))
    }

    /// One of several words.
    pub(crate) fn word<'w>(&self, key: &str, words: &[&'w str], default: &'w str) -> Result<&'w str> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let found = words.iter().find(|word| value.as_str() == Some(word));
        found.copied().ok_or_else(|| self.wrong(key, words.join(" or ")))
    }

    /// The width of the network and its heads, which divide it.
    pub(crate) fn width(
        &self,
        key: &str,
        heads_key: &str,
        defaults: (usize, usize),
    ) -> Result<(usize, usize)> {
        let (width, heads) = (self.size(key, defaults.0)?, self.size(heads_key, defaults.1)?);
        match width % heads {
            0 => Ok((width, heads)),
            _ => Err(self.wrong(heads_key, format!("a divisor of `{key}` {width}"))),
        }
    }

    /// The id of a token.
    pub(crate) fn token(&self, key: &str) -> Result<Option<u32>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .map(Some)
                .ok_or_else(|| self.wrong(key, "a token id")),
        }
    }

    /// A positive number.
    pub(crate) fn positive(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| *number > 0.0 && number.is_finite())
                .ok_or_else(|| self.wrong(key, "a positive number")),
        }
    }

    /// A dropout probability.
    pub(crate) fn dropout(&self, key: &str, default: f32) -> Result<f32> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .map(|probability| probability as f32)
                .filter(|probability| (0.0..1.0).contains(probability))
                .ok_or_else(|| self.wrong(key, "a value in [0, 1)")),
        }
    }

    /// Yes or no.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// The activation that a key names.
    pub(crate) fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let name = match self.get(key) {
            None => default,
            Some(value) => value.as_str().ok_or_else(|| self.wrong(key, "the name of an activation"))?,
        };
        Activation::from_name(name, &format!("{}{key}", self.part), self.file)
    }
}
