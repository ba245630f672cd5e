//! The pages in a real browser, driven by WebDriver: upload, watch, read, search, and try what is described. Nothing may be
//! logged as an error, which is also how a browser reports what the Content-Security-Policy stopped.

use super::jobs::with_folder;
use base64::Engine as _;
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window, which ends with the test.
struct Browser {
    driver: Child,
    session: String,
    http: reqwest::Client,
}

impl Browser {
    async fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect(
                "chromedriver is missing: `cargo xtask test` installs the Debian package chromium-driver",
            );
        let mut browser = Self {
            driver,
            session: format!("http://127.0.0.1:{port}/session"),
            http: reqwest::Client::new(),
        };
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            let asked = browser.http.post(&browser.session).json(&capabilities).send().await;
            if let Ok(response) = asked {
                let answer: Value = response.json().await.unwrap();
                let id = answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("{answer}"));
                browser.session = format!("{}/{id}", browser.session);
                return browser;
            }
            assert!(Instant::now() < give_up, "chromedriver does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let response = self.http.post(format!("{}/{path}", self.session)).json(&body).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        assert!(answer["value"].get("error").is_none(), "{path}: {answer}");
        answer["value"].clone()
    }

    async fn element(&self, selector: &str) -> String {
        let found = self.post("element", json!({ "using": "css selector", "value": selector })).await;
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    async fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("element/{element}/value"), json!({ "text": text })).await;
    }

    async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("element/{element}/click"), json!({})).await;
    }

    /// Waits until the text of an element contains this.
    async fn says(&self, selector: &str, text: &str) {
        let script = "return document.querySelector(arguments[0])?.innerText ?? ''";
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            let found = self.post("execute/sync", json!({ "script": script, "args": [selector] })).await;
            if found.as_str().unwrap().contains(text) {
                return;
            }
            assert!(Instant::now() < give_up, "{selector} says {found}, not {text:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Keeps what the window shows where somebody wants to look at it.
    async fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("PRINCIPIUM_SCREENSHOTS") else { return };
        let response = self.http.get(format!("{}/screenshot", self.session)).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        let picture = base64::prelude::BASE64_STANDARD.decode(answer["value"].as_str().unwrap()).unwrap();
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), picture).unwrap();
    }

    async fn errors(&self) -> Vec<Value> {
        let log = self.post("se/log", json!({ "type": "browser" })).await;
        let severe = |entry: &&Value| entry["level"] == "SEVERE";
        log.as_array().unwrap().iter().filter(severe).cloned().collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser only when it is told; by a thread and a client of their own, because the runtime that this
        // may be inside of stands still meanwhile.
        let session = self.session.clone();
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime
                .block_on(async { reqwest::Client::new().delete(session).send().await.map(drop) })
                .map_err(std::io::Error::other)
        });
        let _ = ended.join();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

#[tokio::test]
async fn documents_are_uploaded_watched_read_and_found() {
    let folder = tempfile::tempdir().unwrap();
    let server = with_folder(folder.path(), &[]);
    let page = server.get("/").await;
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let vasa = folder.path().join("vasa.md");
    std::fs::write(
        &vasa,
        "# Vasa\n\nThe ship sank in 1628.\n\n## Salvage\n\nShe was raised in 1961 & put into a museum.\n",
    )
    .unwrap();
    let moon = folder.path().join("moon <b>.txt");
    std::fs::write(&moon, "Three men flew around the moon.").unwrap();

    let browser = Browser::start().await;
    browser.post("url", json!({ "url": format!("{}/", server.url) })).await;
    browser.says("#about", "384 dimensions").await;
    browser.type_into("#files", &format!("{}\n{}", vasa.display(), moon.display())).await;
    browser.says("#jobs", "default: succeeded").await;
    browser.says("#jobs", "2 processed").await;
    browser.says("#documents", "vasa.md · 1 chunk").await;
    browser.says("#documents", "moon <b>.txt").await;
    browser.type_into("#query", "astronauts\u{E007}").await;
    browser.says("#results li:first-child", "Three men flew around the moon.").await;
    browser.says("#took", "chunks in").await;
    browser.picture("search").await;
    browser.click("#results li:first-child button").await;
    browser.says("#reader .chunk.found", "Three men flew").await;
    browser.picture("reader").await;

    browser.post("url", json!({ "url": format!("{}/docs", server.url) })).await;
    browser.says("[id='get /v1/jobs'] summary", "The jobs, the newest first").await;
    for (operation, limit, says) in
        [("get /info", None, r#""role": "data-factory""#), ("get /v1/jobs", Some("1"), r#""next": ""#)]
    {
        let inside = |selector: &str| format!("[id='{operation}'] {selector}");
        browser.click(&inside("summary")).await;
        if let Some(limit) = limit {
            browser.type_into(&inside("[title^='Most jobs']"), limit).await;
        }
        browser.click(&inside("button")).await;
        browser.says(&inside(".answer"), says).await;
        browser.says(&inside(".answer"), "200 after").await;
    }
    browser.picture("docs").await;
    assert_eq!(browser.errors().await, Vec::<Value>::new());
}
