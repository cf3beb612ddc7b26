//! Whatever chooses the model, it can't see which target sentence belongs to which image.

use serde_json::Value;

use crate::{Scene, absolute_record, fixtures, lines};

/// Pairs of the target's own, marked `train` and `test`; with `turn` every caption goes to another image of its split.
fn target(turn: usize) -> Vec<String> {
    let folder = fixtures("datasets/openclipart");
    let records: Vec<Value> = lines(&folder.join("test.jsonl"), 60, |_| true)
        .iter()
        .map(|line| serde_json::from_str(&absolute_record(&folder, line)).unwrap())
        .collect();
    let of_split = |name: &str, records: &[Value]| -> Vec<String> {
        (0..records.len())
            .map(|row| {
                let mut record = records[row].clone();
                let other = &records[(row + turn) % records.len()];
                for key in ["caption", "captions"] {
                    if let Some(captions) = other.get(key) {
                        record[key] = captions.clone();
                    }
                }
                record["split"] = name.into();
                record.to_string()
            })
            .collect()
    };
    let (train, test) = records.split_at(40);
    [of_split("train", train), of_split("test", test)].concat()
}

#[test]
fn target_labels_can_not_choose_the_model() {
    let scene = Scene::new();
    scene.write_lines("right.jsonl", &target(0));
    scene.write_lines("wrong.jsonl", &target(7));
    assert!(scene.read("right.jsonl") != scene.read("wrong.jsonl"));
    for selection in
        ["target-similarity", "target-cycle", "target-entropy", "target-diversity", "target-information"]
    {
        let run = |data: &str| {
            let output = format!("{selection}-{data}");
            scene
                .run(&format!(
                    "train --source source.jsonl --target-images {data}.jsonl --target-sentences {data}.jsonl \
                     --set selection={selection} --set target_held_out=0.25 --set patience=4 --epochs 8 \
                     --set adaptation.source_share=0.25 --output {output}"
                ))
                .ok();
            ["model.safetensors", "metrics.jsonl", "README.md"]
                .map(|file| scene.read(&format!("{output}/{file}")))
        };
        let (right, wrong) = (run("right"), run("wrong"));
        assert!(right == wrong, "{selection}");
        let record: Value =
            serde_json::from_slice(right[1].split(|byte| *byte == b'\n').next().unwrap()).unwrap();
        for figure in [
            "target_mutual_similarity",
            "target_cycle_consistency",
            "target_posterior_entropy",
            "target_posterior_diversity",
        ] {
            assert!(record[figure].is_f64(), "{figure} in {record}");
        }
    }
}
