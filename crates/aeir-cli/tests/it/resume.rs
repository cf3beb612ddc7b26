//! Runs that were there before: finished, cut off, or of someone else.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::{BOTH, SHORT, Scene, program};

#[test]
fn a_finished_run_is_left_alone() {
    let scene = Scene::new();
    scene.run(SHORT).ok();
    let files = ["model.safetensors", "metrics.jsonl", "manifest.json", "README.md", "timing.jsonl"];
    let read = || files.map(|file| scene.read(&format!("run/{file}")));
    let before = read();
    insta::assert_snapshot!(scene.run(SHORT).failure(), @r"
    exit 2
    error: `run` holds a finished run already

    hint: name another --output, add --overwrite, or --resume latest to keep it as it is
    ");
    assert!(read() == before);
    let resumed = scene.run(&format!("{SHORT} --resume latest")).ok();
    assert_eq!(
        (resumed.stdout.as_str(), resumed.stderr.as_str()),
        ("", "`run` holds a finished run: nothing to do\n")
    );
    assert!(read() == before);
    insta::assert_snapshot!(scene.run(&format!("{SHORT} --resume latest --overwrite")).failure(), @"
    exit 2
    error: the argument '--resume <WHICH>' cannot be used with '--overwrite'

    Usage: aeir train --source <PATH> --output <RUN> --method <METHOD> --epochs <N> --resume <WHICH> --image-encoder <DIR|ID> --text-encoder <DIR|ID>

    For more information, try '--help'.
    ");
    scene.run(&format!("{} --overwrite", SHORT.replace("--epochs 2", "--epochs 1"))).ok();
    assert_eq!(scene.lines("run/metrics.jsonl").len(), 1);
}

#[test]
fn folders_of_others_are_never_touched() {
    let scene = Scene::with_model();
    scene.write("a-file", "mine");
    scene.write("photos/cat.jpg", "mine");
    for more in ["", " --overwrite", " --resume latest"] {
        for (output, message) in [
            ("a-file", "`a-file` is a file, not a folder"),
            ("photos", "`photos` holds other things: name a folder that is new or empty"),
        ] {
            let refused =
                scene.run(&format!("{}{more}", SHORT.replace("--output run", &format!("--output {output}"))));
            assert_eq!(refused.failure(), format!("exit 2\nerror: {message}\n"));
        }
    }
    for output in ["a-file", "photos", "model"] {
        let refused = scene.run(&format!("index --model model --images images.txt --output {output}"));
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(
            refused.stderr.contains(output) && refused.stderr.contains("choose another folder"),
            "{refused:?}"
        );
    }
    assert_eq!((scene.read("a-file"), scene.read("photos/cat.jpg")), (b"mine".to_vec(), b"mine".to_vec()));
    scene.run("eval --model model --data test.jsonl").ok();
}

#[test]
fn a_killed_run_goes_on_as_if_nothing_had_been() {
    let scene = Scene::new();
    scene.write("config.toml", "checkpoint_every = 3\n");
    let flags = format!("train {BOTH} --config config.toml --epochs 12 --batch-size 4 --output");
    scene.run(&format!("{flags} whole")).ok();
    let result = |run: &str| {
        ["model.safetensors", "metrics.jsonl", "manifest.json", "config.toml"]
            .map(|file| scene.read(&format!("{run}/{file}")))
    };
    let whole = result("whole");
    // Before the first epoch and the first checkpoint, after one, after two.
    for (number, epochs) in [0, 1, 4, 7].into_iter().enumerate() {
        let run = format!("killed-{number}");
        let mut command = program();
        command.args(flags.split_whitespace()).arg(&run).current_dir(scene.folder.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        let reached = || match epochs {
            0 => scene.path(&run).join("config.toml").exists(),
            _ => fs::read_to_string(scene.path(&run).join("metrics.jsonl"))
                .is_ok_and(|text| text.lines().count() >= epochs),
        };
        while !reached() && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(60), "epoch {epochs} never came");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        assert!(!finished, "it was to be killed in the middle, and had ended");

        let unfinished = scene.run(&format!("eval --model {run} --data test.jsonl"));
        assert_eq!(unfinished.code, Some(4), "{unfinished:?}");
        assert!(unfinished.stderr.contains("hint: run the same `aeir train` command with --resume latest"));
        assert_eq!(
            scene.run(&format!("index --model {run} --images images.txt --output index")).code,
            Some(4)
        );
        if epochs > 3 {
            let settings = scene.read(&format!("{run}/config.toml"));
            let other = scene.run(&format!("{flags} {run} --resume latest --seed 5"));
            assert!(
                scene.read(&format!("{run}/config.toml")) == settings,
                "a refused resume changes nothing"
            );
            assert_eq!(other.code, Some(2), "{other:?}");
            assert!(other.stderr.contains("was made with another configuration or other data"), "{other:?}");
        }
        scene.run(&format!("{flags} {run} --resume latest")).ok();
        assert!(result(&run) == whole, "killed after epoch {epochs}");
    }
}

#[test]
fn checkpoints_are_not_thrown_away_by_accident() {
    let scene = Scene::new();
    scene.run(SHORT).ok();
    let whole = scene.read("run/metrics.jsonl");
    fs::remove_file(scene.path("run/manifest.json")).unwrap();
    let refused = scene.run(SHORT);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(
        refused.stderr.contains("unfinished run") && refused.stderr.contains("--resume latest"),
        "{refused:?}"
    );
    scene.run(&format!("{SHORT} --overwrite")).ok();
    assert!(scene.read("run/metrics.jsonl") == whole);

    // Nothing is lost where there is no checkpoint yet.
    fs::remove_file(scene.path("run/manifest.json")).unwrap();
    fs::remove_dir_all(scene.path("run/checkpoints")).unwrap();
    scene.run(SHORT).ok();
    assert!(scene.read("run/metrics.jsonl") == whole);
}
