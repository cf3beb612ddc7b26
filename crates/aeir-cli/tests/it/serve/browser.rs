//! The page as a person uses it, in headless Chromium, driven by the WebDriver protocol.
//!
//! Without `chromium` and `chromedriver` on the path the test says so and passes. `AEIR_SCREENSHOTS` names a folder for pictures of each state.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};
use ureq::Agent;

use crate::Scene;

/// The key by which the protocol names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser that ends with its test.
struct Browser {
    driver: Child,
    session: String,
    agent: Agent,
    profile: tempfile::TempDir,
}

/// A program on the path.
fn on_path(names: &[&str]) -> Option<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}

impl Browser {
    /// None where there is no browser or no driver.
    fn open() -> Option<Self> {
        let chromium = on_path(&["chromium", "chromium-browser", "google-chrome"])?;
        let driver = on_path(&["chromedriver"])?;
        let mut driver = Command::new(driver).arg("--port=0").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port: u16 = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, rest)) = line.split_once("started successfully on port ") {
                break rest.trim_end_matches('.').parse().unwrap();
            }
        };
        // What the driver says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .build()
            .into();
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--window-size=1280,1000",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let root = format!("http://127.0.0.1:{port}/session");
        let mut browser = Self { driver, session: root, agent, profile };
        let opened = browser.call("POST", "", &capabilities);
        browser.session = format!("{}/{}", browser.session, opened["sessionId"].as_str().unwrap());
        Some(browser)
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let mut response = match method {
            "POST" => self.agent.post(url).header("Content-Type", "application/json").send(body.to_string()),
            "DELETE" => self.agent.delete(url).call(),
            _ => self.agent.get(url).call(),
        }
        .unwrap();
        let status = response.status();
        let answer: Value =
            serde_json::from_slice(&response.body_mut().with_config().limit(1 << 28).read_to_vec().unwrap())
                .unwrap();
        assert!(status.is_success(), "{method} {path}: {answer}");
        answer["value"].clone()
    }

    #[track_caller]
    fn go(&self, url: &str) {
        self.call("POST", "/url", &json!({"url": url}));
    }

    /// What a script returns.
    #[track_caller]
    fn run(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until a script returns something true.
    #[track_caller]
    fn until(&self, script: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.run(&format!("return Boolean({script})")) != true {
            let text = self.run("return document.body.innerText");
            assert!(Instant::now() < end, "never: {script}\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[track_caller]
    fn element(&self, selector: &str) -> String {
        let found = self.call("POST", "/element", &json!({"using": "css selector", "value": selector}));
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn click(&self, selector: &str) {
        self.call("POST", &format!("/element/{}/click", self.element(selector)), &json!({}));
    }

    #[track_caller]
    fn send(&self, selector: &str, text: &str) {
        self.call("POST", &format!("/element/{}/value", self.element(selector)), &json!({"text": text}));
    }

    /// Presses keys, whatever has the focus.
    fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
            })
            .collect();
        self.call(
            "POST",
            "/actions",
            &json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]}),
        );
    }

    #[track_caller]
    fn text(&self, selector: &str) -> String {
        let value = self.run(&format!("return document.querySelector({selector:?}).innerText"));
        value.as_str().unwrap().to_owned()
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.call("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    fn size(&self, width: u32, height: u32) {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    fn scheme(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &features);
    }

    /// A picture for whoever wants to look at the page.
    fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("AEIR_SCREENSHOTS") else { return };
        let picture = self.call("GET", "/screenshot", &Value::Null);
        let bytes = base64::engine::general_purpose::STANDARD.decode(picture.as_str().unwrap()).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }

    /// Complaints of the browser's console since the last time.
    fn complaints(&self) -> Vec<String> {
        let log = self.call("POST", "/se/log", &json!({"type": "browser"}));
        let severe = log.as_array().unwrap().iter().filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Pictures of the results have come, all of them.
    #[track_caller]
    fn pictures(&self) {
        self.until(
            "[...document.querySelectorAll('#results img')].length && \
             [...document.querySelectorAll('#results img')].every((image) => image.complete && image.naturalWidth)",
        );
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.call("DELETE", "", &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let _ = &self.profile;
    }
}

const ENTER: char = '\u{e007}';
const ESCAPE: &str = "\u{e00c}";
const RIGHT: &str = "\u{e014}";

/// Every control has a name that is read out, every picture a description, every id is one of a kind.
const UNNAMED: &str = "
    const named = (node) => node.getAttribute('aria-label') || node.textContent.trim() || node.title || node.querySelector('img')?.alt
        || (node.id && document.querySelector(`label[for='${node.id}']`));
    const ids = [...document.querySelectorAll('[id]')].map((node) => node.id);
    return [
        ...[...document.querySelectorAll('button, a, summary, input:not([aria-hidden]), select')].filter((node) => !named(node)),
        ...[...document.querySelectorAll('#results img')].filter((node) => !node.alt),
        ...ids.filter((id, place) => ids.indexOf(id) !== place),
    ].map((node) => node.outerHTML || node);";

/// Nothing sticks out of the window.
const WIDER: &str = "return document.documentElement.scrollWidth > innerWidth";

#[test]
fn a_person_searches_on_the_page() {
    let Some(browser) = Browser::open() else {
        eprintln!(
            "skipped: no `chromium` and `chromedriver` on the path (Debian: apt-get install chromium chromium-driver)"
        );
        return;
    };
    let scene = Scene::with_model();
    scene.run("index --model model --images images.txt --query-bank sentences.txt --output banked").ok();
    let server = scene.serve("banked", &[]);
    browser.size(1280, 1000);
    browser.go(&server.url("/"));

    // Before anything is asked there are images to begin from, and the cursor is in the field.
    browser.pictures();
    assert_eq!(browser.run("return document.querySelectorAll('#results li').length"), 12);
    assert_eq!(browser.run("return document.activeElement.id"), "text");
    assert_eq!(browser.text("#about"), "30 images in banked");
    assert_eq!(browser.run(UNNAMED), json!([]));
    browser.picture("start");

    // A sentence.
    browser.press(&format!("a dog{ENTER}"));
    browser.until("document.querySelector('#status').innerText.includes('ms')");
    browser.pictures();
    assert_eq!(browser.text("#results-heading"), "“a dog”");
    let found = server.names(&json!({"text": "a dog", "k": 24, "duplicates": "collapse"}));
    let shown = "return [...document.querySelectorAll('#results .name')].map((name) => name.innerText)";
    assert_eq!(browser.run(shown), json!(found));
    assert!(browser.text("#status").contains("own sentences"), "{}", browser.text("#status"));
    assert!(browser.text("#results li .measure").contains('%'));
    assert_eq!(browser.run(UNNAMED), json!([]));
    browser.picture("results");
    browser.scheme("dark");
    browser.picture("results-dark");
    browser.scheme("light");
    browser.size(390, 844);
    assert_eq!(browser.run(WIDER), false);
    browser.picture("results-phone");
    browser.size(1280, 1000);

    // Less of something.
    browser.click("#refine summary");
    browser.send("#minus", &format!("a cat{ENTER}"));
    browser.until("document.querySelector('#results-heading').innerText.includes('less')");
    let found =
        server.names(&json!({"text": "a dog", "minus": ["a cat"], "k": 24, "duplicates": "collapse"}));
    browser.until(&format!("JSON.stringify((() => {{ {shown} }})()) === {:?}", json!(found).to_string()));
    browser.pictures();
    browser.picture("less");
    browser.click(".part.less button");
    browser.until("!document.querySelector('.part')");

    // One result, large, by keys alone.
    browser.run("document.querySelector('#results .picture').focus()");
    browser.press(&ENTER.to_string());
    browser
        .until("document.querySelector('#view').open && document.querySelector('#view-image').naturalWidth");
    assert!(browser.text("#view-score").starts_with("Rank 1."), "{}", browser.text("#view-score"));
    browser.press(RIGHT);
    browser.until("document.querySelector('#view-score').innerText.startsWith('Rank 2.')");
    browser.picture("view");
    browser.press(ESCAPE);
    browser.until("!document.querySelector('#view').open");

    // More like this, and back again.
    let second = browser.run("return document.querySelectorAll('#results .name')[1].innerText");
    browser.click("#results li:nth-child(2) .text .plain");
    browser.until("document.querySelector('#results-heading').innerText.startsWith('Like')");
    browser.until(&format!("document.querySelector('#results .name').innerText === {second}"));
    browser.picture("like");
    browser.call("POST", "/back", &json!({}));
    browser.until("document.querySelector('#results-heading').innerText === '“a dog”'");

    // An image from this device, with a sentence.
    let image = scene.lines("images.txt")[3].clone();
    browser.send("#file", &image);
    browser.until("document.querySelector('#results-heading').innerText.includes('your image')");
    browser.until("!document.querySelector('#results').ariaBusy");
    browser.pictures();
    browser.picture("image");
    browser.click(".part.pictured button");

    // The model card.
    browser.click("#card-open");
    browser.until("document.querySelector('#card').open");
    assert!(browser.text("#card").contains("Hubness correction") && browser.text("#card").contains("30"));
    browser.picture("card");
    browser.click("#card-close");
    assert_eq!(browser.complaints(), Vec::<String>::new());

    // What goes wrong is shown.
    browser.run("document.querySelector('#text').value = 'dog '.repeat(4000)");
    browser.click("#go");
    browser.until("document.querySelector('#alert').innerText.includes('too long')");
    browser.picture("refused");
    drop(server);
    browser.run("document.querySelector('#text').value = 'a dog'");
    browser.click("#go");
    browser.until("document.querySelector('#alert').innerText.includes('does not answer')");
    browser.picture("no-server");
    browser.size(390, 844);
    assert_eq!(browser.run(WIDER), false);
    browser.run("setTimeout(() => { throw new Error('a fault of ours'); })");
    browser.until("document.querySelector('#alert').innerText.includes('This page has a fault')");
}

#[test]
fn a_locked_page_asks_for_the_key() {
    let Some(browser) = Browser::open() else {
        eprintln!("skipped: no `chromium` and `chromedriver` on the path");
        return;
    };
    let scene = Scene::with_model();
    scene.write("key", "a-secret");
    let server = scene.serve("index", &["--api-key-file", "key"]);
    browser.size(390, 844);
    browser.go(&server.url("/"));
    browser.until("document.querySelector('#lock').open");
    browser.picture("lock-phone");
    browser.send("#key", &format!("wrong{ENTER}"));
    browser.until("document.querySelector('#lock-wrong').innerText.includes('not the key')");
    browser.send("#key", &format!("a-secret{ENTER}"));
    browser.until("!document.querySelector('#lock').open");
    // Pictures too are fetched with the key.
    browser.pictures();
    browser.send("#text", &format!("a dog{ENTER}"));
    browser.until("document.querySelector('#status').innerText.includes('ms')");
    browser.pictures();
    assert_eq!(browser.run(WIDER), false);
    browser.picture("plain-phone");
}
