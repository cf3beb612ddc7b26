//! Every file in `configs/` is one that can be trained with.

use std::fs;
use std::path::PathBuf;

use aeir_train::TrainConfig;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

#[test]
fn all_configurations_parse() {
    let mut count = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        TrainConfig::from_toml(&text, &path.display().to_string()).unwrap();
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn the_demo_writes_out_the_defaults() {
    let text = fs::read_to_string(folder().join("demo.toml")).unwrap();
    assert_eq!(TrainConfig::from_toml(&text, "demo.toml").unwrap(), TrainConfig::default());
    // Every key stands in it, so that it can be read as the reference.
    let written: toml::Table = text.parse().unwrap();
    let all: toml::Table = TrainConfig::default().to_toml().unwrap().parse().unwrap();
    let keys = |table: &toml::Table| {
        table
            .iter()
            .flat_map(|(name, value)| match value.as_table() {
                Some(inner) => inner.keys().map(|key| format!("{name}.{key}")).collect::<Vec<_>>(),
                None => vec![name.clone()],
            })
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(keys(&written), keys(&all));
}
