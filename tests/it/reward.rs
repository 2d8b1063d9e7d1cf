//! `apad reward` on a tiny model: it learns pairs that can be learned, refuses what it should, and goes on where it
//! stopped.

use std::fs;
use std::process::{Command, Output};
use std::sync::Arc;

use apa::config::Dtype;
use apa::policy::Decoder;
use apa::reward::{Learner, Pair, Progress, RewardAdapter, Settings};
use candle_core::Device;
use serde_json::{Value, json};

use crate::support::bench::{self, Bench, result, said};
use crate::support::tiny::{TinySpec, tiny_model};

impl Bench {
    fn reward(&self, args: &[&str]) -> Output {
        self.apad("reward").args(args).args(["--model", "tiny.gguf", "--threads", "1"]).output().unwrap()
    }

    /// Answers that say please are better; three lines are bad.
    fn write_pairs(&self, name: &str, first: usize, count: usize) {
        let mut lines = Vec::new();
        for i in first..first + count {
            let prompt = json!([{"role": "user", "content": format!("question {i}")}]);
            let (good, bad) = (format!("please {}", i * 7 % 97), format!("no {}", i * 5 % 89));
            lines.push(json!({"prompt": prompt, "chosen": good, "rejected": bad}).to_string());
        }
        lines.insert(3, json!({"prompt": "p", "chosen": "same", "rejected": "same"}).to_string());
        lines.insert(5, json!({"prompt": "p", "chosen": "", "rejected": "x"}).to_string());
        lines.insert(6, json!({"prompt": "long ".repeat(3000), "chosen": "a", "rejected": "b"}).to_string());
        let long = |word: &str| word.repeat(3000);
        lines.insert(7, json!({"prompt": "p", "chosen": long("a "), "rejected": long("b ")}).to_string());
        fs::write(self.path(name), lines.join("\n")).unwrap();
    }
}

#[test]
fn pairs_are_learned_measured_and_bad_lines_named() {
    let bench = Bench::new();
    bench.write_pairs("pairs.jsonl", 0, 80);
    bench.write_pairs("others.jsonl", 500, 40);
    let flags = ["--epochs", "4", "--lr", "5e-3", "--batch", "8", "--validation", "0.2", "--rank", "4", "--json"];
    let train =
        |out: &'static str| bench.reward(&[&["train", "--pairs", "pairs.jsonl", "--out", out], &flags[..]].concat());
    let output = train("a.gguf");
    let summary = result(&output);
    assert_eq!(summary["refused_lines"], json!([4, 6, 7, 8]), "{summary}");
    for part in ["pairs.jsonl:4: left out: both answers are the same", ":6: left out: the chosen answer is empty"] {
        assert!(said(&output).contains(part), "{}", said(&output));
    }
    assert!(said(&output).contains(":7: left out: the prompt has"), "{}", said(&output));
    assert!(said(&output).contains(":8: left out: both answers are longer than 1024 tokens"), "{}", said(&output));
    let held = summary["manifest"]["held_back"].as_array().unwrap().len();
    let trained = summary["manifest"]["trained_pairs"].as_u64().unwrap() as usize;
    assert!(held + trained == 80 && (6..30).contains(&held), "{held} of 80 held back");
    assert!(!bench.path("a.gguf.checkpoint").exists());

    // The same seed, the same weights.
    let again = result(&train("b.gguf"));
    assert_eq!(again["manifest"]["validation"], summary["manifest"]["validation"]);

    let score = |pairs: &str, more: &[&str]| {
        result(&bench.reward(&[&["score", "--reward", "a.gguf", "--pairs", pairs], more].concat()))
    };
    let others = score("others.jsonl", &[]);
    assert_eq!(others["pairs"], 40);
    assert!(others["accuracy"].as_f64().unwrap() >= 0.95, "{others}");
    assert!(others["margin"]["mean"].as_f64().unwrap() > 0.5, "{others}");
    let (report, kept) = (score("pairs.jsonl", &["--held-back"]), &summary["manifest"]["validation"]);
    assert_eq!(report["pairs"].as_u64().unwrap() as usize, held);
    assert_eq!(report["accuracy"], kept["accuracy"]);
    assert!((report["loss"].as_f64().unwrap() - kept["loss"].as_f64().unwrap()).abs() < 1e-4, "{report} {kept}");
}

#[test]
fn wrong_files_are_refused_with_the_reason() {
    let bench = Bench::new();
    fs::write(bench.path("bad.jsonl"), "nonsense\n").unwrap();
    let fails = |args: &[&str], code: i32, part: &str| bench::fails(&bench.reward(args), code, part);
    let train = ["train", "--pairs", "bad.jsonl", "--out", "a.gguf"];
    fails(&train, 1, "bad.jsonl holds no pair that can be used (1 lines left out)");
    fails(&[&train[..], &["--lr", "0"]].concat(), 2, "lr is 0, expected a number above 0");
    fails(&["train", "--pairs", "none.jsonl", "--out", "a.gguf"], 1, "none.jsonl");
    fails(&["score", "--pairs", "bad.jsonl", "--reward", "tiny.gguf"], 1, "its general.type is model");
}

/// Pairs of random-looking tokens: the chosen answer holds token 40 where the rejected one holds 41.
fn pairs(count: u32) -> Vec<Pair> {
    let answer = |i: u32, mark: u32| vec![50 + i % 7, mark, 60 + i % 5];
    let pair = |i| Pair { line: 0, prompt: vec![i % 31, i % 29 + 3], chosen: answer(i, 40), rejected: answer(i, 41) };
    (0..count).map(pair).collect()
}

fn settings() -> Settings {
    Settings { rank: 4, alpha: 8.0, epochs: 3, lr: 5e-3, batch: 4, patience: 9, ..Settings::default() }
}

fn decoder(bench: &Bench) -> Arc<Decoder> {
    Arc::new(Decoder::load(&bench.path("tiny.gguf"), &Device::Cpu, Dtype::F32).unwrap())
}

fn learner(decoder: &Arc<Decoder>) -> Learner {
    Learner::new(decoder.clone(), &settings(), pairs(24), pairs(60)[30..].to_vec(), "the pairs").unwrap()
}

#[test]
fn a_run_that_was_stopped_goes_on_as_itself() {
    let bench = Bench::new();
    let (decoder, checkpoint) = (decoder(&bench), bench.path("c"));
    let mut whole = learner(&decoder);
    let mut losses = Vec::new();
    let mut note = |said: &Progress| match said {
        Progress::Step { loss, .. } => losses.push(*loss),
        Progress::Evaluated { report, .. } => losses.push(report.loss),
    };
    let ended = whole.run(&|| false, &mut note).unwrap();
    assert_eq!((ended.steps, ended.stopped), (18, false));

    let mut again = Vec::new();
    let mut runs = 0;
    loop {
        let mut part = learner(&decoder).checkpoint(&checkpoint, true).unwrap();
        let until = part.steps() + 4;
        let steps = std::cell::Cell::new(part.steps());
        let mut note = |said: &Progress| match said {
            Progress::Step { step, loss, .. } => {
                steps.set(*step);
                again.push(*loss);
            }
            Progress::Evaluated { report, .. } => again.push(report.loss),
        };
        let outcome = part.run(&|| steps.get() >= until, &mut note).unwrap();
        runs += 1;
        if !outcome.stopped {
            assert_eq!(outcome, ended);
            let score = |model| RewardAdapter::new(model, manifest(&decoder)).score(&[([1u32], [40u32, 9])]).unwrap();
            assert_eq!(score(part.finish().unwrap()), score(whole.finish().unwrap()));
            break;
        }
    }
    assert!(runs > 3);
    assert_eq!(again, losses);

    let other = Settings { lr: 1e-3, ..settings() };
    let other = Learner::new(decoder, &other, pairs(24), pairs(9), "the pairs").unwrap().checkpoint(&checkpoint, true);
    assert!(other.err().unwrap().message().contains("other pairs or settings"));
}

fn manifest(decoder: &Decoder) -> apa::reward::Manifest {
    apa::reward::Manifest::new(settings(), decoder.fingerprint())
}

#[test]
fn a_reward_model_reads_back_its_file_and_no_other_base() {
    let bench = Bench::new();
    let decoder = decoder(&bench);
    let mut learner = learner(&decoder);
    learner.run(&|| false, &mut |_| ()).unwrap();
    let mut manifest = manifest(&decoder);
    manifest.end_token = Some(280);
    let adapter = RewardAdapter::new(learner.finish().unwrap(), manifest);
    let file = bench.path("r.gguf");
    adapter.save(&file).unwrap();
    let answers = [(vec![3, 5], vec![51, 40, 60]), (vec![3, 5], vec![51, 41, 60, 280]), (vec![9; 40], vec![40])];
    let scores = adapter.score(&answers).unwrap();
    let read = RewardAdapter::open(decoder.clone(), &file).unwrap();
    assert_eq!(read.score(&answers).unwrap(), scores);
    assert_eq!(read.manifest(), adapter.manifest());
    assert!(scores[0] > scores[1], "{scores:?}");
    // Each answer is judged alone, whoever stands beside it; and an end that is missing is put there.
    let alone = read.score(&answers[..1]).unwrap()[0];
    assert!((alone - scores[0]).abs() < 1e-5);
    let ended = read.score(&[(vec![3, 5], vec![51, 40, 60, 280])]).unwrap()[0];
    assert!((alone - ended).abs() < 1e-5);

    tiny_model(&bench.path("other.gguf"), &TinySpec { seed: 8, ..TinySpec::new("llama") }).unwrap();
    let other = Arc::new(Decoder::load(&bench.path("other.gguf"), &Device::Cpu, Dtype::F32).unwrap());
    let error = RewardAdapter::open(other, &file).err().unwrap();
    assert!(error.message().contains("is for base"), "{error}");
    assert!(read.score(&[([0u32], [9999u32])]).unwrap_err().message().contains("outside the vocabulary"));
}

#[test]
fn feedback_comes_in_goes_out_and_comes_in_again() {
    let bench = Bench::new();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.current_dir(bench.dir.path()).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(args).output().unwrap()
    };
    let lines = [
        json!({"prompt": [{"role": "user", "content": "hi"}], "chosen": "hello", "rejected": "go away"}),
        json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
            "thumbs_up": 1, "thumbs_down": 3}),
        json!({"prompt": "one plus one", "completion": " is two", "label": true, "user": "ann"}),
        json!({"prompt": "p", "completion": ""}),
        json!({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
        json!({"prompt": "p", "chosen": "the sea ".repeat(4000), "rejected": "the rain ".repeat(4000)}),
        json!({"prompt": "the sea ".repeat(4000), "completion": "yes", "label": true}),
    ];
    let lines_refused = lines[6].to_string();
    fs::write(bench.path("in.jsonl"), lines.map(|l| l.to_string()).join("\n")).unwrap();
    let import = |file: &str, data: &str| {
        let args = ["import", "feedback", file, "--model", "tiny.gguf", "--data", data, "--json"];
        result(&run(&args))
    };
    // What holds nothing leaves no data folder behind.
    for (file, text) in [("empty", ""), ("unusable", &*lines_refused)] {
        fs::write(bench.path(file), text).unwrap();
        let ran = run(&["import", "feedback", file, "--model", "tiny.gguf", "--data", "none"]);
        assert!(!ran.status.success() && !bench.path("none").exists(), "{file}: {ran:?}");
    }
    let done = import("in.jsonl", "a");
    assert_eq!((&done["ratings"], &done["preferences"], &done["known"]), (&json!(2), &json!(2), &json!(0)));
    let refused: Vec<_> = done["refused"].as_array().unwrap().iter().map(|r| r["line"].as_u64().unwrap()).collect();
    assert_eq!(refused, [4, 6, 7], "{done}");
    assert_eq!(import("in.jsonl", "a")["known"], 4, "twice is once");

    let export = |data: &str, out: &str| {
        let args = ["export", "feedback", "--model", "tiny.gguf", "--data", data, "--out", out];
        assert!(run(&args).status.success());
        let text = fs::read_to_string(bench.path(out)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
    };
    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    let args = ["feedback", "--model", "tiny.gguf", "--data", "a"];
    let ran = bench.apad("export").args(args).stdout(gone).output().unwrap();
    assert_eq!((ran.status.code(), &*String::from_utf8_lossy(&ran.stderr)), (Some(141), ""), "its reader has left");
    let out = export("a", "out.jsonl");
    assert_eq!(out.len(), 4);
    assert_eq!(
        (&out[0]["completion"], &out[0]["rating"], &out[0]["label"]),
        (&json!("yes"), &json!(-0.5), &json!(false))
    );
    assert!(out[0]["prompt"].as_str().unwrap().contains("<|im_start|>user\nhi<|im_end|>"), "{}", out[0]);
    assert_eq!((&out[1]["user"], &out[2]["chosen"]), (&json!("ann"), &json!("hello")));
    let again = import("out.jsonl", "b");
    assert_eq!((&again["ratings"], &again["preferences"]), (&json!(2), &json!(2)), "{again}");
    let tokens = |lines: &[Value]| lines.iter().map(|l| l["prompt_tokens"].clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&export("b", "again.jsonl")), tokens(&out), "exact tokens come back");

    // Signals teach as they do over HTTP.
    let copied = json!({"prompt": "one plus one", "completion": " is two", "signal": "copied", "user": "bob"});
    fs::write(bench.path("copied.jsonl"), copied.to_string()).unwrap();
    assert_eq!(import("copied.jsonl", "c")["others"], 1);
    assert_eq!(apa::ledger::Ledger::open(&bench.path("c")).unwrap().pending_ratings(), 1);

    let gone = result(&run(&["forget", "--user", "ann", "--data", "a", "--json"]));
    assert_eq!((&gone["generations"], &gone["feedback"]), (&json!(1), &json!(1)));
    assert_eq!(export("a", "less.jsonl").len(), 3);
}
