//! Whether a place is a collection of a Milvus server, and whether this build can go there.

use std::path::Path;

use crate::failure::CliError;

/// The text of a place that begins as a collection's does.
pub(crate) fn collection_at(place: &Path) -> Option<&str> {
    place.to_str().filter(|text| text.starts_with("milvus:") || text.starts_with("milvuss:"))
}

/// Whether a path is a collection's, also where it was made absolute as if it were a folder's.
pub(crate) fn is_within_collection(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "milvus:" || part.as_os_str() == "milvuss:")
}

/// Says how to get a build that can.
#[cfg(not(feature = "milvus"))]
pub(crate) fn without_milvus() -> anyhow::Error {
    CliError::Usage {
        message: "this aeir was built without Milvus: it can't use collections".into(),
        hint: "build one that can: `cargo build --release -p aeir-cli --features milvus`".into(),
    }
    .into()
}

/// A collection holds vectors: what else an index would tell is asked for.
#[cfg(feature = "milvus")]
pub(crate) fn refused(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    CliError::Usage { message: message.into(), hint: hint.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_are_told_from_folders() {
        for place in ["milvus://h:1/c", "milvuss://h/c", "milvus:h"] {
            assert_eq!(collection_at(Path::new(place)), Some(place));
            let absolute = Path::new("/home").join(place);
            assert_eq!(is_within_collection(&absolute), place.contains('/'), "{place}");
        }
        for place in ["index", "milvus", "./milvus:x", "/milvus://h/c"] {
            assert_eq!(collection_at(Path::new(place)), None);
        }
    }
}
