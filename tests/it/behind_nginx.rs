//! Four servers of one ledger behind Debian's nginx, as `packaging/nginx.conf` sets it up: they are restarted in turn
//! while clients ask and rate, and nobody notices.

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apa::ledger::{Exported, LedgerReader, Place};
use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::database;

const SERVERS: usize = 4;
const CLIENTS: usize = 6;

/// Killed when it is dropped.
struct Nginx(Child);

impl Nginx {
    /// With the example's settings, but for addresses. `None`, and a line that says so, without Debian's nginx.
    fn start(folder: &Path, listen: u16, servers: &[u16]) -> Option<Self> {
        // Installed, or as scripts/setup.sh unpacks it.
        let own = Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/apa/nginx/usr/sbin/nginx");
        let Some(program) = [PathBuf::from("/usr/sbin/nginx"), own].into_iter().find(|program| program.exists()) else {
            eprintln!("left out: Debian's nginx is not there");
            return None;
        };
        let mut example =
            include_str!("../../packaging/nginx.conf").replace("listen 80", &format!("listen 127.0.0.1:{listen}"));
        for (n, port) in servers.iter().enumerate() {
            let (theirs, ours) = (format!("server 10.0.0.{}:8372", n + 1), format!("server 127.0.0.1:{port}"));
            assert!(example.contains(&theirs));
            example = example.replace(&theirs, &ours);
        }
        let paths =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {kind};"));
        let whole = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr crit; events {{}}\n\
             http {{ access_log off; {} {example} }}",
            paths.concat()
        );
        std::fs::write(folder.join("nginx.conf"), whole).unwrap();
        let mut command = Command::new(program);
        command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf")).stdout(Stdio::null());
        Some(Self(command.spawn().unwrap()))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks, streamed or not, and rates, until the end. Returns the answers that were rated.
async fn ask_and_rate(http: reqwest::Client, url: String, client: usize, end: Arc<AtomicBool>) -> Vec<String> {
    let mut rated = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let stream = rated.len() % 2 == 0;
        let prompt = format!("hello {client} {}", rated.len());
        let body = json!({"prompt": prompt, "max_tokens": 24, "stream": stream}).to_string();
        let answer = http.post(format!("{url}/v1/completions")).body(body).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        let pieces: Vec<Value> = match stream {
            false => vec![serde_json::from_str(&text).unwrap()],
            true => {
                assert!(text.trim_end().ends_with("data: [DONE]"), "a stream broke off: {text}");
                text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect()
            }
        };
        assert!(pieces.iter().all(|piece| piece.get("error").is_none()), "{text}");
        let id = pieces[0]["id"].as_str().unwrap().to_owned();
        let said = json!({"generation_id": id, "thumbs": if rated.len() % 3 == 0 { "up" } else { "down" }}).to_string();
        let told = http.post(format!("{url}/v1/feedback")).body(said).send().await.unwrap();
        let (status, text) = (told.status(), told.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        rated.push(id);
    }
    rated
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_restarted_in_turn_under_load_and_no_request_fails() {
    let Some(ledger) = database() else { return };
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listeners: Vec<_> = (0..=SERVERS).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    drop(listeners);
    let Some(_nginx) = Nginx::start(folder.path(), ports[SERVERS], &ports[..SERVERS]) else { return };
    let (of, kept) = (format!("ledger.url={ledger}"), format!("publish.store=file://{}", store.path().display()));
    let start = |n: usize| {
        let role = if n < 2 { "serve.role=all" } else { "serve.role=server" };
        let settings = [&of, &kept, role, "gate.examine=false", "gate.watch=false", "train.batch=8", "train.kl_step=0"];
        let own = folder.path().join(n.to_string());
        std::fs::create_dir_all(&own).unwrap();
        Daemon::at(&format!("127.0.0.1:{}", ports[n]), &own, &settings, &[])
    };
    let mut servers: Vec<Daemon> = (0..SERVERS).map(start).collect();
    let url = format!("http://127.0.0.1:{}", ports[SERVERS]);
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> =
        (0..CLIENTS).map(|client| tokio::spawn(ask_and_rate(http.clone(), url.clone(), client, end.clone()))).collect();
    for n in 0..SERVERS {
        tokio::time::sleep(Duration::from_millis(500)).await;
        servers.remove(0).stop();
        tokio::time::sleep(Duration::from_millis(200)).await;
        servers.push(start(n));
    }
    // Somebody trains: the first server gave up its right to when it was stopped.
    let began = Instant::now();
    loop {
        let version = http.get(format!("{url}/v1/status")).send().await.unwrap().text().await.unwrap();
        let version: Value = serde_json::from_str(&version).unwrap();
        if version["policy_version"].as_u64().unwrap() > 0 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "nothing was learned: {version}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    end.store(true, Ordering::Relaxed);
    let mut acknowledged = HashSet::new();
    for client in clients {
        acknowledged.extend(client.await.unwrap());
    }
    assert!(acknowledged.len() > 20 * SERVERS, "{}", acknowledged.len());
    let place = Place::new(folder.path(), Some(&ledger));
    let reader = LedgerReader::open(place).unwrap();
    let mut rated = HashSet::new();
    let mut note = |exported: &Exported| {
        if let Exported::Feedback(generation, ..) = exported {
            rated.insert(generation.id.to_string());
        }
        Ok(())
    };
    reader.for_each(&mut note).unwrap();
    assert!(acknowledged.is_subset(&rated), "{} of {} on record", rated.len(), acknowledged.len());
}
