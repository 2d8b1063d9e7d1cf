//! The HTTP service on a tiny model in this process, over a real socket. Tests nothing.

use apa::config::{Config, HttpConfig};
use apa::{Engine, http};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::document::Document;
use super::tiny::{TinySpec, tiny_model};

pub struct Server {
    pub engine: Engine,
    pub url: String,
    pub client: reqwest::Client,
    /// What answers are held against.
    document: Document,
    stop: Option<oneshot::Sender<()>>,
    pub served: JoinHandle<apa::Result<()>>,
    /// Holds the model and `data`.
    pub folder: TempDir,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(HttpConfig::default()).await
    }

    pub async fn with(http: HttpConfig) -> Self {
        Self::of(&TinySpec::new("llama"), |config| config.http = http).await
    }

    /// A server of that model, with the settings changed.
    pub async fn of(spec: &TinySpec, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("tiny.gguf");
        tiny_model(&model, spec).unwrap();
        let mut config = Config { model, data: folder.path().join("data"), ..Config::default() };
        config.serve.slots = 4;
        config.serve.context = 2048;
        config.serve.max_tokens = 12;
        config.serve.threads = 1;
        config.serve.speculate = false;
        config.train.auto = false;
        config.train.device = "cpu".into();
        config.train.batch = 4;
        config.train.minibatch = 2;
        config.train.rank = 4;
        change(&mut config);
        let settings = config.clone();
        let engine = tokio::task::spawn_blocking(move || Engine::open(settings)).await.unwrap().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn({
            let engine = engine.clone();
            async move { http::serve(engine, listener, &config.http, async { drop(stopped.await) }).await }
        });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let document = client.get(format!("{url}/openapi.json")).send().await.unwrap().json().await.unwrap();
        let document = Document::new(document);
        Self { engine, url, client, document, stop: Some(stop), served, folder }
    }

    /// A server that learns by itself from every four ratings. Nothing is refused: what random weights answer says
    /// nothing of what was learned.
    pub async fn learning() -> Self {
        Self::of(&TinySpec::new("llama"), |config| {
            config.train.auto = true;
            config.gate.max_tokens = 8;
            config.gate.count = 4;
            (config.gate.cut_off, config.gate.repetition, config.gate.text_loss) = (1.0, 1.0, 100.0);
            (config.gate.kl_budget, config.gate.kl_step) = (1e6, 1e6);
            (config.gate.length, config.gate.entropy) = (1e6, 0.0);
        })
        .await
    }

    /// The status and the JSON of an answer, which is as the API's document says.
    pub async fn call(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        let request = self.client.request(method.clone(), format!("{}{path}", self.url)).body(body);
        let response = request.send().await.unwrap();
        let status = response.status();
        let answer = response.json().await.unwrap();
        self.document.check(&method, path, status, "application/json", &answer);
        (status, answer)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, body.to_string()).await
    }

    pub async fn say(&self, seed: u64) -> Value {
        let body = json!({"messages": [{"role": "user", "content": "hello"}], "seed": seed});
        let (status, answer) = self.post("/v1/chat/completions", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    /// Events of a stream, without their `data: `.
    pub async fn stream(&self, path: &str, body: Value) -> Vec<String> {
        let request = self.client.post(format!("{}{path}", self.url)).body(body.to_string());
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = response.text().await.unwrap();
        let events: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect();
        for event in events.iter().filter_map(|event| serde_json::from_str(event).ok()) {
            self.document.check(&Method::POST, path, StatusCode::OK, "text/event-stream", &event);
        }
        events
    }

    /// Asks it to drain.
    pub fn ask_to_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub async fn close(mut self) {
        if self.stop.is_some() {
            self.ask_to_stop();
        }
        self.served.await.unwrap().unwrap();
        tokio::task::spawn_blocking(move || self.engine.shutdown()).await.unwrap();
    }
}

pub fn message(body: &Value) -> &str {
    body["error"]["message"].as_str().unwrap_or_else(|| panic!("no message in {body}"))
}
