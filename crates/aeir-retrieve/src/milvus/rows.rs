//! Entities by name, in requests whose answers a client reads.

use milvus::v2::types::{FieldData, QueryResults};

use super::connection::Connection;
use super::error::Result;
use super::expression::{after, among};
use super::layout::{ACTIVATED, DIGEST, ITEM, PLACE, Row, VECTOR};

/// Entities of one request, their names' bytes and their vectors' bytes, at most: answers above 4 MiB are refused by the client.
pub(super) const MOST_ROWS: usize = 2_000;
const MOST_NAMES: usize = 256 << 10;
const MOST_VECTORS: usize = 2 << 20;

/// What a collection knows of an item whose vector is not asked for.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) digest: i64,
    pub(super) place: i64,
}

impl Connection {
    /// The items of these names that are there, with their vectors.
    pub(super) fn rows(&self, names: &[&str]) -> Result<Vec<Row>> {
        const DOING: &str = "reading items";
        let mut found = Vec::with_capacity(names.len());
        let mut width = 0;
        let mut rest = names;
        while !rest.is_empty() {
            // The first answer tells how long a vector is.
            let most = if width == 0 { 16 } else { (MOST_VECTORS / (4 * width)).clamp(1, MOST_ROWS) };
            let (batch, behind) = rest.split_at(leading(rest, most));
            rest = behind;
            let results = self.query(DOING, &among(batch), &[ITEM, VECTOR, PLACE, ACTIVATED], None)?;
            let rows = self.read_rows(DOING, &results)?;
            width = rows.first().map_or(width, |row| row.vector.len());
            found.extend(rows);
        }
        Ok(found)
    }

    fn read_rows(&self, doing: &'static str, results: &QueryResults) -> Result<Vec<Row>> {
        let Some(items) = self.items_of(doing, results)? else { return Ok(Vec::new()) };
        let vectors = results.get_output_field(VECTOR).and_then(FieldData::as_float_vectors);
        let places = results.get_output_field(PLACE).and_then(FieldData::as_int64);
        let activated = results.get_output_field(ACTIVATED).and_then(FieldData::as_bool);
        match (vectors, places, activated) {
            (Some(vectors), Some(places), Some(activated))
                if [vectors.len(), places.len(), activated.len()] == [items.len(); 3] =>
            {
                let rows = items.iter().zip(vectors).zip(places.iter().zip(activated));
                let row = |((item, vector), (place, activated)): ((&String, &Vec<f32>), (&i64, &bool))| Row {
                    item: item.clone(),
                    vector: vector.clone(),
                    place: *place,
                    activated: *activated,
                };
                Ok(rows.map(row).collect())
            }
            _ => Err(self.unreadable(doing, "fields are missing")),
        }
    }

    /// What is known of the items of these names that are there.
    pub(super) fn known(&self, names: &[&str]) -> Result<Vec<(String, Known)>> {
        const DOING: &str = "comparing items";
        let results = self.query(DOING, &among(names), &[ITEM, DIGEST, PLACE], None)?;
        let Some(items) = self.items_of(DOING, &results)? else { return Ok(Vec::new()) };
        let digests = results.get_output_field(DIGEST).and_then(FieldData::as_int64);
        let places = results.get_output_field(PLACE).and_then(FieldData::as_int64);
        match (digests, places) {
            (Some(digests), Some(places)) if [digests.len(), places.len()] == [items.len(); 2] => {
                let known = digests
                    .iter()
                    .zip(places)
                    .map(|(digest, place)| Known { digest: *digest, place: *place });
                Ok(items.iter().cloned().zip(known).collect())
            }
            _ => Err(self.unreadable(DOING, "fields are missing")),
        }
    }

    /// Up to `most` names, in the server's order, behind `last`.
    pub(super) fn names_after(&self, last: Option<&str>, most: usize) -> Result<Vec<String>> {
        const DOING: &str = "listing the items";
        let expression = last.map_or_else(String::new, after);
        let results = self.query(DOING, &expression, &[ITEM], Some(most))?;
        Ok(self.items_of(DOING, &results)?.map(<[String]>::to_vec).unwrap_or_default())
    }

    /// The names in an answer; none where nothing was found.
    fn items_of<'r>(&self, doing: &'static str, results: &'r QueryResults) -> Result<Option<&'r [String]>> {
        if results.get_row_count() == 0 {
            return Ok(None);
        }
        let items = results.get_output_field(ITEM).and_then(FieldData::as_varchar);
        items.map(Some).ok_or_else(|| self.unreadable(doing, "items without names"))
    }
}

/// How many of the first names make one request.
pub(super) fn leading<T: AsRef<str>>(names: &[T], most: usize) -> usize {
    let mut bytes = 0;
    let fit = names.iter().take(most.min(MOST_ROWS)).take_while(|name| {
        bytes += name.as_ref().len() + 4;
        bytes <= MOST_NAMES
    });
    // A name alone always goes.
    fit.count().max(1).min(names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_bounded_in_names_and_in_bytes() {
        let names = vec!["x".repeat(96); 5_000];
        assert_eq!(leading(&names, usize::MAX), 2_000);
        assert_eq!(leading(&names, 7), 7);
        let long = vec!["x".repeat(100_000); 5];
        assert_eq!(leading(&long, 7), 2);
        assert_eq!(leading(&[&"x".repeat(1 << 20)], 7), 1);
        assert_eq!(leading::<&str>(&[], 7), 0);
    }
}
