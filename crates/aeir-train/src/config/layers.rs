//! The layers of a configuration: defaults, a file, single keys on top; and what an unknown key may have meant.

use aeir_encoders::Head;
use toml::{Table, Value};

use super::{GroupConfig, Selection, SourceLossKind, TrainConfig};
use crate::error::{Result, TrainError};

/// What errors call the keys that were set one by one.
const ORIGIN: &str = "--set";

impl TrainConfig {
    /// The settings of a file with single keys on top, each as `key=value` with a dotted key.
    ///
    /// A value is TOML; what is not (`method=dann`) is a text. A key may be a whole section, as an inline table. Nothing is
    /// checked but keys and types: see [`TrainConfig::resolved`].
    ///
    /// # Errors
    /// When an assignment has no `=`, names no setting (the nearest is told) or has a value of the wrong type.
    ///
    /// # Example
    /// ```
    /// use aeir_train::TrainConfig;
    /// let config = TrainConfig::default().with(&["optimizer.learning_rate=1e-4", "method=dann"])?;
    /// assert_eq!(config.optimizer.learning_rate, 1e-4);
    /// assert!(config.with(&["optimizer.lerning_rate=1"]).is_err());
    /// # Ok::<(), aeir_train::TrainError>(())
    /// ```
    pub fn with<S: AsRef<str>>(&self, assignments: &[S]) -> Result<Self> {
        if assignments.is_empty() {
            return Ok(self.clone());
        }
        let mut table = self.table()?;
        let known = Self::keys()?;
        let mut config = self.clone();
        for assignment in assignments {
            let assignment = assignment.as_ref();
            assign(&mut table, assignment, &known)?;
            // After each, so that the one at fault can be named.
            config = table.clone().try_into().map_err(|error: toml::de::Error| {
                let nearest = nearest_in_message(error.message());
                let message = told_with_nearest(error.message().trim_end(), nearest.as_deref());
                TrainError::ConfigSyntax { file: format!("{ORIGIN} {assignment}"), message }
            })?;
        }
        Ok(config)
    }

    /// The dotted names of all settings, sections included.
    ///
    /// # Errors
    /// When a value has no TOML form; none has.
    pub fn keys() -> Result<Vec<String>> {
        // Every setting that may be absent is given, so that its name is known.
        let mut config = Self::default();
        config.model.head = Some(Head::Cosine);
        config.source_loss.kind = Some(SourceLossKind::InfoNce);
        config.source_loss.all_negatives_share = Some(0.0);
        config.source_loss.pooled_weight = Some(1.0);
        config.selection = Some(Selection::SourceValidation);
        config.optimizer.groups = vec![GroupConfig::default()];
        let mut keys = Vec::new();
        collect(&config.table()?, "", &mut keys);
        Ok(keys)
    }

    /// The dotted names of the settings in which two configurations differ, with both values.
    ///
    /// # Errors
    /// When a value has no TOML form; none has.
    pub fn differences(&self, other: &Self) -> Result<Vec<Difference>> {
        Ok(differences(&self.table()?, &other.table()?))
    }

    /// The settings that were changed from their defaults and that the method does not look at.
    ///
    /// # Errors
    /// When a value has no TOML form; none has.
    pub fn without_effect(&self) -> Result<Vec<String>> {
        let changed = Self::default().differences(self)?.into_iter().map(|difference| difference.key);
        Ok(changed.filter(|key| !self.method.looks_at(key)).collect())
    }

    fn table(&self) -> Result<Table> {
        // By way of the text, in which a single-precision number has the digits that were given.
        self.to_toml()?.parse().map_err(|error: toml::de::Error| refused(error.to_string()))
    }
}

/// A setting in which two configurations differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Dotted key.
    pub key: String,
    /// Its value in the first as TOML; none where it is not given.
    pub was: Option<String>,
    /// Its value in the second.
    pub is: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "not given".into());
        write!(formatter, "`{}` was {} and is {}", self.key, shown(&self.was), shown(&self.is))
    }
}

/// The settings in which two tables differ.
pub(crate) fn differences(was: &Table, is: &Table) -> Vec<Difference> {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    leaves(was, "", &mut old);
    leaves(is, "", &mut new);
    let mut keys: Vec<&String> = old.iter().chain(&new).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let value = |of: &[(String, String)], key: &String| {
        of.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    };
    keys.into_iter()
        .map(|key| Difference { key: key.clone(), was: value(&old, key), is: value(&new, key) })
        .filter(|difference| difference.was != difference.is)
        .collect()
}

fn leaves(table: &Table, prefix: &str, found: &mut Vec<(String, String)>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Table(inner) => leaves(inner, &format!("{key}."), found),
            value => found.push((key, value.to_string())),
        }
    }
}

fn collect(table: &Table, prefix: &str, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        if let Value::Table(inner) = value {
            collect(inner, &format!("{key}."), keys);
        }
        keys.push(key);
    }
}

fn assign(table: &mut Table, assignment: &str, known: &[String]) -> Result<()> {
    let Some((key, text)) = assignment.split_once('=') else {
        return Err(refused(format!("`{assignment}` has no `=`: expected KEY=VALUE, such as epochs=10")));
    };
    let (key, text) = (key.trim(), text.trim());
    if !known.iter().any(|name| name == key) {
        return Err(refused(told_with_nearest(&format!("unknown key `{key}`"), nearest(key, known))));
    }
    let value = parsed(text);
    let (path, name) = key.rsplit_once('.').map_or((None, key), |(path, name)| (Some(path), name));
    let mut section = table;
    for part in path.iter().flat_map(|path| path.split('.')) {
        let inner = section.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = inner else {
            return Err(refused(format!("`{part}` in `{key}` is a value, not a section")));
        };
        section = inner;
    }
    section.insert(name.to_owned(), value);
    Ok(())
}

/// A TOML value; what is none is a text.
fn parsed(text: &str) -> Value {
    let document: std::result::Result<Table, _> = format!("value = {text}").parse();
    let whole = document.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    whole.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn refused(message: String) -> TrainError {
    TrainError::ConfigSyntax { file: ORIGIN.into(), message }
}

/// The message in a user's words, with the key that was probably meant.
pub(super) fn told_with_nearest(message: &str, nearest: Option<&str>) -> String {
    let message = in_words(message);
    nearest.map_or_else(|| message.clone(), |key| format!("{message}\n  did you mean `{key}`?"))
}

/// What the parser says it expected, by the names of types, in words.
const EXPECTED: [(&str, &str); 9] = [
    ("expected usize", "expected a whole number, 0 or more"),
    ("expected u64", "expected a whole number, 0 or more"),
    ("expected u32", "expected a whole number, 0 or more"),
    ("expected f64", "expected a number"),
    ("expected f32", "expected a number"),
    ("expected a boolean", "expected true or false"),
    ("expected a sequence", "expected a list"),
    ("expected struct ", "expected a section of settings"),
    ("expected enum ", "expected one of the names that the setting has"),
];

/// The message without names of types.
fn in_words(message: &str) -> String {
    let found =
        EXPECTED.iter().find_map(|(type_name, words)| Some((message.find(type_name)?, type_name, words)));
    let Some((at, type_name, words)) = found else { return message.to_owned() };
    let (before, rest) = message.split_at(at);
    let rest = rest.get(type_name.len()..).unwrap_or_default();
    // Of a structure the name follows.
    let end = if type_name.ends_with(' ') { rest.find(char::is_whitespace).unwrap_or(rest.len()) } else { 0 };
    format!("{before}{words}{}", rest.get(end..).unwrap_or_default())
}

/// The known dotted key nearest to an unknown one, which may lack its section.
fn nearest<'a>(unknown: &str, known: &'a [String]) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |key: &str| {
        let whole = strsim::damerau_levenshtein(unknown, key);
        if unknown.contains('.') {
            whole
        } else {
            whole.min(strsim::damerau_levenshtein(unknown, &last(key)))
        }
    };
    known
        .iter()
        // Of equally near ones that in the fewest sections.
        .map(|key| (distance(key), key.matches('.').count(), key.as_str()))
        .min()
        .filter(|(distance, ..)| *distance <= unknown.len() / 2)
        .map(|(.., key)| key)
}

/// The known key nearest to the unknown one of a parser's message.
pub(super) fn nearest_in_message(message: &str) -> Option<String> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len() / 2)
        .map(|(_, known)| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MethodName;
    use crate::config::Standardise;

    fn set(assignments: &[&str]) -> Result<TrainConfig> {
        TrainConfig::default().with(assignments)
    }

    #[test]
    fn values_of_every_kind_and_the_last_wins() {
        let config = set(&[
            "epochs=3",
            "method = dann",
            "source_loss.kind=\"triplet-all\"",
            "optimizer.clip_norm=2",
            "standardise=true",
            "model.head_options.scan.pooling=mean",
            "optimizer.groups=[{ pattern = \"encoder.image.*\", frozen = true }]",
            "epochs=4",
        ])
        .unwrap();
        assert_eq!(
            (config.epochs, config.method, config.standardise),
            (4, MethodName::Dann, Standardise::Standardise)
        );
        assert_eq!(config.source_loss.kind, Some(SourceLossKind::TripletAll));
        assert_eq!(config.optimizer.clip_norm, 2.0);
        assert!(config.optimizer.groups[0].frozen);
        let section = set(&["optimizer={ learning_rate = 0.5 }"]).unwrap();
        assert_eq!(section.optimizer.learning_rate, 0.5);
    }

    #[test]
    fn what_can_not_be_set_is_told_with_the_nearest_key() {
        for (assignment, expected) in [
            ("learnig_rate=1", "did you mean `optimizer.learning_rate`?"),
            ("optimiser.momentum=1", "did you mean `optimizer.momentum`?"),
            ("sed=2", "did you mean `seed`?"),
            ("epochs", "has no `=`"),
            ("epochs=many", "expected a whole number, 0 or more"),
            ("epochs=-1", "expected a whole number, 0 or more"),
            ("optimizer.learning_rate=fast", "expected a number"),
            ("standardise=1", "expected `none`, `standardise` or `whiten`"),
            ("adapt.reject_noise=1", "expected true or false"),
            ("optimizer=3", "expected a section of settings"),
            ("optimizer.groups=3", "expected a list"),
            ("method=dan", "unknown variant `dan`"),
            ("optimizer={ learnig_rate = 0.5 }", "did you mean `learning_rate`?"),
            ("nonsense_of_all_kinds=1", "unknown key `nonsense_of_all_kinds`"),
        ] {
            let error = set(&[assignment]).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("--set"), "{assignment}: {error}");
            assert!(!["usize", "f64", "struct", "enum"].iter().any(|name| error.contains(name)), "{error}");
        }
    }

    #[test]
    fn settings_of_other_methods_are_without_effect() {
        let of = |assignments: &[&str]| set(assignments).unwrap().without_effect().unwrap();
        assert_eq!(of(&["method=dann", "adapt.teacher_decay=0.9", "epochs=3"]), ["adapt.teacher_decay"]);
        assert_eq!(of(&["method=adapt", "adapt.teacher_decay=0.9", "aeir.neighbours=4"]), [""; 0]);
        assert_eq!(
            of(&["method=adapt", "aeir.semantic_weight=0.5", "cca.regularisation=1"]),
            ["aeir.semantic_weight", "cca.regularisation"]
        );
        assert_eq!(of(&["method=source-only", "adaptation.weight=2"]), ["adaptation.weight"]);
        assert_eq!(of(&["method=mmd", "labelled_share=0.5"]), ["labelled_share"]);
    }

    #[test]
    fn every_key_can_be_set_to_its_own_default() {
        let table = TrainConfig::default().table().unwrap();
        let mut all = Vec::new();
        leaves(&table, "", &mut all);
        for (key, value) in all {
            let same = set(&[&format!("{key}={value}")]).unwrap();
            assert_eq!(same, TrainConfig::default(), "{key}={value}");
        }
    }

    #[test]
    fn differences_are_named_with_both_values() {
        let other = set(&["seed=2", "model.head=saf", "optimizer.learning_rate=0.1"]).unwrap();
        let found = TrainConfig::default().differences(&other).unwrap();
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "`model.head` was not given and is \"saf\"",
                "`optimizer.learning_rate` was 0.002 and is 0.1",
                "`seed` was 1 and is 2"
            ]
        );
        assert!(other.differences(&other).unwrap().is_empty());
    }
}
