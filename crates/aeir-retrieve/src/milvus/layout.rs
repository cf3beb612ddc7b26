//! What a collection is made of, and what it says of itself.

use std::collections::HashMap;
use std::path::PathBuf;

use milvus::v2::types::{
    CollectionDesc, CollectionSchema, DataType, FieldData, FieldSchema, IndexParam, IndexType, MetricType,
};
use serde_json::Value;

use super::error::Result;
use super::{MilvusError, MilvusPlace};
use crate::index::texts_of;
use crate::{Confidence, Correction, Error, GalleryCorrection, Index, Metadata};

pub(super) const ITEM: &str = "item";
pub(super) const VECTOR: &str = "vector";
pub(super) const METADATA: &str = "metadata";
pub(super) const TAGS: &str = "tags";
pub(super) const ACTIVATED: &str = "activated";
pub(super) const PLACE: &str = "place";
pub(super) const DIGEST: &str = "digest";

const FIELDS: [(&str, DataType); 7] = [
    (ITEM, DataType::VarChar),
    (VECTOR, DataType::FloatVector),
    (METADATA, DataType::Json),
    (TAGS, DataType::Array),
    (ACTIVATED, DataType::Bool),
    (PLACE, DataType::Int64),
    (DIGEST, DataType::Int64),
];

/// Properties of a collection.
const FORMAT: &str = "aeir.format";
const MODEL: &str = "aeir.model";
const DIMENSION: &str = "aeir.dimension";
const CORRECTION: &str = "aeir.correction";
const CONFIDENCE: &str = "aeir.confidence";
/// There while an upload is under way. Of two uploads at once the first to end takes it away.
pub(super) const UNFINISHED: &str = "aeir.unfinished";
const VERSION: &str = "1";

/// What Milvus takes at most: bytes of a text, bytes of a JSON value, entries of an array.
const LONGEST_TEXT: usize = 65_535;
const LONGEST_JSON: usize = 65_536;
const MOST_TAGS: usize = 4_096;

/// How a server goes about a search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MilvusIndexKind {
    /// It looks at every vector.
    #[default]
    Flat,
    /// It walks a graph of near neighbours, with Milvus's usual settings.
    Hnsw,
    /// What the server thinks best.
    Auto,
}

impl MilvusIndexKind {
    pub(super) fn parameters(self) -> IndexParam {
        let (kind, extra) = match self {
            Self::Flat => (IndexType::Flat, HashMap::new()),
            Self::Hnsw => {
                let settings = [("M", "16"), ("efConstruction", "200")];
                (IndexType::Hnsw, settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
            }
            Self::Auto => (IndexType::AutoIndex, HashMap::new()),
        };
        IndexParam::new().field_name(VECTOR).index_type(kind).metric_type(MetricType::Ip).extra_params(extra)
    }
}

/// What a collection says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    pub(super) model: String,
    /// Of the embeddings.
    pub(super) dimension: usize,
    pub(super) correction: Option<Correction>,
    pub(super) confidence: Option<Confidence>,
    pub(super) unfinished: bool,
}

impl Layout {
    /// Of a collection that is to hold an index.
    pub(super) fn of(index: &Index, correction: Option<&GalleryCorrection>) -> Result<Self> {
        Ok(Self {
            model: index.model_fingerprint().to_owned(),
            dimension: index.dimension(),
            correction: correction.map(GalleryCorrection::correction),
            confidence: Confidence::read(index)?,
            unfinished: true,
        })
    }

    /// Of a collection on a server.
    pub(super) fn read(place: &MilvusPlace, description: &CollectionDesc) -> Result<Self> {
        let foreign = |reason: String| MilvusError::Foreign { place: place.clone(), reason };
        let properties = description.get_properties();
        let property = |key: &str| properties.get(key).map(String::as_str);
        match property(FORMAT) {
            Some(VERSION) => {}
            Some(other) => return Err(foreign(format!("expected version {VERSION}, got {other}"))),
            None => return Err(foreign("it was not made by `aeir index --to`".to_owned())),
        }
        let unreadable = |key: &str| foreign(format!("its property `{key}` can't be read"));
        let correction = property(CORRECTION).map(|json| serde_json::from_str(json).ok());
        let confidence = property(CONFIDENCE).map(Confidence::from_json);
        let layout = Self {
            model: property(MODEL).ok_or_else(|| unreadable(MODEL))?.to_owned(),
            dimension: property(DIMENSION)
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| unreadable(DIMENSION))?,
            correction: correction.map(|read| read.ok_or_else(|| unreadable(CORRECTION))).transpose()?,
            confidence: confidence.map(|read| read.ok_or_else(|| unreadable(CONFIDENCE))).transpose()?,
            unfinished: property(UNFINISHED).is_some(),
        };
        layout.check_fields(description).map_err(foreign)?;
        Ok(layout)
    }

    fn check_fields(&self, description: &CollectionDesc) -> std::result::Result<(), String> {
        let fields = description.get_schema().get_fields();
        for (name, kind) in FIELDS {
            let field = fields
                .iter()
                .find(|field| field.get_name() == name)
                .ok_or_else(|| format!("it has no field `{name}`"))?;
            if field.get_data_type() != kind || field.is_primary_key() != (name == ITEM) {
                return Err(format!("its field `{name}` is of another kind"));
            }
            let got = field.get_dimension() as usize;
            if name == VECTOR && got != self.width() {
                return Err(format!("field `{name}`: expected {} numbers, got {got}", self.width()));
            }
        }
        Ok(())
    }

    /// Refuses another model.
    pub(super) fn check_model(&self, place: &MilvusPlace, fingerprint: &str) -> Result<()> {
        if fingerprint == self.model {
            return Ok(());
        }
        Err(Error::ModelMismatch {
            folder: PathBuf::from(place.to_string()),
            expected: self.model.clone(),
            got: fingerprint.to_owned(),
        }
        .into())
    }

    /// Numbers of a vector: the embedding, and what is taken off its scores.
    pub(super) fn width(&self) -> usize {
        self.dimension + usize::from(self.correction.is_some())
    }

    /// Whether all items have to be of one index: what was worked out from them does not hold for others.
    pub(super) fn is_of_one_index(&self) -> bool {
        self.correction.is_some() || self.confidence.is_some()
    }

    pub(super) fn schema(&self) -> CollectionSchema {
        FIELDS.into_iter().fold(CollectionSchema::new(), |schema, (name, kind)| {
            let field = FieldSchema::new().name(name).data_type(kind);
            let field = match name {
                ITEM => field.primary_key(true).max_length(LONGEST_TEXT as u32),
                VECTOR => field.dimension(u32::try_from(self.width()).unwrap_or(u32::MAX)),
                TAGS => field
                    .element_type(DataType::VarChar)
                    .max_capacity(MOST_TAGS as u32)
                    .max_length(LONGEST_TEXT as u32),
                _ => field,
            };
            schema.add_field(field)
        })
    }

    /// What the collection is to say of itself.
    pub(super) fn properties(&self) -> HashMap<String, String> {
        let mut properties = HashMap::from([
            (FORMAT.to_owned(), VERSION.to_owned()),
            (MODEL.to_owned(), self.model.clone()),
            (DIMENSION.to_owned(), self.dimension.to_string()),
        ]);
        let correction = self.correction.and_then(|correction| serde_json::to_string(&correction).ok());
        let confidence = self.confidence.as_ref().and_then(Confidence::to_json);
        let unfinished = self.unfinished.then(|| "true".to_owned());
        for (key, value) in [(CORRECTION, correction), (CONFIDENCE, confidence), (UNFINISHED, unfinished)] {
            properties.extend(value.map(|value| (key.to_owned(), value)));
        }
        properties
    }

    /// Properties that another layout has and this one has not.
    pub(super) fn stale(&self, other: &Self) -> Vec<String> {
        let mine = self.properties();
        other.properties().into_keys().filter(|key| !mine.contains_key(key)).collect()
    }

    /// A query as it is sent: 1 behind it has the penalties count, 0 leaves them out.
    pub(super) fn query(&self, query: &[f32], corrected: bool) -> Vec<f32> {
        let switch = self.correction.map(|_| if corrected { 1.0 } else { 0.0 });
        query.iter().copied().chain(switch).collect()
    }

    /// Item `i` of an index as it is kept.
    pub(super) fn entity(
        &self,
        index: &Index,
        i: usize,
        correction: Option<&GalleryCorrection>,
    ) -> Result<Entity> {
        let item = index.item(i).unwrap_or_default().to_owned();
        let penalty = correction.map(|correction| -correction.penalties().get(i).copied().unwrap_or(0.0));
        let vector: Vec<f32> = index.embedding(i).unwrap_or_default().into_iter().chain(penalty).collect();
        let metadata = index.metadata(i).unwrap_or_default();
        let tags: Vec<String> = tags_of(&metadata);
        let metadata_bytes = serde_json::to_string(&metadata).map_or(0, |text| text.len());
        let longest_tag = tags.iter().map(String::len).max().unwrap_or(0);
        for (what, got, limit) in [
            ("bytes of the name", item.len(), LONGEST_TEXT),
            ("bytes of the metadata", metadata_bytes, LONGEST_JSON),
            ("values in the metadata", tags.len(), MOST_TAGS),
            ("bytes of a value in the metadata, with its key", longest_tag, LONGEST_TEXT),
        ] {
            if got > limit {
                return Err(MilvusError::TooLong { item: shortened(&item), what, limit, got });
            }
        }
        let activated = correction.is_some_and(|correction| correction.is_dynamic() && correction.applies(i));
        Ok(Entity {
            digest: digest(&vector, &metadata, activated),
            item,
            vector,
            metadata,
            tags,
            activated,
            place: 0,
        })
    }
}

/// One item on its way to a server.
pub(super) struct Entity {
    pub(super) item: String,
    pub(super) vector: Vec<f32>,
    metadata: Metadata,
    tags: Vec<String>,
    activated: bool,
    pub(super) place: i64,
    pub(super) digest: i64,
}

impl Entity {
    /// About as many as it takes on the wire.
    pub(super) fn bytes(&self) -> usize {
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 4).sum();
        // The metadata are about what the tags are.
        4 * self.vector.len() + self.item.len() + 2 * tags + 32
    }
}

/// Entities as columns.
pub(super) fn columns(entities: Vec<Entity>) -> Vec<FieldData> {
    let count = entities.len();
    let (mut items, mut vectors) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let (mut metadata, mut tags) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let (mut activated, mut places, mut digests) = (Vec::new(), Vec::new(), Vec::new());
    for entity in entities {
        items.push(entity.item);
        vectors.push(entity.vector);
        metadata.push(Value::Object(entity.metadata));
        tags.push(entity.tags);
        activated.push(entity.activated);
        places.push(entity.place);
        digests.push(entity.digest);
    }
    vec![
        FieldData::varchar(ITEM, items),
        FieldData::float_vector(VECTOR, vectors),
        FieldData::json(METADATA, metadata),
        FieldData::array_varchar(TAGS, tags),
        FieldData::boolean(ACTIVATED, activated),
        FieldData::int64(PLACE, places),
        FieldData::int64(DIGEST, digests),
    ]
}

/// An item as a search needs it.
pub(super) struct Row {
    pub(super) item: String,
    pub(super) vector: Vec<f32>,
    pub(super) place: i64,
    pub(super) activated: bool,
}

/// A key and a value as one text. What a key may hold of `=` is written otherwise, so that no two pairs give the same.
pub(super) fn tag(key: &str, value: &str) -> String {
    format!("{}={value}", key.replace('%', "%25").replace('=', "%3D"))
}

fn tags_of(metadata: &Metadata) -> Vec<String> {
    let texts =
        metadata.iter().flat_map(|(key, value)| texts_of(value).into_iter().map(move |text| tag(key, &text)));
    let mut tags: Vec<String> = texts.collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

fn digest(vector: &[f32], metadata: &Metadata, activated: bool) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    vector.iter().for_each(|value| hasher.update(&value.to_le_bytes()));
    hasher.update(serde_json::to_string(metadata).unwrap_or_default().as_bytes());
    hasher.update(&[u8::from(activated)]);
    i64::from(hasher.finalize())
}

/// The beginning of a long text, for a message.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}..", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pairs_of_key_and_value_have_the_same_tag() {
        assert_eq!(tag("licence", "cc0"), "licence=cc0");
        let pairs = [("a=b", "c"), ("a", "b=c"), ("a%3Db", "c"), ("a%", "3Db=c"), ("", "a=b=c")];
        let tags: std::collections::HashSet<String> =
            pairs.iter().map(|(key, value)| tag(key, value)).collect();
        assert_eq!(tags.len(), pairs.len());
    }

    #[test]
    fn a_switch_stands_behind_queries_of_corrected_collections_alone() {
        let plain =
            Layout { model: "m".into(), dimension: 2, correction: None, confidence: None, unfinished: false };
        let corrected = Layout { correction: Some(Correction::Csls { k: 3 }), ..plain.clone() };
        assert_eq!((plain.width(), plain.query(&[0.5, 2.0], true)), (2, vec![0.5, 2.0]));
        assert_eq!((corrected.width(), corrected.query(&[0.5, 2.0], true)), (3, vec![0.5, 2.0, 1.0]));
        assert_eq!(corrected.query(&[0.5, 2.0], false), [0.5, 2.0, 0.0]);
        assert_eq!(plain.stale(&corrected), [CORRECTION]);
    }
}
