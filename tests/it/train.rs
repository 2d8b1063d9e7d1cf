//! `apad train` on a tiny model: what it writes, that a run that goes on is the same run, and how rewards fail.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use apa::config::Dtype;
use apa::policy::Decoder;
use apa::reward::RewardAdapter;
use candle_core::Device;
use serde_json::{Value, json};

use crate::support::bench::{Bench, fails, said};

/// A bench with three prompts.
fn bench() -> Bench {
    let bench = Bench::new();
    let prompts = [
        r#"{"prompt": [{"role": "user", "content": "Why does bread rise?"}]}"#,
        r#"{"prompt": "The robin sat"}"#,
        r#"{"text": "To boil an egg"}"#,
    ];
    fs::write(bench.path("prompts.jsonl"), prompts.join("\n")).unwrap();
    bench
}

impl Bench {
    /// Four answers of up to eight tokens a step.
    fn train(&self, reward: &str, out: &str, more: &[&str]) -> Command {
        let mut command = self.apad("train");
        command.args(["--model", "tiny.gguf", "--prompts", "prompts.jsonl", "--batch", "4"]);
        command.args(["--minibatch", "2", "--max-new", "8", "--lr", "1e-2", "--reward", reward, "--out", out]);
        // A thread waits for nobody on a busy machine.
        command.args(["--set", "serve.threads=1", "--set", "train.threads=1"]).args(more);
        command
    }

    fn run(&self, reward: &str, out: &str, more: &[&str]) -> Output {
        self.train(reward, out, more).output().unwrap()
    }

    fn lines(&self, path: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(path)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Metrics without what a clock or the system measured.
    fn metrics(&self, out: &str) -> Vec<Value> {
        let mut lines = self.lines(&format!("{out}/seed-1/metrics.jsonl"));
        for line in &mut lines {
            let fields = line.as_object_mut().unwrap();
            fields.retain(|name, _| {
                !name.ends_with("seconds") && !name.ends_with("second") && name != "peak_memory_bytes"
            });
        }
        lines
    }

    /// That the run in `a` is the one in `b`, to the last bit of its weights.
    fn assert_same(&self, a: &str, b: &str) {
        let (metrics, samples) = (self.metrics(a), fs::read_to_string(self.path(&format!("{a}/seed-1/samples.jsonl"))));
        assert_eq!(metrics, self.metrics(b));
        assert_eq!(samples.unwrap(), fs::read_to_string(self.path(&format!("{b}/seed-1/samples.jsonl"))).unwrap());
        let checkpoint = format!("checkpoint-{:06}", metrics.len());
        for file in ["adapter.gguf".to_owned(), format!("{checkpoint}/trainer.safetensors")] {
            let read = |run: &str| fs::read(self.path(&format!("{run}/seed-1/{file}"))).unwrap();
            assert!(read(a) == read(b), "{file} differs");
        }
    }
}

/// Letters answer back: random models write all kinds of bytes, so that rewards differ.
const VOWELS: &str = "regex:[a-mA-M]";

/// What every step that learned something tells.
const MEASURED: [&str; 18] = [
    "reward_mean",
    "reward_std",
    "kl_k1_per_token",
    "kl_k3_per_token",
    "kl_k1_per_response",
    "kl_k3_per_response",
    "entropy",
    "serve_train_gap",
    "length_mean",
    "policy_loss",
    "value_loss",
    "value_error",
    "explained_variance",
    "clip_fraction",
    "value_clip_fraction",
    "grad_norm",
    "sampled_tokens_per_second",
    "trained_tokens_per_second",
];

#[test]
fn two_seeds_write_everything_and_are_compared() {
    let bench = bench();
    let output = bench.run("length:6", "a", &["--steps", "3", "--seed", "1,2", "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["experiment"]["seeds"][1]["steps"], 3, "{summary}");
    assert_eq!(summary["stopped"], false);

    for seed in [1, 2] {
        let metrics = bench.lines(&format!("a/seed-{seed}/metrics.jsonl"));
        assert_eq!(metrics.len(), 3);
        assert_eq!(metrics[2]["samples"], 12);
        assert!(metrics.iter().all(|m| m["reward_mean"].is_f64() && m["sampled_tokens_per_second"].is_f64()));
        let samples = bench.lines(&format!("a/seed-{seed}/samples.jsonl"));
        assert_eq!(samples.len(), 12);
        let of_step = |step: u64| samples.iter().filter(move |s| s["step"] == step);
        let mean = of_step(2).map(|s| s["score"].as_f64().unwrap()).sum::<f64>() / 4.0;
        assert!((mean - metrics[1]["reward_mean"].as_f64().unwrap()).abs() < 1e-12);
        for file in ["adapter.gguf", "checkpoint-000003/trainer.safetensors"] {
            assert!(bench.path(&format!("a/seed-{seed}/{file}")).exists(), "no {file}");
        }
        assert!(!bench.path(&format!("a/seed-{seed}/checkpoint-000002")).exists());
    }
    let samples = |seed| fs::read(bench.path(&format!("a/seed-{seed}/samples.jsonl"))).unwrap();
    assert_ne!(samples(1), samples(2), "both seeds gave the same answers");
    assert_eq!(&fs::read(bench.path("a/curves.png")).unwrap()[..8], b"\x89PNG\r\n\x1a\n");
    assert!(fs::read_to_string(bench.path("a/curves.svg")).unwrap().contains("mean reward of a batch"));

    // What is there is never written over.
    fails(&bench.run("length:6", "a", &["--steps", "3"]), 1, "--resume a");

    let compared = bench.apad("train").args(["--compare", "a", "a", "--out", "both", "--json"]).output().unwrap();
    assert!(compared.status.success(), "{}", said(&compared));
    let summary: Value = serde_json::from_slice(&compared.stdout).unwrap();
    assert_eq!(summary["experiments"].as_array().map(Vec::len), Some(2));
    assert!(bench.path("both/curves.png").exists() && bench.path("both/curves.svg").exists());
    fails(
        &bench.apad("train").args(["--compare", "nowhere", "--out", "both"]).output().unwrap(),
        1,
        "nowhere holds no run",
    );
}

#[test]
fn every_algorithm_moves_the_policy_and_names_its_lambda() {
    let bench = bench();
    for (algorithm, lambda) in [("apa", 0.1), ("awr", 1.0), ("ppo", 0.1), ("rloo", 0.1)] {
        let output = bench.run(VOWELS, algorithm, &["--steps", "2", "--algorithm", algorithm]);
        assert!(output.status.success(), "{}", said(&output));
        let plan: Value = serde_json::from_slice(&fs::read(bench.path(algorithm).join("run.json")).unwrap()).unwrap();
        let train = &plan["config"]["train"];
        assert_eq!(if algorithm == "awr" { &train["awr"]["lambda"] } else { &train["lambda"] }, lambda);
        let last = &bench.lines(&format!("{algorithm}/seed-1/metrics.jsonl"))[1];
        for name in MEASURED {
            assert!(last[name].is_f64(), "{name} is missing: {last}");
        }
        // Two engines on one F32 model; where the processor has it, ours multiplies in bf16.
        assert!(last["serve_train_gap"].as_f64().is_some_and(|gap| gap < 0.05), "{last}");
        let uniform = f64::from(crate::support::tiny::vocabulary().len() as u32).ln();
        assert!(last["entropy"].as_f64().is_some_and(|entropy| entropy > 0.0 && entropy < uniform), "{last}");
        assert!(last["kl_k3_per_token"].as_f64().is_some_and(|kl| kl > 0.0), "{algorithm}: {last}");
    }
}

#[test]
fn a_run_that_goes_on_is_the_run_that_was_not_stopped() {
    let bench = bench();
    let whole = bench.run(VOWELS, "whole", &["--steps", "5", "--checkpoint-every", "2"]);
    assert!(whole.status.success(), "{}", said(&whole));
    let half = bench.run(VOWELS, "half", &["--steps", "3", "--checkpoint-every", "2"]);
    assert!(half.status.success(), "{}", said(&half));
    // As after a crash in the middle of a line.
    let mut metrics = fs::read_to_string(bench.path("half/seed-1/metrics.jsonl")).unwrap();
    metrics.push_str("{\"step\": 4, \"rew");
    fs::write(bench.path("half/seed-1/metrics.jsonl"), metrics).unwrap();
    let rest = bench.apad("train").args(["--resume", "half", "--steps", "5"]).output().unwrap();
    assert!(rest.status.success(), "{}", said(&rest));
    bench.assert_same("half", "whole");

    fails(&bench.apad("train").args(["--resume", "half", "--steps", "4"]).output().unwrap(), 2, "at least the 5");
    fails(&bench.apad("train").args(["--resume", "half", "--lr", "1"]).output().unwrap(), 2, "--lr");
    fs::write(bench.path("prompts.jsonl"), "{\"text\": \"other\"}").unwrap();
    fails(&bench.apad("train").args(["--resume", "half"]).output().unwrap(), 1, "has changed since the run began");
}

/// Waits until the run has recorded `steps` steps.
fn until(child: &mut Child, metrics: &Path, steps: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(metrics).map_or(0, |t| t.lines().count()) < steps {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(Instant::now() < deadline, "{steps} steps took more than a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn ctrl_c_keeps_what_was_done_and_a_second_process_keeps_out() {
    let bench = bench();
    let mut command = bench.train(VOWELS, "stopped", &["--steps", "100000", "--checkpoint-every", "1000"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until(&mut child, &bench.path("stopped/seed-1/metrics.jsonl"), 2);
    fails(&bench.apad("train").args(["--resume", "stopped"]).output().unwrap(), 1, "another process works in");
    let killed = Command::new("sh").arg("-c").arg(format!("kill -INT {}", child.id())).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    fails(&output, 1, "`apad train --resume stopped` goes on");
    let steps = bench.metrics("stopped").len();
    assert!(bench.path(&format!("stopped/seed-1/checkpoint-{steps:06}")).exists());
    assert!(bench.path("stopped/curves.png").exists());

    // The same steps in one go.
    let plan = bench.path("stopped/run.json");
    let text = fs::read_to_string(&plan).unwrap();
    let more = steps + 2;
    fs::write(&plan, text.replace("\"steps\": 100000", &format!("\"steps\": {more}"))).unwrap();
    let rest = bench.apad("train").args(["--resume", "stopped"]).output().unwrap();
    assert!(rest.status.success(), "{}", said(&rest));
    let whole = bench.run(VOWELS, "whole", &["--steps", &more.to_string()]);
    assert!(whole.status.success(), "{}", said(&whole));
    bench.assert_same("stopped", "whole");
}

#[test]
fn a_reward_command_that_fails_is_one_sentence_and_the_steps_before_are_kept() {
    let bench = bench();
    // Judges two batches, then does something else; `$1` says what.
    let script = r#"n=$(cat count 2>/dev/null || echo 0); echo $((n + 1)) > count
if [ "$n" -ge 2 ]; then case "$1" in
    die) echo "no judge" >&2; exit 3;; hang) sleep 60;; *) echo nonsense; exit 0;; esac; fi
i=0; while read -r line; do i=$((i + 1)); echo "{\"score\": $i}"; done"#;
    fs::write(bench.path("judge.sh"), script).unwrap();
    for (how, why) in [
        ("die", "the reward command ended with exit status: 3: no judge"),
        ("hang", "the reward command did not answer in 1 seconds"),
        ("babble", "line 1 of the reward command is \"nonsense\", expected {\"score\": number}"),
    ] {
        let _ = fs::remove_file(bench.path("count"));
        let more = ["--steps", "3", "--checkpoint-every", "10", "--reward-timeout", "1"];
        let output = bench.run(&format!("command:sh judge.sh {how}"), how, &more);
        fails(&output, 1, why);
        assert_eq!(said(&output).trim().lines().count(), 1, "{}", said(&output));
        assert_eq!(bench.metrics(how).len(), 2);
        assert!(bench.path(&format!("{how}/seed-1/checkpoint-000002/trainer.json")).exists());
    }
    // With a judge that works again, it goes on where it was.
    fs::remove_file(bench.path("count")).unwrap();
    let rest = bench.apad("train").args(["--resume", "die"]).output().unwrap();
    assert!(rest.status.success(), "{}", said(&rest));
    assert_eq!(bench.metrics("die").len(), 3);
}

/// A service that replies to each request as `reply` says, given the number of the request and of its samples.
fn service(reply: impl Fn(usize, usize) -> Option<(u16, String)> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/score", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, connection) in listener.incoming().enumerate() {
            let mut connection = BufReader::new(connection.unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while connection.read_line(&mut line).is_ok_and(|n| n > 2) {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            connection.read_exact(&mut body).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let samples = body["samples"].as_array().unwrap();
            assert!(samples.iter().all(|s| s["response"].is_string() && !s["prompt"].is_null()), "{body}");
            // Hangs for as long as the connection is held.
            let Some((status, body)) = reply(number, samples.len()) else {
                std::mem::forget(connection);
                continue;
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let _ = connection.get_mut().write_all((head + &body).as_bytes());
        }
    });
    url
}

#[test]
fn a_reward_service_is_asked_again_where_that_helps_and_its_failures_are_one_sentence() {
    let bench = bench();
    let scores = |n: usize| format!("{{\"scores\": {:?}}}", (0..n).collect::<Vec<_>>());
    // The first request of a step finds it busy.
    let url =
        service(move |number, n| Some(if number.is_multiple_of(2) { (503, "busy".into()) } else { (200, scores(n)) }));
    let output = bench.run(&url, "good", &["--steps", "2"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(bench.metrics("good")[1]["reward_mean"], 1.5);
    let more = ["--steps", "1", "--reward-timeout", "2"];
    for (name, reply, why) in [
        ("garbage", Some((200, "well".to_owned())), "answered \"well\", expected {\"scores\": [numbers]}"),
        ("few", Some((200, scores(3))), "gave 3 scores for 4 answers"),
        ("denied", Some((403, "no".to_owned())), "the reward service said 403"),
        ("endless", Some((200, "1".repeat(1 << 20))), "reply is over"),
        ("hang", None, "did not answer in 2 seconds"),
    ] {
        let url = service(move |_, _| reply.clone());
        let output = bench.run(&format!("http:{url}"), name, &more);
        fails(&output, 1, why);
        assert_eq!(said(&output).trim().lines().count(), 1, "{}", said(&output));
    }
    // Nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = format!("http://127.0.0.1:{port}/");
    fails(&bench.run(&nobody, "dead", &["--steps", "1"]), 1, "the reward service failed 4 times");
}

#[test]
fn a_reward_model_judges_as_it_judges_elsewhere() {
    let bench = bench();
    let mut pairs = String::new();
    for i in 0..12 {
        pairs += &format!("{{\"prompt\": \"q {i}\", \"chosen\": \"please {i}\", \"rejected\": \"no {i}\"}}\n");
    }
    fs::write(bench.path("pairs.jsonl"), pairs).unwrap();
    let mut command = bench.apad("reward");
    command.args(["train", "--model", "tiny.gguf", "--pairs", "pairs.jsonl"]);
    command.args(["--out", "r.gguf", "--epochs", "2", "--lr", "1e-2", "--batch", "4", "--threads", "1"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let output = bench.run("model:r.gguf", "judged", &["--steps", "2", "--set", "train.dtype=f32"]);
    assert!(output.status.success(), "{}", said(&output));

    let decoder = Decoder::load(&bench.path("tiny.gguf"), &Device::Cpu, Dtype::F32).unwrap();
    let adapter = RewardAdapter::open(Arc::new(decoder), &bench.path("r.gguf")).unwrap();
    let tokens = |v: &Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
    let mut seen = Vec::new();
    for sample in bench.lines("judged/seed-1/samples.jsonl") {
        let answer = (tokens(&sample["prompt_tokens"]), tokens(&sample["response_tokens"]));
        let (score, told) = (f64::from(adapter.score(&[answer]).unwrap()[0]), sample["score"].as_f64().unwrap());
        assert!((score - told).abs() < 1e-4, "{score} is not {told}");
        seen.push(told);
    }
    assert!(seen.iter().any(|score| *score != seen[0]), "{seen:?}");
    fails(&bench.run("model:none.gguf", "none", &["--steps", "1"]), 1, "none.gguf");
    fails(&bench.run("model:tiny.gguf", "none", &["--steps", "1"]), 1, "reward model");
}

#[test]
fn fixed_answers_are_learned_from_without_samples_and_measured_by_them() {
    let bench = bench();
    let mut lines = String::new();
    for i in 0..6 {
        let (text, reward) = if i % 2 == 0 { ("yes, it is", 1.0) } else { ("no, never", -1.0) };
        let chat = json!([{"role": "user", "content": format!("Question {i}?")}]);
        let prompt = if i < 3 { chat } else { json!(format!("Text {i}")) };
        lines += &format!("{}\n", json!({"prompt": prompt, "response": text, "reward": reward}));
    }
    fs::write(bench.path("fixed.jsonl"), &lines).unwrap();
    let common = ["--dataset", "fixed.jsonl", "--batch", "4", "--minibatch", "2", "--lr", "1e-2", "--max-new", "8"];
    let threads = ["--set", "serve.threads=1", "--set", "train.threads=1", "--model", "tiny.gguf"];
    let run = |out: &str, more: &[&str]| {
        let output = bench.apad("train").args(common).args(threads).args(["--out", out]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    };
    run("alone", &["--steps", "4"]);
    let alone = bench.metrics("alone");
    for line in &alone {
        assert!(line["data_reward_mean"].is_f64() && line["policy_loss"].is_f64(), "{line}");
        // Of answers that are not the policy's own, the estimators say nothing.
        assert!(line["reward_mean"].is_null() && line["kl_k1_per_token"].is_null(), "{line}");
    }
    assert!(!bench.path("alone/seed-1/samples.jsonl").exists() && bench.path("alone/curves.png").exists());

    run("measured", &["--steps", "4", "--prompts", "prompts.jsonl", "--reward", VOWELS, "--evaluate-every", "3"]);
    let measured = bench.metrics("measured");
    let sampled: Vec<bool> = measured.iter().map(|l| l["reward_mean"].is_f64() && l["entropy"].is_f64()).collect();
    assert_eq!(sampled, [true, false, false, true]);
    assert_eq!(measured[0]["kl_k3_per_token"], 0.0);
    assert!(measured[3]["kl_k3_per_token"].as_f64().is_some_and(|kl| kl > 0.0), "{}", measured[3]);
    // Measuring changes nothing that is learned.
    let adapter = |run: &str| fs::read(bench.path(run).join("seed-1/adapter.gguf")).unwrap();
    assert!(adapter("alone") == adapter("measured"));

    // The samples of a run are such a file, token for token.
    let again = ["--dataset", "measured/seed-1/samples.jsonl", "--batch", "4", "--out", "again", "--steps", "1"];
    let output = bench.apad("train").args(again).args(threads).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    fs::write(bench.path("fixed.jsonl"), lines.replace("-1.0", "\"bad\"")).unwrap();
    let output = bench.apad("train").args(common).args(threads).args(["--out", "no"]).output().unwrap();
    fails(&output, 1, "fixed.jsonl:2: invalid type: string \"bad\", expected f64");
}

#[test]
fn answers_may_come_from_another_number_format_than_is_trained() {
    let bench = bench();
    let gap = |out: &str, kind: &str| {
        let output = bench.run(VOWELS, out, &["--steps", "1", "--set", &format!("serve.type={kind}")]);
        assert!(output.status.success(), "{}", said(&output));
        bench.metrics(out)[0]["serve_train_gap"].as_f64().unwrap()
    };
    let (kept, coarse) = (gap("kept", "keep"), gap("coarse", "q4_0"));
    assert!(coarse > kept && coarse > 0.001, "kept {kept}, coarse {coarse}");
    fails(&bench.run(VOWELS, "no", &["--set", "serve.type=auto"]), 1, "serve.type is auto");
    fails(&bench.run(VOWELS, "no", &["--set", "serve.type=q9"]), 1, "serve.type");
}

#[test]
fn a_batch_without_signal_is_recorded_as_skipped() {
    let bench = bench();
    let output = bench.run("regex:^", "same", &["--steps", "2"]);
    assert!(output.status.success(), "{}", said(&output));
    let metrics = bench.metrics("same");
    assert_eq!(metrics.len(), 2);
    assert!(metrics[0]["skipped"].as_str().is_some_and(|s| s.contains("nothing tells")), "{}", metrics[0]);
    assert!(metrics[0]["kl_k1_per_token"].is_null());
}

#[test]
fn a_simulated_rater_s_thumbs_are_trained_on_and_the_rewards_are_still_told() {
    let bench = bench();
    let flags = ["--thumbs-up", "0.5", "--flipped", "0.2"];
    let whole = bench.run("length:6", "whole", &[&flags[..], &["--steps", "4"]].concat());
    assert!(whole.status.success(), "{}", said(&whole));
    let samples = bench.lines("whole/seed-1/samples.jsonl");
    let thumbs: Vec<f64> = samples.iter().map(|line| line["thumb"].as_f64().unwrap()).collect();
    assert!(thumbs.iter().all(|thumb| thumb.abs() == 1.0) && thumbs.contains(&1.0) && thumbs.contains(&-1.0));
    let scores: Vec<f64> = samples.iter().map(|line| line["score"].as_f64().unwrap()).collect();
    let mean = scores[..4].iter().sum::<f64>() / 4.0;
    let told = bench.metrics("whole")[0]["reward_mean"].as_f64().unwrap();
    assert!((told - mean).abs() < 1e-9, "{told} {mean}");
    // The rater remembers what was answered before a stop.
    assert!(bench.run("length:6", "parts", &[&flags[..], &["--steps", "2"]].concat()).status.success());
    let rest = bench.apad("train").args(["--resume", "parts", "--steps", "4"]).output().unwrap();
    assert!(rest.status.success(), "{}", said(&rest));
    bench.assert_same("whole", "parts");
    fails(
        &bench.run("length:6", "x", &["--thumbs-up", "1"]),
        2,
        "thumbs-up is 1, expected a share above 0 and below 1",
    );
}

#[test]
fn wrong_use_is_said_before_anything_is_written() {
    let bench = bench();
    fails(
        &bench.run("judge:x", "no", &[]),
        2,
        "expected one of length:TOKENS, regex:PATTERN, model:PATH, command:SHELL COMMAND",
    );
    fails(&bench.run("length:6", "no", &["--rank", "0"]), 2, "train.rank");
    fails(
        &bench.apad("train").args(["--model", "tiny.gguf", "--dataset", "none", "--out", "no"]).output().unwrap(),
        1,
        "none",
    );
    fails(&bench.run("length:6", "no", &["--lambda", "-1"]), 2, "train.lambda");
    fails(&bench.run("length:6", "no", &["--temperature", "0"]), 2, "temperature is 0");
    fails(&bench.run("length:6", "no", &["--seed", "1,1"]), 2, "seed 1 is given twice");
    fails(&bench.apad("train").args(["--model", "tiny.gguf"]).output().unwrap(), 2, "--prompts");
    let help = bench.apad("train").args(["--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("apad train --resume"));
    fs::write(bench.path("prompts.jsonl"), "{\"text\": \"a\"}\n{\"question\": \"b\"}\n").unwrap();
    fails(&bench.run("length:6", "no", &[]), 1, "prompts.jsonl:2: no prompt, expected {\"prompt\": [messages]}");
    fs::write(bench.path("prompts.jsonl"), format!("{{\"text\": {:?}}}\n", "word ".repeat(1000))).unwrap();
    fails(&bench.run("length:6", "no", &[]), 1, "prompts.jsonl:1: the prompt has");
    assert!(!bench.path("no").exists());
}
