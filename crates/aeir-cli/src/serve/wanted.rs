//! What a request asks for, as JSON or as a form with an upload.

use std::collections::BTreeMap;

use aeir_retrieve::Filter;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::library::{ItemId, Volume};
use super::limits::{self, LimitFlags};
use super::refusal::Refusal;
use crate::flags::MOST_WEIGHT;

/// Terms that are taken away, at most.
const MOST_TERMS: usize = 16;
/// Items that a filter lists, at most.
const MOST_FILTERED: usize = 10_000;

/// A query: a sentence, an image, an item of the index, or several of them at once.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// What the images should show.
    #[schema(example = "a red car in the rain")]
    pub(super) text: Option<String>,
    /// An image to look for others like it: JPEG, PNG, WebP, GIF or BMP in base64, also as a `data:` URL.
    #[serde(default, deserialize_with = "from_base64")]
    #[schema(value_type = Option<String>, format = "byte")]
    pub(super) image: Option<Bytes>,
    /// The id of an indexed item, to look for others like it.
    pub(super) item: Option<String>,
    /// What the images should not show, at most 16 sentences.
    #[serde(default)]
    pub(super) minus: Vec<String>,
    /// How much image and item count beside the sentence, which counts 1 [default: 1].
    pub(super) image_weight: Option<f32>,
    /// How much each sentence of `minus` counts [default: 0.5].
    pub(super) minus_weight: Option<f32>,
    /// Number of results, at least 1 [default: 10]. More than there are items gives all of them.
    #[schema(minimum = 1)]
    pub(super) k: Option<usize>,
    /// What becomes of near-identical images [default: keep].
    pub(super) duplicates: Option<WantedDuplicates>,
    /// Images of at least this cosine are the same one [default: 0.95].
    pub(super) duplicate_threshold: Option<f32>,
    /// Without the index's hubness correction [default: false].
    #[serde(default)]
    pub(super) plain: bool,
    /// Only items that satisfy this.
    #[serde(default)]
    pub(super) filter: WantedFilter,
    /// Look at every item, even where the index has a graph for approximate search [default: false].
    #[serde(default)]
    pub(super) exact: bool,
    /// No results where the confidence is lower. Of sentences alone, and of an index with a query bank.
    pub(super) min_confidence: Option<f64>,
}

/// Which items a query may find; an item has to satisfy all of it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedFilter {
    /// Ids of items, at most 10,000.
    pub(super) items: Option<Vec<String>>,
    /// Values of their metadata by key, at most 16: texts, numbers, true or false. A list in the metadata has to hold the value.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub(super) equal: BTreeMap<String, Value>,
}

impl WantedFilter {
    fn check(&self) -> Result<(), Refusal> {
        let items = self.items.as_ref().map_or(0, Vec::len);
        for (name, got, most) in [("items", items, MOST_FILTERED), ("equal", self.equal.len(), MOST_TERMS)] {
            if got > most {
                return Err(Refusal::bad(format!("`filter.{name}`: expected at most {most}, got {got}")));
            }
        }
        match self.equal.iter().find(|(_, value)| value.is_array() || value.is_object()) {
            Some((key, _)) => Err(Refusal::bad(format!("`filter.equal.{key}`: expected a single value"))),
            None => Ok(()),
        }
    }

    /// As the index takes it. Ids that it does not have select nothing.
    pub(super) fn filter(&self, volume: &Volume) -> Filter {
        let mut filter = Filter::default();
        if let Some(ids) = &self.items {
            let index = &volume.engine.shelf.index;
            let known = ids.iter().filter_map(|id| index.item(volume.position(ItemId::parse(id)?)?));
            filter = filter.with_items(known.map(str::to_owned));
        }
        for (key, value) in &self.equal {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            filter = filter.with_equal(key, text);
        }
        filter
    }
}

/// What becomes of near-identical images among the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum WantedDuplicates {
    /// Each is a result of its own.
    Keep,
    /// The best of them is a result, the others are listed with it.
    Collapse,
}

fn from_base64<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| decoded(&text).map_err(serde::de::Error::custom)).transpose()
}

fn decoded(text: &str) -> Result<Bytes, String> {
    let text = text.trim();
    let encoded = match text.strip_prefix("data:").map(|rest| rest.split_once(";base64,")) {
        Some(Some((_, encoded))) => encoded,
        Some(None) => return Err("`image` is a data URL without base64".into()),
        None => text,
    };
    STANDARD.decode(encoded).map(Bytes::from).map_err(|error| format!("`image` is no base64: {error}"))
}

impl Wanted {
    /// From the body of a request, by its type.
    pub(super) async fn read(headers: &HeaderMap, bytes: Bytes) -> Result<Self, Refusal> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let essence = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => serde_json::from_slice(&bytes)
                .map_err(|error| Refusal::bad(format!("the body of the request can't be used: {error}"))),
            "multipart/form-data" => Self::from_form(kind, bytes).await,
            _ => Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "expected a body of type application/json or multipart/form-data",
            )
            .hint("add `-H 'Content-Type: application/json'`, or upload with `-F image=@FILE`")),
        }
    }

    /// A form has the fields of the JSON, `image` as a file, `minus` as often as wanted.
    async fn from_form(kind: &str, bytes: Bytes) -> Result<Self, Refusal> {
        let broken = |error: &dyn std::fmt::Display| Refusal::bad(format!("the form can't be read: {error}"));
        let mut request = Request::builder()
            .header(header::CONTENT_TYPE, kind)
            .body(Body::from(bytes))
            .map_err(|error| broken(&error))?;
        // The bytes were taken within our own limit.
        DefaultBodyLimit::disable().apply(&mut request);
        let mut form =
            Multipart::from_request(request, &()).await.map_err(|error| broken(&error.body_text()))?;
        let mut wanted = Self::default();
        while let Some(field) = form.next_field().await.map_err(|error| broken(&error.body_text()))? {
            let name = field.name().unwrap_or_default().to_owned();
            let bytes = field.bytes().await.map_err(|error| broken(&error.body_text()))?;
            wanted.set(&name, bytes)?;
        }
        Ok(wanted)
    }

    fn set(&mut self, name: &str, bytes: Bytes) -> Result<(), Refusal> {
        if name == "image" {
            // A form without a file sends an empty one.
            self.image = Some(bytes).filter(|bytes| !bytes.is_empty());
            return Ok(());
        }
        let text = String::from_utf8(bytes.to_vec())
            .map_err(|_| Refusal::bad(format!("field `{name}` is not UTF-8")))?;
        match name {
            "text" => self.text = Some(text).filter(|text| !text.is_empty()),
            "item" => self.item = Some(text).filter(|text| !text.is_empty()),
            "minus" => self.minus.push(text),
            "k" => self.k = Some(number(name, &text)?),
            "image_weight" => self.image_weight = Some(number(name, &text)?),
            "minus_weight" => self.minus_weight = Some(number(name, &text)?),
            "duplicate_threshold" => self.duplicate_threshold = Some(number(name, &text)?),
            "min_confidence" => self.min_confidence = Some(number(name, &text)?),
            "plain" => self.plain = number(name, &text)?,
            "exact" => self.exact = number(name, &text)?,
            "filter" => {
                self.filter = serde_json::from_str(&text)
                    .map_err(|error| Refusal::bad(format!("`filter`: {error}")))?;
            }
            "duplicates" => {
                self.duplicates = Some(match text.as_str() {
                    "keep" => WantedDuplicates::Keep,
                    "collapse" => WantedDuplicates::Collapse,
                    _ => return Err(Refusal::bad("`duplicates`: expected `keep` or `collapse`")),
                });
            }
            _ => return Err(Refusal::bad(format!("no field `{name}` in a query"))),
        }
        Ok(())
    }

    /// Refuses what makes no sense, whatever the index.
    pub(super) fn check(&mut self, limits: &LimitFlags) -> Result<(), Refusal> {
        self.text = self.text.take().map(|text| text.trim().to_owned());
        self.minus = self.minus.iter().map(|term| term.trim().to_owned()).collect();
        if self.text.as_deref() == Some("") || self.minus.iter().any(String::is_empty) {
            return Err(Refusal::bad("the sentence is empty").hint("say what the image shows"));
        }
        if self.text.is_none() && self.image.is_none() && self.item.is_none() {
            return Err(Refusal::bad("the query is empty").hint("give `text`, `image` or `item`"));
        }
        for sentence in self.text.iter().chain(&self.minus) {
            let (got, most) = (sentence.len() as u64, limits.max_text_bytes);
            if got > most {
                return Err(Refusal::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the sentence is too long: expected at most {most} bytes, got {got}"),
                )
                .limit(limits::TEXT, most));
            }
        }
        if self.minus.len() > MOST_TERMS {
            return Err(Refusal::bad(format!(
                "`minus`: expected at most {MOST_TERMS} sentences, got {}",
                self.minus.len()
            )));
        }
        self.check_numbers(limits)
    }

    fn check_numbers(&self, limits: &LimitFlags) -> Result<(), Refusal> {
        self.filter.check()?;
        match self.k {
            Some(0) => return Err(Refusal::bad("`k`: expected at least 1, got 0")),
            Some(k) if k > limits.max_results => {
                let most = limits.max_results;
                return Err(Refusal::bad(format!("`k`: expected at most {most}, got {k}"))
                    .limit(limits::RESULTS, most as u64));
            }
            _ => {}
        }
        for (name, weight) in [("image_weight", self.image_weight), ("minus_weight", self.minus_weight)] {
            if weight.is_some_and(|weight| !(weight > 0.0 && weight <= MOST_WEIGHT)) {
                let message = format!("`{name}`: expected a number above 0 and at most {MOST_WEIGHT}");
                return Err(Refusal::bad(message));
            }
        }
        if self.duplicate_threshold.is_some_and(|cosine| !(cosine > 0.0 && cosine <= 1.0)) {
            return Err(Refusal::bad("`duplicate_threshold`: expected a number above 0 and at most 1"));
        }
        if self.min_confidence.is_some_and(|share| !(share > 0.0 && share < 1.0)) {
            return Err(Refusal::bad("`min_confidence`: expected a number between 0 and 1"));
        }
        let of_more = self.image.is_some() || self.item.is_some() || !self.minus.is_empty();
        if self.min_confidence.is_some() && of_more {
            return Err(Refusal::bad("`min_confidence` is of queries by sentence")
                .hint("leave it out with `image`, `item` and `minus`"));
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Refusal>
where
    T::Err: std::fmt::Display,
{
    text.trim().parse().map_err(|error| Refusal::bad(format!("`{name}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_as_base64_or_data_urls() {
        assert_eq!(decoded("aGk=").unwrap(), "hi");
        assert_eq!(decoded("data:image/png;base64,aGk=").unwrap(), "hi");
        for wrong in ["aGk", "a b c", "data:image/png,hi", "é"] {
            assert!(decoded(wrong).is_err(), "{wrong}");
        }
    }
}
