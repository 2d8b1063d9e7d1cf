//! What `/v1/events` tells, as it happens, on a tiny model.

use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::server::Server;
use crate::support::tiny::TinySpec;

/// The events of a response, one after the other.
struct Events {
    response: Response,
    text: String,
}

impl Events {
    async fn open(server: &Server) -> Self {
        let response = server.client.get(format!("{}/v1/events", server.url)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// Reads until an event of that name, and returns its data.
    async fn until(&mut self, name: &str) -> Value {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                if event.lines().any(|line| line == format!("event: {name}")) {
                    let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
                    return serde_json::from_str(data).unwrap();
                }
            }
            let chunk = timeout(Duration::from_secs(60), self.response.chunk()).await.expect(name).unwrap();
            self.text.push_str(std::str::from_utf8(&chunk.expect(name)).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_hears_the_state_at_once_and_what_is_learned_as_it_happens() {
    let server = Server::of(&TinySpec::new("llama"), |config| config.gate.examine = false).await;
    let mut events = Events::open(&server).await;
    let state = events.until("status").await;
    assert_eq!((&state["policy_version"], &state["trainer"]["pending_ratings"]), (&0.into(), &0.into()));
    for (i, rating) in [1.0, -1.0, 1.0, -1.0].into_iter().enumerate() {
        let answer = server.say(i as u64).await;
        let said = json!({"generation_id": answer["choices"][0]["generation_id"], "rating": rating});
        assert_eq!(server.post("/v1/feedback", said).await.0, StatusCode::OK);
    }
    // The state again, because it changed; then what the step made of it.
    let mut heard = 0;
    while heard != 4 {
        heard = events.until("status").await["trainer"]["pending_ratings"].as_u64().unwrap();
    }
    assert_eq!(server.post("/v1/trainer/step", json!({})).await.0, StatusCode::OK);
    assert_eq!(events.until("version_published").await["version"], 1);
    assert_eq!(server.post("/v1/policy/rollback", json!({})).await.0, StatusCode::OK);
    assert_eq!(events.until("version_activated").await["version"], 0);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ends_does_not_wait_for_those_who_listen() {
    let server = Server::start().await;
    let mut events = Events::open(&server).await;
    events.until("status").await;
    let before = Instant::now();
    server.close().await;
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    while let Some(chunk) = events.response.chunk().await.unwrap() {
        assert!(!chunk.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_counted_by_version_with_their_intervals() {
    let server = Server::of(&TinySpec::new("llama"), |config| config.gate.examine = false).await;
    for (i, rating) in [1.0, -1.0, 0.5, -0.5].into_iter().enumerate() {
        let answer = server.say(i as u64).await;
        let id = &answer["choices"][0]["generation_id"];
        // The last word of a user counts.
        for rating in [0.0, rating] {
            let said = json!({"generation_id": id, "rating": rating, "user": "ann"});
            assert_eq!(server.post("/v1/feedback", said).await.0, StatusCode::OK);
        }
    }
    let (status, figures) = server.get("/v1/policy/figures").await;
    assert_eq!(status, StatusCode::OK, "{figures}");
    let of = &figures["data"][0];
    assert_eq!((&of["version"], figures["data"].as_array().unwrap().len()), (&0.into(), 1));
    assert_eq!((&of["rating"]["count"], of["rating"]["mean"].as_f64()), (&4.into(), Some(0.0)), "{of}");
    // 3.182 · sqrt(2.5 / 3 / 4)
    let lower = of["rating"]["lower"].as_f64().unwrap();
    assert!((lower + 3.182 * (2.5f64 / 3.0 / 4.0).sqrt()).abs() < 1e-9 || lower == -1.0, "{of}");
    assert_eq!((&of["tokens"]["count"], &of["cut_off"]["count"]), (&4.into(), &4.into()), "{of}");
    let share = of["cut_off"]["mean"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&share) && of["cut_off"]["upper"].as_f64().unwrap() <= 1.0, "{of}");
    server.close().await;
}

#[test]
fn every_binding_knows_all_kinds_of_news() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let source = read("src/engine/feed.rs");
    let news = source.split_once("pub enum News {").unwrap().1.split_once("\n}").unwrap().0;
    let variant = |line: &str| {
        let name = line.strip_prefix("    ")?.split([' ', '(', ',']).next()?;
        name.starts_with(|c: char| c.is_ascii_uppercase()).then(|| name.to_owned())
    };
    let word = |name: String| {
        let parts = name.char_indices().map(|(i, c)| match c {
            'A'..='Z' if i > 0 => format!("_{}", c.to_ascii_lowercase()),
            c => c.to_ascii_lowercase().to_string(),
        });
        parts.collect::<String>()
    };
    let kinds: Vec<String> = news.lines().filter_map(variant).map(word).collect();
    assert!(kinds.len() > 10 && kinds.contains(&"version_rolled_back".to_owned()), "{kinds:?}");
    let files =
        ["include/apa.h", "bindings/go/feed.go", "bindings/node/index.d.ts", "bindings/python/libapa/_types.py"];
    for file in files {
        let text = read(file);
        let missing: Vec<_> = kinds.iter().filter(|kind| !text.contains(kind.as_str())).collect();
        assert!(missing.is_empty(), "{file} doesn't name {missing:?}");
    }
}
