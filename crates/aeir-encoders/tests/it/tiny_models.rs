//! The small random models, with tokenizers for those that read sentences.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::path;

/// All that read sentences.
pub(crate) const TEXT: [&str; 6] = ["bert", "distilbert", "xlm-roberta", "modernbert", "clip", "siglip"];

const WORDS: [&str; 12] =
    ["a", "dog", "cat", "on", "the", "beach", "red", "apple", "runs", "in", "two", "children"];
/// Ids of the words: no special token of any of the models has them.
const FIRST_WORD: u32 = 10;

/// First token, last token and padding of a model's sentences.
fn special(model: &str) -> (Option<u32>, u32, u32) {
    match model {
        "xlm-roberta" => (Some(0), 2, 1),
        "clip" => (Some(62), 63, 1),
        "siglip" => (None, 63, 1),
        _ => (Some(1), 2, 0),
    }
}

/// A tokenizer that splits at spaces and knows a dozen words.
pub(crate) fn tokenizer(model: &str) -> Value {
    let (first, last, padding) = special(model);
    let mut vocabulary = serde_json::Map::new();
    for (id, word) in (FIRST_WORD..).zip(WORDS) {
        vocabulary.insert(word.to_owned(), json!(id));
    }
    vocabulary.insert("[UNK]".to_owned(), json!(5));
    vocabulary.insert("[LAST]".to_owned(), json!(last));
    vocabulary.insert("[PAD]".to_owned(), json!(padding));
    let token = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let mut template = vec![json!({"Sequence": {"id": "A", "type_id": 0}}), token("[LAST]")];
    let mut specials = json!({"[LAST]": {"id": "[LAST]", "ids": [last], "tokens": ["[LAST]"]}});
    if let Some(first) = first {
        vocabulary.insert("[FIRST]".to_owned(), json!(first));
        template.insert(0, token("[FIRST]"));
        specials["[FIRST]"] = json!({"id": "[FIRST]", "ids": [first], "tokens": ["[FIRST]"]});
    }
    json!({
        "version": "1.0", "truncation": null, "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": padding, "pad_type_id": 0, "pad_token": "[PAD]"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing", "single": template, "pair": template,
                           "special_tokens": specials},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    })
}

/// A copy of a model with a tokenizer.
pub(crate) fn copy(model: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = path(&format!("parity/tiny-models/{model}"));
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "golden.safetensors" {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    write_json(&folder.path().join("tokenizer.json"), &tokenizer(model));
    folder
}

pub(crate) fn write_json(file: &Path, value: &Value) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, serde_json::to_vec(value).unwrap()).unwrap();
}

/// Changes one key of a JSON file; null takes it away.
pub(crate) fn set(file: &Path, pointer: &str, to: Value) {
    let mut value: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = value.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match to {
        Value::Null => drop(parent.remove(key)),
        to => drop(parent.insert(key.to_owned(), to)),
    }
    write_json(file, &value);
}
