//! `aeir selftest` and `aeir doctor`: what they print, that they can fail, and devices that are not there.

use serde_json::Value;

use crate::Scene;

#[test]
fn the_composed_way_gives_what_the_fused_operations_give() {
    let outcome = Scene::new().run("selftest --device cpu --json").ok();
    let report = outcome.json();
    assert_eq!(
        (&report["passed"], &report["differ"], &report["failed"]),
        (&true.into(), &0.into(), &0.into())
    );
    assert_eq!(report["repeated"], report["repeated_alike"]);
    assert_eq!(report["device"]["kind"], "cpu");
    let checks = report["checks"].as_array().unwrap();
    for kind in ["operation", "head", "loss", "encoder", "step", "search"] {
        assert!(checks.iter().any(|check| check["kind"] == kind && check["verdict"] == "agrees"), "{kind}");
    }
    // What is not done in bfloat16 says why.
    let told = |check: &&Value| check["verdict"] == "not-taken";
    assert!(checks.iter().filter(told).all(|check| check["dtype"] == "bf16" && check["reason"].is_string()));
    if cfg!(unix) {
        assert!(report["host_peak_bytes"].as_u64().unwrap() > 1 << 20);
    }
    assert!(checks.iter().filter_map(|check| check["products"].as_u64()).sum::<u64>() > 100);
}

#[test]
fn the_table_names_checks_types_and_memory() {
    let outcome = Scene::new().run("selftest --device cpu --only attention-causal,info-nce --dtype f32").ok();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[1].starts_with("operation attention-causal"), "{outcome:?}");
    assert!(lines[2].starts_with("loss      info-nce") && lines[2].contains("agrees"), "{outcome:?}");
    assert!(outcome.stdout.contains("\n2 agree, 0 differ, 0 failed"), "{outcome:?}");
    assert!(outcome.stdout.contains("2 of 2 gave the same bits"), "{outcome:?}");
}

#[test]
fn a_check_that_differs_fails_the_command() {
    let outcome = Scene::new().run("selftest --device cpu --only gelu --dtype f32 --spoil gelu-tanh");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.contains("DIFFERS") && outcome.stdout.contains("1 differ"), "{outcome:?}");
    insta::assert_snapshot!(outcome.stderr.lines().last().unwrap(), @"error: the composed way does not give what the fused operations of the CPU give: 1 checks differ, 0 failed");
}

#[test]
fn nothing_compared_is_no_success() {
    let outcome = Scene::new().run("selftest --device cpu --only info-nce --dtype bf16");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("nothing was compared"), "{outcome:?}");
}

#[test]
fn names_that_no_check_has() {
    let scene = Scene::new();
    insta::assert_snapshot!(scene.run("selftest --only atention").failure(), @"
    exit 2
    error: no check has `atention` in its name

    hint: `aeir selftest --list` prints the names
    ");
    // A part of a name would spoil nothing.
    let told = scene.run("selftest --device cpu --spoil gelu-tan").failure();
    assert!(told.contains("no check is named `gelu-tan`"), "{told}");
    let listed = scene.run("selftest --list").ok().stdout;
    assert!(listed.lines().any(|name| name == "sgraf-step") && listed.lines().count() > 80, "{listed}");
}

#[test]
fn a_gpu_that_this_program_was_not_built_for() {
    if cfg!(feature = "cuda") {
        return;
    }
    insta::assert_snapshot!(Scene::new().run("selftest --device cuda").failure(), @"
    exit 2
    error: device cuda can't be used: this aeir was built without CUDA

    hint: build one with `cargo xtask cuda build`, which needs no CUDA toolkit (docs/cuda.md), or pass --device cpu
    ");
}

#[test]
fn the_doctor_lists_what_works() {
    let report = Scene::new().run("doctor --json").ok().json();
    assert_eq!(report["broken"], 0);
    assert_eq!(report["devices"][0]["kind"], "cpu");
    let findings = report["findings"].as_array().unwrap();
    for name in ["program", "processor", "cpu", "cache", "selftest"] {
        assert!(findings.iter().any(|finding| finding["name"] == name), "{name}: {report}");
    }
}

#[test]
#[cfg(unix)]
fn the_doctor_finds_a_cache_that_cannot_be_written() {
    let scene = Scene::new();
    scene.write("file", "not a folder");
    let mut command = crate::program();
    command.arg("doctor").env("AEIR_CACHE_DIR", scene.path("file"));
    let outcome = scene.outcome(command);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let line = outcome.stdout.lines().find(|line| line.starts_with("BROKEN")).unwrap();
    assert!(line.contains("cache") && line.contains("can't be written"), "{line}");
    assert!(outcome.stdout.contains("hint: set AEIR_CACHE_DIR"), "{outcome:?}");
    insta::assert_snapshot!(outcome.stderr, @"error: 1 of the things above does not work");
}

#[test]
fn sizes_that_no_machine_has_room_for_are_refused() {
    let scene = Scene::new();
    for command in [
        "bench search --items 99999999999999 --dimension 512",
        "bench train --batch-size 99999999999999 --device cpu",
        "bench encode --text-encoder x --batch-size 99999999999999",
    ] {
        let told = scene.run(command).failure();
        assert!(
            told.starts_with("exit 2\n") && told.contains("would take") && told.contains("hint: lower"),
            "{told}"
        );
    }
}
