//! What becomes of features before the towers see them.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// How features are brought to one scale. In files `true` and `false` stand for the first two as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standardise {
    /// All domains get the mean and deviation of the source.
    #[default]
    None,
    /// Each domain gets its own.
    Standardise,
    /// The features of each domain are decorrelated as well: ZCA of its own correlations, shrunk as Ledoit and Wolf do.
    Whiten,
}

impl Standardise {
    const NAMES: [(&'static str, Self); 3] =
        [("none", Self::None), ("standardise", Self::Standardise), ("whiten", Self::Whiten)];

    /// As in files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Standardise => "standardise",
            Self::Whiten => "whiten",
        }
    }

    /// Whether each domain has statistics of its own, so that the target's sets are needed.
    #[must_use]
    pub fn is_per_domain(self) -> bool {
        self != Self::None
    }

    /// The one of both that does more.
    #[must_use]
    pub fn or_more(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, other) => other,
            (Self::Standardise, Self::Whiten) => Self::Whiten,
            (own, _) => own,
        }
    }
}

impl<'de> Deserialize<'de> for Standardise {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = Standardise;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("`none`, `standardise` or `whiten`")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Standardise, E> {
                Ok(if value { Standardise::Standardise } else { Standardise::None })
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Standardise, E> {
                let found = Standardise::NAMES.iter().find(|(name, _)| *name == value);
                found.map(|(_, it)| *it).ok_or_else(|| E::invalid_value(Unexpected::Str(value), &self))
            }
        }

        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TrainConfig;

    #[test]
    fn words_and_truth_values_are_read_and_words_written() {
        for (text, expected) in [
            ("true", Standardise::Standardise),
            ("false", Standardise::None),
            ("\"none\"", Standardise::None),
            ("\"standardise\"", Standardise::Standardise),
            ("\"whiten\"", Standardise::Whiten),
        ] {
            let config = TrainConfig::from_toml(&format!("standardise = {text}"), "test").unwrap();
            assert_eq!(config.standardise, expected);
            let written = config.to_toml().unwrap();
            assert!(written.contains(&format!("standardise = \"{}\"", expected.as_str())), "{written}");
        }
        for text in ["\"whitten\"", "1"] {
            let error = TrainConfig::from_toml(&format!("standardise = {text}"), "test").unwrap_err();
            assert!(error.to_string().contains("`none`, `standardise` or `whiten`"), "{error}");
        }
    }

    #[test]
    fn the_larger_of_two_wins() {
        let [none, standardise, whiten] = Standardise::NAMES.map(|(_, it)| it);
        assert_eq!(none.or_more(standardise), standardise);
        assert_eq!(whiten.or_more(standardise), whiten);
        assert_eq!(standardise.or_more(whiten), whiten);
        assert_eq!(standardise.or_more(none), standardise);
    }
}
