//! Which files of a model a backbone needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Deserialize;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// Files beside the weights; most models lack some.
#[cfg(feature = "hub")]
const OTHERS: [&str; 10] = [
    CONFIG,
    WEIGHTS_INDEX,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];
/// More than any index of a backbone has.
const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// Of a repository's files those to fetch, in order; weights in other formats are left out.
#[cfg(feature = "hub")]
pub(super) fn needed_files<'a>(all: &[&'a str]) -> Vec<&'a str> {
    let whole = all.contains(&WEIGHTS);
    let needed = |file: &&&str| match **file {
        WEIGHTS => true,
        WEIGHTS_INDEX => !whole,
        file if is_shard(file) => !whole,
        file => OTHERS.contains(&file) || is_module(file),
    };
    let mut files: Vec<&str> = all.iter().filter(needed).copied().collect();
    // Small files first: what is wrong with a configuration shows before a long download.
    files.sort_by_key(|file| (file.ends_with(".safetensors"), *file));
    files
}

/// What stands in the way of using a repository.
#[cfg(feature = "hub")]
pub(super) fn lacking(all: &[&str]) -> Option<&'static str> {
    if !all.contains(&CONFIG) {
        return Some(CONFIG);
    }
    (!all.contains(&WEIGHTS) && !all.contains(&WEIGHTS_INDEX)).then_some(WEIGHTS)
}

/// What a folder lacks to be a backbone: its configuration, its weights, or some of their parts.
pub(super) fn missing_files(folder: &Path) -> Vec<String> {
    let there = |name: &str| folder.join(name).is_file();
    let mut missing = Vec::new();
    if !there(CONFIG) {
        missing.push(CONFIG.to_owned());
    }
    if there(WEIGHTS) {
        return missing;
    }
    match shards(&folder.join(WEIGHTS_INDEX)) {
        Some(shards) => missing.extend(shards.into_iter().filter(|shard| !there(shard))),
        None => missing.push(WEIGHTS.to_owned()),
    }
    missing
}

/// The parts that an index names; none where it is not there or no index.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
    if fs::metadata(index).ok()?.len() > MAX_INDEX_BYTES {
        return None;
    }
    let index: Index = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    (!shards.is_empty() && shards.iter().all(|shard| is_shard(shard))).then_some(shards)
}

/// `model-00001-of-00002.safetensors`.
fn is_shard(file: &str) -> bool {
    let numbers = file.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(number, count)| {
        [number, count].iter().all(|part| part.len() == 5 && part.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// `1_Pooling/config.json`, `2_Dense/model.safetensors`: a module of sentence-transformers.
#[cfg(feature = "hub")]
fn is_module(file: &str) -> bool {
    let Some((folder, file)) = file.split_once('/') else { return false };
    let named = folder.split_once('_').is_some_and(|(number, name)| {
        !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    named && (file == CONFIG || file == WEIGHTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "hub")]
    #[test]
    fn only_what_a_backbone_needs() {
        let all = [
            ".gitattributes",
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.safetensors",
            "onnx/model.onnx",
            "openvino/config.json",
            "pytorch_model.bin",
            "tokenizer.json",
            "../config.json",
            "1_Pooling/../config.json",
        ];
        assert_eq!(
            needed_files(&all),
            ["1_Pooling/config.json", "config.json", "tokenizer.json", "model.safetensors"]
        );
        let sharded =
            ["config.json", "model-00001-of-00002.safetensors", "model-1-of-2.safetensors", WEIGHTS_INDEX];
        assert_eq!(
            needed_files(&sharded),
            ["config.json", WEIGHTS_INDEX, "model-00001-of-00002.safetensors"]
        );
        assert_eq!(lacking(&all), None);
        assert_eq!(lacking(&["config.json", "pytorch_model.bin"]), Some(WEIGHTS));
        assert_eq!(lacking(&["model.safetensors"]), Some(CONFIG));
    }

    #[test]
    fn folders_that_are_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(missing_files(folder.path()), [CONFIG, WEIGHTS]);
        write(CONFIG, "{}");
        write(
            WEIGHTS_INDEX,
            r#"{"weight_map": {"a": "../../other", "b": "model-00001-of-00002.safetensors"}}"#,
        );
        assert_eq!(missing_files(folder.path()), [WEIGHTS], "an index that leads elsewhere is none");
        write(
            WEIGHTS_INDEX,
            r#"{"weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}}"#,
        );
        write("model-00001-of-00002.safetensors", "");
        assert_eq!(missing_files(folder.path()), ["model-00002-of-00002.safetensors"]);
        write(WEIGHTS, "");
        assert!(missing_files(folder.path()).is_empty());
    }
}
