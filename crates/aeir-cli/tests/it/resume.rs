//! Runs that were there before: finished, cut off, or of someone else.

use std::fs;
use std::process::{Child, Command, Stdio};
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
    let other = scene.run(&format!("{SHORT} --resume latest --seed 5")).ok();
    assert_eq!(
        other.stderr,
        "`run` holds a finished run: nothing to do\n\
         warning: it was trained with other settings: `seed` was 1 and is 5\n"
    );
    assert!(read() == before);
    insta::assert_snapshot!(scene.run(&format!("{SHORT} --resume latest --overwrite")).failure(), @"
    exit 2
    error: the argument '--resume <WHICH>' cannot be used with '--overwrite'

    Usage: aeir train --method <METHOD> --epochs <N> --source <PATH> --output <RUN> --resume <WHICH> --image-encoder <DIR|ID> --text-encoder <DIR|ID>

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

/// What an interruption must not change.
fn result(scene: &Scene, run: &str) -> [Vec<u8>; 5] {
    ["model.safetensors", "metrics.jsonl", "manifest.json", "config.toml", "config.sha256"]
        .map(|file| scene.read(&format!("{run}/{file}")))
}

/// Starts a command in the scene's folder and lets it work in silence.
fn start(scene: &Scene, arguments: &str) -> Child {
    let mut command = program();
    command.args(arguments.split_whitespace()).current_dir(scene.folder.path());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a run has finished so many epochs.
fn wait_for_epochs(scene: &Scene, run: &str, epochs: usize, child: &mut Child) {
    let started = Instant::now();
    let reached = || {
        fs::read_to_string(scene.path(&format!("{run}/metrics.jsonl")))
            .is_ok_and(|text| text.lines().count() >= epochs)
    };
    while !reached() && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(60), "epoch {epochs} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn ten_kills_in_a_row_change_nothing() {
    let scene = Scene::new();
    scene.write("config.toml", "checkpoint_every = 3\ncheckpoint_steps = 5\n");
    let flags = format!("train {BOTH} --config config.toml --epochs 8 --batch-size 4 --output");
    scene.run(&format!("{flags} whole")).ok();
    let whole = result(&scene, "whole");
    // Once more, now that the features are cached.
    let began = Instant::now();
    scene.run(&format!("{flags} timed")).ok();
    let took = began.elapsed();
    // Shares of an undisturbed run's time: before the first step and within any phase of the work.
    let mut killed = 0;
    for share in [0.05, 0.61, 0.43, 0.9, 0.27, 0.55, 0.71, 0.36, 0.8, 0.48] {
        let mut child = start(&scene, &format!("{flags} run --resume latest"));
        std::thread::sleep(took.mul_f64(share));
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            killed += 1;
            continue;
        }
        assert!(result(&scene, "run") == whole, "ended after {killed} kills");
        fs::remove_dir_all(scene.path("run")).unwrap();
    }
    assert!(killed >= 3, "only {killed} were killed while they worked");
    scene.run(&format!("{flags} run --resume latest")).ok();
    assert!(result(&scene, "run") == whole, "after {killed} kills");
}

#[cfg(unix)]
#[test]
fn signals_end_a_run_after_the_step() {
    let scene = Scene::new();
    scene.write("config.toml", "checkpoint_every = 1000\n");
    let flags = format!("train {BOTH} --config config.toml --epochs 12 --batch-size 4 --output");
    scene.run(&format!("{flags} whole")).ok();
    for signal in ["INT", "TERM"] {
        let run = format!("run-{signal}");
        let mut child = start(&scene, &format!("{flags} {run}"));
        wait_for_epochs(&scene, &run, 2, &mut child);
        let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(sent.unwrap().success());
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{told}");
        assert!(
            told.contains("error: stopped after step ") && told.contains("; the state is saved"),
            "{told}"
        );
        assert!(told.contains("hint: go on with the same command and --resume latest"), "{told}");
        assert!(!scene.path(&format!("{run}/manifest.json")).exists());
        assert_eq!(fs::read_dir(scene.path(&format!("{run}/checkpoints"))).unwrap().count(), 1);
        let resumed = scene.run(&format!("{flags} {run} --resume latest")).ok();
        assert!(resumed.stderr.contains("resumed at step "), "{resumed:?}");
        assert!(result(&scene, &run) == result(&scene, "whole"), "after SIG{signal}");
    }
}

#[test]
fn a_damaged_checkpoint_is_told_and_the_one_before_taken() {
    let scene = Scene::new();
    scene.write("config.toml", "checkpoint_every = 1\n");
    let flags = format!("{} --config config.toml", SHORT.replace("--epochs 2", "--epochs 4"));
    scene.run(&flags).ok();
    let whole = result(&scene, "run");
    fs::remove_file(scene.path("run/manifest.json")).unwrap();
    crate::flip_a_bit(&scene.path("run/checkpoints/step-00000004/state.safetensors"));
    let resumed = scene.run(&format!("{flags} --resume latest")).ok();
    insta::assert_snapshot!(resumed.stderr, @"
    warning: checkpoint `run/checkpoints/step-00000004`: `state.safetensors` is damaged; going back to the one before
    resumed at step 3 of 4
    ");
    assert!(result(&scene, "run") == whole);
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let scene = Scene::new();
    for method in ["aeir --epochs 4", "dann --head saf --epochs 2"] {
        let runs = ["1", "2"].map(|workers| {
            let run = format!("{}-{workers}", &method[..4]);
            // Features of its own for each: what is cached was computed with another number of threads.
            let mut command = program();
            let flags = format!("train {BOTH} --method {method} --workers {workers} --output {run}");
            command.args(flags.split_whitespace()).env("AEIR_CACHE_DIR", scene.path(&format!("cache-{run}")));
            scene.outcome(command).ok();
            result(&scene, &run)
        });
        assert!(runs[0] == runs[1], "{method}");
    }
}

#[test]
fn a_killed_run_goes_on_as_if_nothing_had_been() {
    let scene = Scene::new();
    scene.write("config.toml", "checkpoint_every = 3\n");
    let flags = format!("train {BOTH} --config config.toml --epochs 12 --batch-size 4 --output");
    scene.run(&format!("{flags} whole")).ok();
    let result = |run: &str| result(&scene, run);
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
            assert!(
                other.stderr.contains("was begun with other settings: `seed` was 1 and is 5"),
                "{other:?}"
            );
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
