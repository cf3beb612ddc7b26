//! Which items a search may find: by name, or by what their metadata say.

use std::collections::HashSet;

use rayon::prelude::*;
use serde_json::Value;

use super::{Index, Metadata};
use crate::bits::Bits;
use crate::{Error, Result};

/// What is asked of items; an item has to satisfy all of it.
///
/// # Example
/// ```
/// use aeir_retrieve::Filter;
/// let filter = Filter::default().with_equal("licence", "cc0").with_items(["a.jpg".to_string(), "b.jpg".to_string()]);
/// assert!(!filter.is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    items: Option<HashSet<String>>,
    equal: Vec<(String, String)>,
}

impl Filter {
    /// Only items of these names. Names that are not in the index select nothing.
    #[must_use]
    pub fn with_items(mut self, items: impl IntoIterator<Item = String>) -> Self {
        self.items = Some(items.into_iter().collect());
        self
    }

    /// Only items whose metadata have `value` under `key`: the text itself, a number or `true`, `false`, `null` as JSON writes it, or a
    /// list that holds it.
    #[must_use]
    pub fn with_equal(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.equal.push((key.into(), value.into()));
        self
    }

    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_none() && self.equal.is_empty()
    }

    /// The names it asks for.
    #[cfg(feature = "milvus")]
    pub(crate) fn items(&self) -> Option<&HashSet<String>> {
        self.items.as_ref()
    }

    /// Whether it lets nothing through, whatever there is.
    #[cfg(feature = "milvus")]
    pub(crate) fn selects_nothing(&self) -> bool {
        self.items.as_ref().is_some_and(HashSet::is_empty)
    }

    /// The keys and values it asks for.
    #[cfg(feature = "milvus")]
    pub(crate) fn equal(&self) -> &[(String, String)] {
        &self.equal
    }

    fn holds(&self, metadata: &Metadata) -> bool {
        self.equal.iter().all(|(key, value)| metadata.get(key).is_some_and(|found| is_equal(found, value)))
    }
}

fn is_equal(found: &Value, value: &str) -> bool {
    match found {
        Value::String(text) => text == value,
        Value::Array(list) => list.iter().any(|found| is_equal(found, value)),
        Value::Object(_) => false,
        Value::Number(_) | Value::Bool(_) | Value::Null => {
            serde_json::to_string(found).is_ok_and(|text| text == value)
        }
    }
}

/// Every text that is equal to a value, as [`Filter::with_equal`] compares them.
#[cfg(feature = "milvus")]
pub(crate) fn texts_of(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().flat_map(texts_of).collect(),
        Value::Object(_) => Vec::new(),
        Value::Number(_) | Value::Bool(_) | Value::Null => serde_json::to_string(value).into_iter().collect(),
    }
}

/// Items of one generation of an index that a search may find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// By row.
    pub(super) rows: Bits,
    /// Of which generation: the manifest's checksum.
    pub(super) generation: String,
}

impl Selection {
    /// How many items are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.count()
    }

    /// Whether nothing can be found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Index {
    /// The items that a filter lets through. Filters by metadata parse those of every item; a selection can be used many times.
    ///
    /// # Errors
    /// [`Error::NoMetadata`] where it asks for metadata and no item has any.
    pub fn select(&self, filter: &Filter) -> Result<Selection> {
        let mut rows = match &filter.items {
            Some(items) => {
                let mut rows = Bits::none(self.positions.live().len());
                let found = items.iter().filter_map(|item| self.row(self.position(item)?));
                found.for_each(|row| rows.insert(row));
                rows
            }
            None => self.positions.live().clone(),
        };
        if !filter.equal.is_empty() {
            if !self.is_empty() && !self.has_metadata() {
                return Err(Error::NoMetadata { folder: self.folder().to_path_buf() });
            }
            let holds = |row: usize| {
                let (part, row) = self.part_of(row);
                let metadata = part.and_then(|part| part.segment.metadata(row));
                metadata.is_some_and(|metadata| filter.holds(&metadata))
            };
            let candidates: Vec<usize> = rows.ones().collect();
            let others: Vec<usize> = candidates.into_par_iter().filter(|row| !holds(*row)).collect();
            others.into_iter().for_each(|row| rows.remove(row));
        }
        Ok(Selection { rows, generation: self.manifest().checksum.clone() })
    }

    /// All items but those at some positions; positions past the last are no items.
    #[must_use]
    pub fn select_without(&self, positions: &[usize]) -> Selection {
        let mut rows = self.positions.live().clone();
        positions.iter().filter_map(|position| self.row(*position)).for_each(|row| rows.remove(row));
        Selection { rows, generation: self.manifest().checksum.clone() }
    }

    /// What is in both selections.
    ///
    /// # Errors
    /// [`Error::OtherGeneration`] where one is of another generation of the index.
    pub fn intersection(&self, one: &Selection, other: &Selection) -> Result<Selection> {
        let mut both = Selection { rows: self.rows_of(one)?.clone(), generation: one.generation.clone() };
        both.rows.intersect(self.rows_of(other)?);
        Ok(both)
    }

    /// The rows of a selection of this generation.
    pub(super) fn rows_of<'a>(&self, selection: &'a Selection) -> Result<&'a Bits> {
        if selection.generation == self.manifest().checksum {
            return Ok(&selection.rows);
        }
        Err(Error::OtherGeneration { folder: self.folder().to_path_buf() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_as_they_are_written() {
        let metadata: Metadata = serde_json::from_str(
            r#"{"text": "cc0", "year": 2019, "half": 0.5, "free": true, "none": null, "tags": ["a", 7], "deep": {"a": 1}}"#,
        )
        .unwrap();
        let holds = |key: &str, value: &str| Filter::default().with_equal(key, value).holds(&metadata);
        for (key, value) in [
            ("text", "cc0"),
            ("year", "2019"),
            ("half", "0.5"),
            ("free", "true"),
            ("none", "null"),
            ("tags", "7"),
        ] {
            assert!(holds(key, value), "{key}");
        }
        for (key, value) in
            [("text", "CC0"), ("year", "2019.0"), ("missing", "null"), ("tags", "[\"a\",7]"), ("deep", "1")]
        {
            assert!(!holds(key, value), "{key}");
        }
        assert!(!Filter::default().with_equal("text", "cc0").with_equal("year", "1").holds(&metadata));
    }

    #[cfg(feature = "milvus")]
    #[test]
    fn texts_of_a_value_are_those_it_is_equal_to() {
        for (json, texts) in [
            (r#""cc0""#, vec!["cc0"]),
            ("2019", vec!["2019"]),
            ("null", vec!["null"]),
            (r#"["a", [7, true], {"b": 1}]"#, vec!["a", "7", "true"]),
            ("{}", vec![]),
        ] {
            let value: Value = serde_json::from_str(json).unwrap();
            assert_eq!(texts_of(&value), texts);
            assert!(texts.iter().all(|text| is_equal(&value, text)), "{json}");
        }
    }
}
