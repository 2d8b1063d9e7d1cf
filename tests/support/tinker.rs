//! A Tinker server in this process, as SkyRL's with its JAX back end was seen to be: candle does its arithmetic, so
//! that a step there can be compared with one here. And what may go wrong with one. Tests nothing.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use apa::optim::{AdamW, AdamWConfig};
use apa::policy::{Decoder, Lora, PEFT_FILES, Packed};
use candle_core::{Tensor, Var};
use serde_json::{Value, json};

/// SkyRL's, whatever is asked.
pub const ALPHA: f64 = 32.0;

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Refused with this status; nothing is done.
    Status(u16),
    /// Done, but the connection ends without a reply.
    Dies,
    /// Answered with this.
    Says(&'static str),
    /// Answered with so many bytes.
    Long(usize),
    /// Not answered for a while.
    Hangs(Duration),
    /// All models are forgotten before it, as by a server that starts anew.
    Forgets,
}

pub struct Fake {
    pub url: String,
    state: Arc<Mutex<State>>,
}

struct Policy {
    lora: Lora,
    optimizer: AdamW,
    gradient: Vec<Tensor>,
    sequences: usize,
}

struct State {
    decoder: Arc<Decoder>,
    models: HashMap<String, Policy>,
    checkpoints: HashMap<String, (Vec<Tensor>, AdamW)>,
    archives: HashMap<String, Vec<u8>>,
    results: Vec<Result<Value, String>>,
    /// Requests by name, in order.
    asked: Vec<String>,
    keys: Vec<Option<String>>,
    bodies: HashMap<String, Value>,
    /// Of requests by name; each happens once.
    faults: Vec<(&'static str, Fault)>,
}

impl Fake {
    pub fn start(decoder: Arc<Decoder>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            decoder,
            models: HashMap::new(),
            checkpoints: HashMap::new(),
            archives: HashMap::new(),
            results: Vec::new(),
            asked: Vec::new(),
            keys: Vec::new(),
            bodies: HashMap::new(),
            faults: Vec::new(),
        }));
        let shared = state.clone();
        // It ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || answer(&stream, &shared));
            }
        });
        Self { url, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next request of that name meets this.
    pub fn fault(&self, what: &'static str, fault: Fault) {
        self.state().faults.push((what, fault));
    }

    /// How often it was asked for something so far.
    pub fn asked(&self, what: &str) -> usize {
        self.state().asked.iter().filter(|asked| *asked == what).count()
    }

    /// The keys that came with requests.
    pub fn keys(&self) -> Vec<Option<String>> {
        self.state().keys.clone()
    }

    /// The last body of a request of that name.
    pub fn body(&self, what: &str) -> Value {
        self.state().bodies[what].clone()
    }

    /// Models in its memory.
    pub fn models(&self) -> usize {
        self.state().models.len()
    }

    /// Forgets all models, as a server that starts anew, or one whose sessions expired.
    pub fn forget_models(&self) {
        self.state().models.clear();
    }

    /// Forgets all checkpoints.
    pub fn forget_checkpoints(&self) {
        self.state().checkpoints.clear();
    }
}

fn answer(mut stream: &TcpStream, shared: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let (mut length, mut key) = (0, None);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) <= 2 {
            break;
        }
        let (name, value) = header.split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "x-api-key" => key = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let what = path.trim_start_matches("/api/v1/").to_owned();
    let name = what.rsplit('/').next().unwrap_or_default().to_owned();

    let mut state = shared.lock().unwrap();
    state.asked.push(name.clone());
    state.keys.push(key);
    state.bodies.insert(name.clone(), body.clone());
    let place = state.faults.iter().position(|(of, _)| *of == name);
    let fault = place.map(|place| state.faults.remove(place).1);
    let (status, more, reply) = match fault {
        Some(Fault::Status(status)) => (status, String::new(), b"{\"detail\": \"as told\"}".to_vec()),
        Some(Fault::Says(text)) => (200, String::new(), text.as_bytes().to_vec()),
        Some(Fault::Long(bytes)) => (200, String::new(), vec![b' '; bytes]),
        Some(Fault::Hangs(time)) => {
            drop(state);
            return std::thread::sleep(time);
        }
        Some(Fault::Dies) => {
            state.reply(&what, &body);
            return;
        }
        other => {
            if matches!(other, Some(Fault::Forgets)) {
                state.models.clear();
            }
            state.reply(&what, &body)
        }
    };
    drop(state);
    let length = reply.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{more}connection: close\r\n\r\n");
    // Whoever hung up needs no answer.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&reply));
}

impl State {
    fn reply(&mut self, what: &str, body: &Value) -> (u16, String, Vec<u8>) {
        let said = |value: Value| (200, String::new(), value.to_string().into_bytes());
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        if let Some(id) = what.strip_suffix("/archive") {
            // Elsewhere, as SkyRL's is.
            return (302, format!("location: /api/v1/{id}/download\r\n"), Vec::new());
        }
        if let Some(id) = what.strip_suffix("/download") {
            return (200, String::new(), self.archives[id].clone());
        }
        match what {
            "get_server_capabilities" => said(json!({"supported_models": [{"model_name": "tiny"}]})),
            "create_session" => said(json!({"type": "create_session", "session_id": "session_1"})),
            "session_heartbeat" => said(json!({"type": "session_heartbeat"})),
            "get_info" => {
                let status = if self.models.contains_key(&text("model_id")) { "created" } else { "unloaded" };
                said(json!({"model_id": text("model_id"), "status": status}))
            }
            "retrieve_future" => match self.results[text("request_id").parse::<usize>().unwrap()].clone() {
                Ok(result) => said(result),
                Err(why) => (400, String::new(), json!({"detail": why}).to_string().into_bytes()),
            },
            what => {
                let result = self.done(what, body);
                self.results.push(result);
                said(json!({"request_id": (self.results.len() - 1).to_string()}))
            }
        }
    }

    fn done(&mut self, what: &str, body: &Value) -> Result<Value, String> {
        if what == "create_model" {
            let id = format!("model_{}", self.results.len());
            let number = |name: &str| body["lora_config"][name].as_u64().unwrap();
            let lora = Lora::new(&self.decoder, number("rank") as usize, ALPHA, None, number("seed")).unwrap();
            let optimizer = AdamW::new(&lora.vars()).unwrap();
            self.models.insert(id.clone(), Policy { lora, optimizer, gradient: Vec::new(), sequences: 0 });
            return Ok(json!({"model_id": id}));
        }
        let id = body["model_id"].as_str().unwrap().to_owned();
        let decoder = self.decoder.clone();
        let policy = self.models.get_mut(&id).ok_or(format!("Model {id} not loaded"))?;
        let name = body["path"].as_str().unwrap_or_default();
        Ok(match what {
            "forward" => {
                let data = body["forward_input"]["data"].as_array().unwrap();
                let logprobs = data.iter().map(|datum| logprobs_of(&decoder, &policy.lora, datum).to_vec1().unwrap());
                outputs(logprobs.collect())
            }
            "forward_backward" => policy.forward_backward(&decoder, &body["forward_backward_input"]),
            "optim_step" => policy.optim_step(&body["adam_params"]),
            "save_weights" => {
                let path = format!("tinker://{id}/weights/{name}");
                let values = policy.lora.vars().iter().map(|var| var.copy().unwrap()).collect();
                self.checkpoints.insert(path.clone(), (values, policy.optimizer.clone()));
                json!({"path": path, "type": "save_weights"})
            }
            "load_weights" => {
                let (values, optimizer) = self.checkpoints.get(name).ok_or("Checkpoint not found")?;
                policy.lora.vars().iter().zip(values).for_each(|(var, value)| var.set(value).unwrap());
                policy.optimizer = optimizer.clone();
                json!({"type": "load_weights"})
            }
            "save_weights_for_sampler" => {
                let archive = archive(&policy.lora, &decoder);
                self.archives.insert(format!("training_runs/{id}/checkpoints/{name}"), archive);
                json!({"path": format!("tinker://{id}/{name}")})
            }
            "unload_model" => {
                self.models.remove(&id);
                json!({"model_id": id, "status": "unloaded"})
            }
            other => return Err(format!("no such request: {other}")),
        })
    }
}

impl Policy {
    /// Each sequence's losses are divided by the sum of its weights, as SkyRL's are.
    fn forward_backward(&mut self, decoder: &Decoder, input: &Value) -> Value {
        assert_eq!(input["loss_fn"], "importance_sampling");
        let mut said = Vec::new();
        for datum in input["data"].as_array().unwrap() {
            let logprobs = logprobs_of(decoder, &self.lora, datum);
            let list = |name: &str| {
                let values: Vec<f32> = serde_json::from_value(datum["loss_fn_inputs"][name]["data"].clone()).unwrap();
                Tensor::new(values, logprobs.device()).unwrap()
            };
            let (old, advantages, weights) = (list("logprobs"), list("advantages"), list("weights"));
            let ratio = (&logprobs - &old).unwrap().exp().unwrap();
            let sum = f64::from(weights.sum_all().unwrap().to_scalar::<f32>().unwrap());
            let parts = ratio.mul(&advantages).unwrap().mul(&weights).unwrap();
            let loss = (parts.sum_all().unwrap() * (-1.0 / sum)).unwrap();
            let mut store = loss.backward().unwrap();
            let vars = self.lora.vars();
            let fresh: Vec<Tensor> = vars.iter().map(|var: &Var| store.remove(var).unwrap()).collect();
            self.gradient = match self.gradient.is_empty() {
                true => fresh,
                false => self.gradient.iter().zip(&fresh).map(|(a, b)| (a + b).unwrap()).collect(),
            };
            self.sequences += 1;
            said.push(logprobs.to_vec1().unwrap());
        }
        outputs(said)
    }

    fn optim_step(&mut self, params: &Value) -> Value {
        let number = |name: &str| params[name].as_f64().unwrap();
        assert_eq!(number("eps"), apa::optim::EPSILON);
        let config = AdamWConfig {
            lr: number("learning_rate"),
            betas: [number("beta1"), number("beta2")],
            weight_decay: number("weight_decay"),
        };
        let gradient = std::mem::take(&mut self.gradient);
        let norm = apa::optim::norm(gradient.iter()).unwrap() / self.sequences as f64;
        let scale = 1.0 / std::mem::take(&mut self.sequences) as f64;
        self.optimizer.update(&self.lora.vars(), &gradient, scale, config).unwrap();
        json!({"metrics": {"skyrl.ai/grad_norm": norm}})
    }
}

/// Log-probabilities of a datum's targets, through which gradients flow.
fn logprobs_of(decoder: &Decoder, lora: &Lora, datum: &Value) -> Tensor {
    let tokens = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let input = tokens(&datum["model_input"]["chunks"][0]["tokens"]);
    let targets = tokens(&datum["loss_fn_inputs"]["target_tokens"]["data"]);
    let hidden = decoder.hidden(&Packed::new(&[&input]).unwrap(), Some(lora)).unwrap();
    decoder.logprobs(&hidden, &targets, &vec![1.0; targets.len()]).unwrap()
}

fn outputs(logprobs: Vec<Vec<f32>>) -> Value {
    let output = |data: Vec<f32>| json!({"logprobs": {"data": data, "dtype": "float32", "shape": [data.len()]}});
    json!({"loss_fn_outputs": logprobs.into_iter().map(output).collect::<Vec<_>>(), "metrics": {}})
}

/// As SkyRL packs it.
fn archive(lora: &Lora, decoder: &Decoder) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    lora.write_peft(dir.path(), decoder, "tiny").unwrap();
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    let mut tar = tar::Builder::new(gzip);
    for name in PEFT_FILES {
        tar.append_path_with_name(Path::new(dir.path()).join(name), format!("./{name}")).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}
