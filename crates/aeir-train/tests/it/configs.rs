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
fn the_papers_configurations_have_whole_phases() {
    for (file, source, all) in [("flickr30k-to-coco.toml", 150, 165), ("coco-to-flickr30k.toml", 100, 115)] {
        let text = fs::read_to_string(folder().join(file)).unwrap();
        let config = TrainConfig::from_toml(&text, file).unwrap();
        assert_eq!(config.epochs, all);
        assert_eq!((config.adaptation.source_share * all as f64).floor() as usize, source);
        let rate = |epoch: usize| config.optimizer.learning_rate_at(epoch * 10, all * 10, all);
        assert_eq!((rate(0), rate(source - 1), rate(source)), (2e-4, 2e-4, 1e-4), "{file}");
        // Weights beside a mean, as published ones are beside a sum.
        let batch = config.batch_size as f64;
        assert!((config.aeir.semantic_weight * batch - 1.0).abs() < 1e-4, "{file}");
        assert!((config.aeir.structure_weight * batch - 1e-3).abs() < 1e-7, "{file}");
    }
}

/// The tables of `docs/porting.md` name keys and flags that there are.
#[test]
fn the_porting_tables_name_keys_that_exist() {
    let text = fs::read_to_string(folder().join("../docs/porting.md")).unwrap();
    let keys = TrainConfig::keys().unwrap();
    let mut named = 0;
    for line in text.lines().filter(|line| line.starts_with("| `--")) {
        let ours = line.split('|').nth(3).unwrap();
        for quoted in ours.split('`').skip(1).step_by(2) {
            let key = quoted.split(" = ").next().unwrap();
            assert!(key.starts_with("--") || keys.iter().any(|known| known == key), "`{key}` in {line}");
            if let Some((key, value)) = quoted.split_once(" = ") {
                TrainConfig::default().with(&[format!("{key}={value}")]).unwrap();
            }
            named += 1;
        }
    }
    assert!(named > 40, "{named}");
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
