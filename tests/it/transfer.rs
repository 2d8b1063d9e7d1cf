//! Versions as files, answers that were made elsewhere, and scores, through HTTP and the command line.

use std::path::Path;
use std::process::Command;

use apa::types::PolicyVersion;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::adapter::lively_adapter;
use crate::support::reward::reward_model;
use crate::support::server::{Server, message};
use crate::support::tiny::{TinySpec, tiny_model};

async fn learned(server: &Server) {
    for (i, reward) in [1.0, -1.0, 0.5, -0.5].into_iter().enumerate() {
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "completion": format!("answer {i}"),
            "reward": reward, "user": format!("user-{i}")});
        let (status, receipt) = server.post("/v1/samples", body).await;
        assert_eq!(status, StatusCode::OK, "{receipt}");
        let (_, stored) = server.get(&format!("/v1/generations/{}", receipt["generation_id"].as_str().unwrap())).await;
        assert_eq!(stored["feedback"].as_array().unwrap().len(), 1, "{stored}");
    }
}

/// Nobody else can read what was written, whatever the umask says.
fn private(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let about = std::fs::metadata(path).unwrap();
        assert_eq!(about.permissions().mode() & 0o077, 0, "{}", path.display());
    }
}

async fn started() -> Server {
    Server::of(&TinySpec::new("llama"), |config| {
        config.gate.max_tokens = 8;
        config.gate.count = 4;
        (config.gate.cut_off, config.gate.repetition, config.gate.text_loss) = (1.0, 1.0, 100.0);
        (config.gate.kl_budget, config.gate.kl_step) = (1e6, 1e6);
        (config.gate.length, config.gate.entropy) = (1e6, 0.0);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_leaves_as_a_file_and_comes_back_as_a_new_one() {
    let server = started().await;
    learned(&server).await;
    let apad = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.arg("versions").args(args).env("APAD_URL", &server.url).env_remove("APAD_KEY");
        command.output()
    };
    let ran = tokio::task::block_in_place(|| apad(&["train", "--json"]).unwrap());
    let trained: Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    assert!(trained.to_string().contains("\"version\":1"), "{trained}");

    let response = server.client.get(format!("{}/v1/policy/versions/1/snapshot", server.url)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let length = response.content_length().unwrap();
    let file = response.bytes().await.unwrap();
    assert_eq!(length, file.len() as u64);
    let (status, restored) = server.call(Method::POST, "/v1/policy/restore", file.clone()).await;
    assert_eq!((status, &restored["policy_version"]), (StatusCode::OK, &json!(2)), "{restored}");

    let written = server.folder.path().join("one.tar");
    let path = written.to_str().unwrap();
    let ran = tokio::task::block_in_place(|| apad(&["snapshot", "1", path]).unwrap());
    assert!(ran.status.success() && std::fs::read(&written).unwrap() == file, "{ran:?}");
    private(&written);
    let embedded = server.folder.path().join("embedded.tar");
    server.engine.snapshot(PolicyVersion(1), &embedded).unwrap();
    private(&embedded);
    let ran = tokio::task::block_in_place(|| apad(&["restore", path]).unwrap());
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.starts_with("version 3 serves new requests: a person restored it; "), "{ran:?}");

    // Nothing is left on its way, and what is wrong is said without the service's own paths.
    for (body, words) in [(file.slice(..file.len() / 2), "the snapshot"), (Default::default(), "the body is empty")] {
        let (status, refused) = server.call(Method::POST, "/v1/policy/restore", body).await;
        assert!(status == StatusCode::BAD_REQUEST && message(&refused).contains(words), "{refused}");
        assert!(!message(&refused).contains("transfer"), "{refused}");
    }
    for version in ["0", "9", "x"] {
        let (status, refused) = server.get(&format!("/v1/policy/versions/{version}/snapshot")).await;
        assert!(status.is_client_error() && message(&refused).contains("version"), "{refused}");
    }
    let left = std::fs::read_dir(server.folder.path().join("data/transfer")).unwrap().count();
    assert_eq!(left, 0);
    server.close().await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn no_command_writes_over_a_data_folder_the_served_model_or_what_is_no_file() {
    let server = started().await;
    learned(&server).await;
    let folder = server.folder.path().to_owned();
    let path = |name: &str| folder.join(name).into_os_string().into_string().unwrap();
    let apad = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.args(args).current_dir(&folder).env("APAD_URL", &server.url).env_remove("APAD_KEY");
        tokio::task::block_in_place(|| command.output().unwrap())
    };
    assert!(apad(&["versions", "train"]).status.success());
    let model = server.engine.config().model.clone();
    let (base, lora, pairs) = (path("base.gguf"), path("lora.gguf"), path("pairs.jsonl"));
    tiny_model(Path::new(&base), &TinySpec { seed: 9, ..TinySpec::new("llama") }).unwrap();
    lively_adapter(Path::new(&base), 6.0, Path::new(&lora));
    std::fs::write(&pairs, "{}\n").unwrap();
    std::fs::write(path("notes"), "my notes").unwrap();
    assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    for (link, to) in [("to-pipe", "pipe"), ("to-ledger", "data/ledger.sqlite3"), ("to-nothing", "nothing")] {
        std::os::unix::fs::symlink(to, folder.join(link)).unwrap();
    }
    let own = ["data/ledger.sqlite3", "data/lock", "data/versions/000001/adapter.gguf", "to-ledger", "data/new"];
    let taken = ["notes", "pipe", "to-pipe", "to-nothing", "-", "data"];
    let kept = |name: &&&str| !matches!(**name, "pipe" | "to-pipe" | "-" | "data" | "data/new" | "to-nothing");
    let bytes = || -> Vec<Vec<u8>> {
        let mut all: Vec<_> =
            own.iter().chain(&taken).filter(kept).map(|name| std::fs::read(path(name)).unwrap()).collect();
        all.push(std::fs::read(&model).unwrap());
        all
    };
    let before = bytes();
    let served = model.to_str().unwrap();
    let exporting = ["export", "--model", &base, "--adapter", &lora];
    let with = |args: &[&'static str], out: &str| apad(&[&exporting[..], args, &["--out", out]].concat());
    for out in own.iter().chain(&taken).copied().chain([served]) {
        let training = ["reward", "train", "--model", &base, "--pairs", &pairs, "--out", out];
        for ran in [
            apad(&["versions", "snapshot", "1", out]),
            with(&["--merge"], out),
            with(&["--gguf"], out),
            apad(&training),
        ] {
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            assert_eq!(ran.status.code(), Some(1), "{out}: {said}");
            assert!(said.contains("is not written"), "{out}: {said}");
        }
        // A key file is made where there is none; other text is no key file.
        if out != served {
            let ran = apad(&["keys", "add", "ann", "--file", out]);
            assert_eq!(ran.status.code(), Some(1), "{out}: {ran:?}");
        }
    }
    for out in own.iter().copied().chain([served]) {
        let ran = apad(&["export", "feedback", "--model", served, "--data", "data", "--out", out]);
        assert_eq!(ran.status.code(), Some(1), "{out}: {ran:?}");
    }
    assert_eq!(with(&["--peft"], "data/peft").status.code(), Some(1));
    assert!(bytes() == before);
    assert!(!folder.join("-").exists() && !folder.join("data/peft").exists() && !folder.join("nothing").exists());
    use std::os::unix::fs::FileTypeExt;
    assert!(std::fs::symlink_metadata(path("pipe")).unwrap().file_type().is_fifo());

    // What has its place is written, and through a pipe too.
    let merged = with(&["--merge"], "data/whole/1.gguf");
    assert!(!merged.status.success(), "there is no such folder: {merged:?}");
    std::fs::create_dir(path("data/whole")).unwrap();
    let merged = with(&["--merge"], "data/whole/1.gguf");
    assert!(merged.status.success(), "{merged:?}");
    let read = std::thread::spawn({
        let pipe = path("pipe");
        move || std::fs::read_to_string(pipe).unwrap()
    });
    let ran = apad(&["export", "feedback", "--model", served, "--data", "data", "--out", "to-pipe"]);
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(read.join().unwrap().lines().count(), 4);
    let ran = apad(&["export", "feedback", "--model", served, "--data", "data", "--out", "feedback.jsonl"]);
    assert!(ran.status.success(), "{ran:?}");
    private(Path::new(&path("feedback.jsonl")));
    private(Path::new(&path("data/whole/1.gguf")));
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reward_model_scores_answers_and_puts_documents_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = reward_model(folder.path());
    let server = Server::of(&TinySpec::new("llama"), |config| config.reward.model = Some(file)).await;
    let answers = ["yes", "no", "the sea is salty"];
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "completions": answers});
    // The reward model is loaded beside the start.
    let mut tries = 0;
    let (status, scored) = loop {
        let (status, scored) = server.post("/v1/score", body.clone()).await;
        if status != StatusCode::BAD_REQUEST || tries > 200 {
            break (status, scored);
        }
        tries += 1;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(status, StatusCode::OK, "{scored}");
    let scores: Vec<f64> = (0..3).map(|i| scored["data"][i]["score"].as_f64().unwrap()).collect();
    let body = json!({"query": "hi", "documents": answers, "top_n": 2, "return_documents": true});
    let (status, ranked) = server.post("/v1/rerank", body).await;
    assert_eq!(status, StatusCode::OK, "{ranked}");
    let results = ranked["results"].as_array().unwrap();
    let best = (0..3).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
    assert_eq!((results.len(), results[0]["index"].as_u64()), (2, Some(best as u64)));
    assert_eq!(results[0]["document"]["text"], answers[best]);
    assert!(results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64(), "{ranked}");
    let (status, refused) = server.post("/v1/rerank", json!({"query": "hi", "documents": [""]})).await;
    assert_eq!(status, StatusCode::OK, "an answer of nothing but its end: {refused}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reward_model_it_is_said_that_there_is_none() {
    let server = Server::start().await;
    let body = json!({"prompt": "a", "completions": ["b"]});
    let (status, refused) = server.post("/v1/score", body).await;
    assert!(
        status == StatusCode::BAD_REQUEST && message(&refused).starts_with("no reward model is in use"),
        "{refused}"
    );
    server.close().await;
}
