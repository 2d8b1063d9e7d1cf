//! The page at `/` in Debian's Chromium, against a real service on the tiny model, and its files over HTTP.

use std::path::Path;
use std::process::Command;

use apa::config::HttpConfig;
use reqwest::StatusCode;

use crate::support::c::run;
use crate::support::packages::packages;
use crate::support::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_chats_rates_sees_what_was_learned_and_goes_back() {
    let Some(packages) = packages(&["node_modules/puppeteer-core", "node_modules/axe-core"]) else { return };
    let chromium = std::env::var("APA_CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".into());
    if !Path::new(&chromium).exists() {
        assert!(std::env::var_os("CI").is_none(), "scripts/setup.sh test installs {chromium}");
        return eprintln!("SKIPPED: scripts/setup.sh test installs {chromium}");
    }
    let learning = Server::learning().await;
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "open-sesame-and-barley\n").unwrap();
    let keyed = Server::with(HttpConfig { keys: Some(keys), ..HttpConfig::default() }).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/page.mjs");
    let mut command = Command::new("node");
    command.arg(script).arg(&learning.url).arg(&packages).arg(&keyed.url).env("APA_CHROMIUM", chromium);
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
    keyed.close().await;
    learning.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_comes_with_a_policy_that_allows_nothing_inline_and_nothing_foreign() {
    let server = Server::start().await;
    let get = |path: &str| server.client.get(format!("{}{path}", server.url)).send();
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/uplot.LICENSE", "text/plain; charset=utf-8"),
    ] {
        let response = get(path).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), kind);
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
    }
    assert_eq!(get("/page/nothing.js").await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(get("/page/..%2Fmod.rs").await.unwrap().status(), StatusCode::NOT_FOUND);
    server.close().await;
}
