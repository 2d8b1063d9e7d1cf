//! What the HTTP service withstands: clients that ask too much, say nothing, or leave, and its own end.

use std::time::{Duration, Instant};

use apa::config::HttpConfig;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::server::{Server, message};
use crate::support::tiny::{TinySpec, vocabulary};

fn tiny() -> TinySpec {
    TinySpec::new("llama")
}

/// Answers to their full length: what ends them is banned.
fn long(members: Value) -> Value {
    let ends = (vocabulary().len() - 3..vocabulary().len()).map(|id| (id.to_string(), json!(-100)));
    let mut body = json!({"prompt": "on and on", "max_tokens": 2000, "logit_bias": serde_json::Map::from_iter(ends)});
    body.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    body
}

impl Server {
    async fn raw(&self) -> TcpStream {
        TcpStream::connect(self.url.strip_prefix("http://").unwrap()).await.unwrap()
    }

    async fn works(&self) {
        let (status, answer) = self.post("/v1/completions", json!({"prompt": "hi", "max_tokens": 2})).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_body_is_refused_by_the_name_of_its_encoding() {
    let server = Server::start().await;
    let ask = |encoding: &'static str| {
        let request =
            server.client.post(format!("{}/v1/completions", server.url)).body(r#"{"prompt":"a","max_tokens":1}"#);
        request.header("Content-Encoding", encoding).send()
    };
    let refused = ask("gzip").await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let said: Value = refused.json().await.unwrap();
    assert_eq!(message(&said), "the request body has the Content-Encoding \"gzip\", expected none");
    assert_eq!(ask("identity").await.unwrap().status(), StatusCode::OK);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_prompts_an_error_names_the_one_that_it_is_about() {
    let server = Server::start().await;
    for (prompt, place) in [(json!(["a", "", "b"]), "prompt[1]"), (json!([[1], [1], [999_999]]), "prompt[2]")] {
        let (status, said) = server.post("/v1/completions", json!({"prompt": prompt, "max_tokens": 1})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
        assert!(message(&said).starts_with(place), "{said}");
    }
    server.close().await;
}

/// Whether the other side closes within that time.
async fn closes_within(stream: &mut TcpStream, seconds: u64) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(seconds), stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_or_half_a_request_is_let_go() {
    let server = Server::of(&tiny(), |c| c.http.read_seconds = 1).await;
    let mut silent = server.raw().await;
    let mut half = server.raw().await;
    half.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\nx-slow: ").await.unwrap();
    let mut body = server.raw().await;
    body.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    let mut answer = vec![0; 12];
    tokio::time::timeout(Duration::from_secs(20), body.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
    assert!(closes_within(&mut silent, 20).await && closes_within(&mut half, 20).await);
    server.works().await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_opened_and_left_keep_nobody_out() {
    let server = Server::of(&tiny(), |c| c.http.connections = 64).await;
    let mut left = Vec::new();
    // As many as the limit on open files leaves the test, which is both ends.
    let most = std::fs::read_to_string("/proc/self/limits").ok().and_then(|limits| {
        let line = limits.lines().find(|line| line.starts_with("Max open files"))?.to_owned();
        line.split_whitespace().nth(3)?.parse::<usize>().ok()
    });
    for _ in 0..most.map_or(500, |most| (most / 3).min(10_000)) {
        left.push(server.raw().await);
    }
    let asked = Instant::now();
    server.works().await;
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    drop(left);
    server.works().await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_again() {
    let server = Server::of(&tiny(), |c| (c.serve.slots, c.serve.queue, c.serve.context) = (1, 1, 1 << 16)).await;
    let ask = |body: Value| server.client.post(format!("{}/v1/completions", server.url)).body(body.to_string()).send();
    let running = ask(long(json!({"stream": true, "max_tokens": 60_000}))).await.unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while server.engine.status().load.running == 0 {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let waiting = ask(long(json!({"stream": true, "max_tokens": 60_000}))).await.unwrap();
    let refused = ask(long(json!({}))).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(message(&refused.json().await.unwrap()).contains("1 requests are waiting"));
    drop((running, waiting));
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_are_refused_whether_the_client_sends_them_or_asks_first() {
    let server = Server::start().await;
    // Reads nothing before all is sent, as most clients do.
    let body = vec![b'a'; 50 << 20];
    let answer = server.client.post(format!("{}/v1/completions", server.url)).body(body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(message(&answer.json().await.unwrap()).contains("http.body_limit"));

    let mut asks = TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 52428800\r\nexpect: 100-continue\r\n\r\n";
    asks.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 12];
    asks.read_exact(&mut told).await.unwrap();
    assert_eq!(std::str::from_utf8(&told), Ok("HTTP/1.1 413"));
    server.works().await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_this_machine_may_ask_and_others_only_by_name() {
    let http = HttpConfig { origins: "https://chat.example.org".into(), ..HttpConfig::default() };
    let server = Server::of(&tiny(), |c| c.http = http).await;
    let ask = |method: Method, origin: &'static str| {
        let request = server.client.request(method, format!("{}/v1/policy/rollback", server.url));
        let asks = request.header("access-control-request-method", "POST");
        asks.header("access-control-request-headers", "content-type,x-own").header("origin", origin).send()
    };
    for origin in ["http://localhost:3000", "https://chat.example.org"] {
        let allowed = ask(Method::OPTIONS, origin).await.unwrap();
        assert_eq!(allowed.status(), StatusCode::NO_CONTENT);
        assert_eq!(allowed.headers()["access-control-allow-origin"], origin);
        assert_eq!(allowed.headers()["access-control-allow-headers"], "content-type,x-own");
        assert_eq!(ask(Method::POST, origin).await.unwrap().headers()["access-control-allow-origin"], origin);
    }
    for method in [Method::OPTIONS, Method::POST] {
        let refused = ask(method, "https://example.org").await.unwrap();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert!(refused.headers().get("access-control-allow-origin").is_none());
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_drains_ends_what_runs_and_takes_nothing_new() {
    let mut server = Server::of(&tiny(), |c| c.serve.context = 8192).await;
    assert_eq!(server.get("/health").await.1["state"], "ready");
    let request = server.client.post(format!("{}/v1/completions", server.url));
    let mut running = request.body(long(json!({"stream": true})).to_string()).send().await.unwrap();
    let first = running.chunk().await.unwrap().unwrap();
    server.ask_to_stop();
    let until = Instant::now() + Duration::from_secs(10);
    while server.get("/health").await.0 == StatusCode::OK {
        assert!(Instant::now() < until);
    }
    assert_eq!(server.get("/health").await.1["state"], "draining");
    let (status, answer) = server.post("/v1/completions", json!({"prompt": "hi"})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    let mut text = String::from_utf8_lossy(&first).into_owned();
    while let Some(chunk) = running.chunk().await.unwrap() {
        text += &String::from_utf8_lossy(&chunk);
    }
    assert!(text.trim_end().ends_with("data: [DONE]") && text.contains("\"finish_reason\":\"length\""), "{text}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_answers_one_that_fails_ends_alone_and_the_stream_ends() {
    let server = Server::start().await;
    // Begins with z, which is whole, or with q, after which nothing is allowed.
    let grammar = "root ::= \"z\" | \"q\" x\nx ::= x \"a\"";
    let bias = json!({"122": 100, "113": 100});
    let mut mixed = 0;
    for seed in 0..10 {
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "n": 4, "seed": seed, "stream": true,
            "grammar": grammar, "logit_bias": bias, "stream_options": {"include_usage": true}});
        let events = server.stream("/v1/chat/completions", body).await;
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
        let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
        // One that failed has its error, and no reason that OpenAI's clients would not know.
        let ended = |c: &&Value| c["choices"][0]["finish_reason"].is_string() != c["error"].is_object();
        let ends: Vec<&Value> = chunks.iter().filter(ended).collect();
        assert_eq!(ends.len(), 4, "{chunks:?}");
        let failed = ends.iter().filter(|c| c["error"].is_object()).count();
        assert!(chunks.last().unwrap()["usage"]["prompt_tokens"].is_u64(), "{chunks:?}");
        mixed += usize::from(failed > 0 && failed < 4);
    }
    assert!(mixed > 0);
    server.works().await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_throws_and_a_context_too_short_are_the_clients_to_know() {
    let template = "{{ raise_exception('no system role') }}";
    let server = Server::of(&TinySpec { template, ..tiny() }, |c| {
        (c.serve.context, c.serve.slots, c.serve.batch) = (16, 1, 16);
    })
    .await;
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    let (status, answer) = server.post("/v1/chat/completions", chat).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message(&answer).contains("no system role"), "{answer}");
    let (status, answer) = server.post("/v1/completions", json!({"prompt": "x".repeat(40)})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message(&answer).contains("the context of 16"), "{answer}");
    server.works().await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_told_so_and_makes_room() {
    let server = Server::of(&tiny(), |c| {
        (c.serve.context, c.serve.slots, c.serve.request_seconds) = (1 << 18, 1, 1);
    })
    .await;
    let asked = Instant::now();
    let endless = || server.post("/v1/completions", long(json!({"max_tokens": 250_000})));
    // One runs, one waits for it.
    let (running, waiting) = tokio::join!(endless(), endless());
    for (status, answer) in [running, waiting] {
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{answer}");
        assert_eq!(answer["error"]["code"], "time_limit_exceeded");
        assert!(message(&answer).contains("longer than the 1 seconds"), "{answer}");
    }
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    server.works().await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_kept_give_way_and_answers_under_way_do_not() {
    let server = Server::of(&tiny(), |c| (c.http.connections, c.serve.context) = (8, 1 << 15)).await;
    let request = server.client.post(format!("{}/v1/completions", server.url));
    let mut running =
        request.body(long(json!({"stream": true, "max_tokens": 20_000})).to_string()).send().await.unwrap();
    let first = running.chunk().await.unwrap().unwrap();
    let mut kept = Vec::new();
    for _ in 0..7 {
        kept.push(server.raw().await);
    }
    let asked = Instant::now();
    for _ in 0..3 {
        for stream in &mut kept {
            // One that has given way is opened anew, as whoever keeps others out would do.
            let mut byte = [0; 1];
            let asks = stream.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await;
            if asks.is_err() || stream.read(&mut byte).await.unwrap_or(0) == 0 {
                *stream = server.raw().await;
            }
        }
        let alone = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        for _ in 0..3 {
            assert_eq!(alone.get(format!("{}/health", server.url)).send().await.unwrap().status(), StatusCode::OK);
        }
    }
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    let mut text = String::from_utf8_lossy(&first).into_owned();
    for _ in 0..100 {
        text += &String::from_utf8_lossy(&running.chunk().await.unwrap().expect("it goes on"));
    }
    assert!(!text.contains("error"), "{text}");
    drop((running, kept));
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_come_a_byte_at_a_time_keep_nobody_out() {
    let server = Server::of(&tiny(), |c| c.http.connections = 8).await;
    let head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n{";
    let mut slow = Vec::new();
    for _ in 0..12 {
        let mut stream = server.raw().await;
        stream.write_all(head).await.unwrap();
        slow.push(stream);
    }
    let alone = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
    let asked = Instant::now();
    for _ in 0..10 {
        for stream in &mut slow {
            if stream.write_all(b" ").await.is_err() {
                *stream = server.raw().await;
                stream.write_all(head).await.unwrap();
            }
        }
        assert_eq!(alone.get(format!("{}/health", server.url)).send().await.unwrap().status(), StatusCode::OK);
    }
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    drop(slow);
    server.works().await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_whose_clients_have_left_is_given_up() {
    let server = Server::of(&tiny(), |c| c.serve.context = 1 << 18).await;
    let leave = async |path: &str, body: Value| {
        let (mut stream, body) = (server.raw().await, body.to_string());
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.unwrap();
    };
    // An answer that is told at its end, so that nothing is written meanwhile.
    leave("/v1/completions", long(json!({"max_tokens": 200_000}))).await;
    // More texts than are embedded in minutes, as many requests as may wait and one.
    let text: Vec<u32> = (0..2048).map(|i| i % 200).collect();
    for _ in 0..17 {
        leave("/v1/embeddings", json!({"input": vec![&text; 256]})).await;
    }
    let asked = Instant::now();
    while server.post("/v1/embeddings", json!({"input": "hi"})).await.0 != StatusCode::OK
        || server.engine.status().load.running > 0
    {
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", server.engine.status().load);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_that_nobody_waits_for_hold_up_no_end() {
    let server = Server::start().await;
    let text: Vec<u32> = (0..2048).map(|i| i % 200).collect();
    let body = json!({"input": vec![&text; 256]}).to_string();
    let mut stream = server.raw().await;
    let head = format!("POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    // Under way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(stream);
    let asked = Instant::now();
    server.close().await;
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_half_may_wait_long_for_its_answer() {
    let server = Server::of(&tiny(), |c| (c.serve.slots, c.serve.context) = (1, 1 << 16)).await;
    // What asks it whether it is there is skipped by clients of HTTP 1.1, and not sent to older ones.
    for (version, asked) in [("1.1", "HTTP/1.1 100 Continue\r\n\r\n"), ("1.0", "")] {
        let before = server.client.post(format!("{}/v1/completions", server.url));
        let before = before.body(long(json!({"stream": true, "max_tokens": 60_000})).to_string()).send().await.unwrap();
        let (mut stream, body) = (server.raw().await, r#"{"prompt": "hi", "max_tokens": 2}"#);
        let length = body.len();
        let head = format!("POST /v1/completions HTTP/{version}\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut told = vec![0; asked.len()];
        stream.read_exact(&mut told).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&told), asked);
        if asked.is_empty() {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        drop(before);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let answer = answer.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
        assert!(answer.starts_with(&format!("HTTP/{version} 200 OK")), "{answer}");
    }
    server.close().await;
}
