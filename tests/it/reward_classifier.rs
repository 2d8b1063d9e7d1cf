//! Reward models of others, against PyPI's transformers on small random checkpoints. Skipped without them: `make test`
//! has them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use apa::Code;
use apa::config::{Config, Dtype};
use apa::engine::GenerateRequest;
use apa::llama::{Model, chat_tokens, template_of};
use apa::policy::Decoder;
use apa::reward::{Classifier, RewardModel, Texts};
use apa::types::{ChatMessage, NewFeedback, Sampling, Signal};
use candle_core::Device;
use serde_json::{Value, json};

use crate::support::engine::{finish, open_with};
use crate::support::tiny::{TinySpec, tiny_model};

/// Writes checkpoints and their scores.
const MAKE: &str = r#"
import json, sys, torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (DebertaV2Config, DebertaV2ForSequenceClassification, ModernBertConfig,
                          ModernBertForSequenceClassification, PreTrainedTokenizerFast)
torch.manual_seed(int(sys.argv[2]))
words = "why is the sea salty because rivers carry it there no idea ask me later please thank you".split()
vocab = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]"] + words)}
tok = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
tok.pre_tokenizer = pre_tokenizers.Whitespace()
tok.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
size = dict(vocab_size=len(vocab), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, num_labels=1, initializer_range=0.3, pad_token_id=0)
deberta = dict(relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm",
               share_att_key=True, position_biased_input=False, type_vocab_size=0)
modern = dict(local_attention=8, global_attn_every_n_layers=2, bos_token_id=1, eos_token_id=2, cls_token_id=1,
              sep_token_id=2, initializer_cutoff_factor=2.0)
kinds = {
    "deberta": DebertaV2ForSequenceClassification(DebertaV2Config(**size, **deberta)),
    "deberta-positions": DebertaV2ForSequenceClassification(DebertaV2Config(**size, type_vocab_size=2)),
    "modern": ModernBertForSequenceClassification(ModernBertConfig(**size, **modern)),
    "modern-mean": ModernBertForSequenceClassification(ModernBertConfig(**size, **modern, classifier_pooling="mean")),
}
pairs = [("why is the sea salty", "because rivers carry it there"), ("why is the sea salty", "no idea ask me later"),
         ("please", "thank you"), ("why " * 9, "the sea is salty because rivers carry salty sea there " * 3)]
for name, model in kinds.items():
    model.eval()
    folder = f"{sys.argv[1]}/{name}"
    model.save_pretrained(folder)
    tok.save(f"{folder}/tokenizer.json")
    fast = PreTrainedTokenizerFast(tokenizer_object=tok)
    scores = []
    for q, a in pairs:
        e = fast(q, a, return_tensors="pt", truncation=True, max_length=64, return_token_type_ids=True)
        if name.startswith("modern"):
            e.pop("token_type_ids")
        scores.append(model(**e).logits.item())
    json.dump({"pairs": pairs, "scores": scores}, open(f"{folder}/expected.json", "w"))
"#;

fn python() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("apa/peer/bin/python")).filter(|python| python.exists())
}

fn expected(folder: &Path) -> (Vec<(String, String)>, Vec<f32>) {
    let expected: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let pairs = serde_json::from_value(expected["pairs"].clone()).unwrap();
    (pairs, serde_json::from_value(expected["scores"].clone()).unwrap())
}

#[test]
fn scores_are_those_of_transformers_and_wrong_folders_are_refused() {
    let Some(python) = python() else {
        eprintln!("skipped: no transformers in the cache folder; scripts/bench-train.sh installs them");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(python).arg("-c").arg(MAKE).arg(dir.path()).arg("3").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for name in ["deberta", "deberta-positions", "modern", "modern-mean"] {
        let folder = dir.path().join(name);
        let classifier = Classifier::open(&folder, &Device::Cpu).unwrap();
        let (pairs, scores) = expected(&folder);
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(q, a)| (q.as_str(), a.as_str())).collect();
        let ours = classifier.score(&pairs).unwrap();
        for (ours, theirs) in ours.iter().zip(&scores) {
            assert!((ours - theirs).abs() < 1e-4, "{name}: {ours:?} is not {scores:?}");
        }
        assert!(
            scores.windows(2).all(|pair| (pair[0] - pair[1]).abs() > 1e-3),
            "{name}: scores that tell nothing apart"
        );
    }

    a_folder_is_a_reward_model_wherever_one_is_named(dir.path());

    let folder = dir.path().join("deberta");
    let refusal = |part: &str| {
        let error = Classifier::open(&folder, &Device::Cpu).err().unwrap();
        assert!(error.message().contains(part), "{error}");
        error.code()
    };
    let change = |file: &str, from: &str, to: &str| {
        let path = folder.join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    };
    change("config.json", "\"vocab_size\": 22", "\"vocab_size\": 21");
    assert_eq!(refusal("tokenizer.json has 22 tokens, the model's vocabulary 21"), Code::Model);
    change("config.json", "\"vocab_size\": 21", "\"vocab_size\": 22");
    change("config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    assert_eq!(refusal("encoder.layer.3.attention"), Code::Model);
    change("config.json", "deberta-v2", "bert");
    assert_eq!(refusal("its model_type is bert, expected deberta-v2 or modernbert"), Code::Unsupported);
    change("config.json", "\"0\": \"LABEL_0\"", "\"0\": \"LABEL_0\", \"1\": \"LABEL_1\"");
    assert_eq!(refusal("it has 2 outputs"), Code::Unsupported);
}

fn chat(turns: &[(&str, &str)]) -> Vec<ChatMessage> {
    turns.iter().map(|(role, content)| ChatMessage { role: (*role).into(), content: (*content).into() }).collect()
}

fn a_folder_is_a_reward_model_wherever_one_is_named(dir: &Path) {
    tiny_model(&dir.join("tiny.gguf"), &TinySpec::new("llama")).unwrap();
    let model = Model::load(&dir.join("tiny.gguf"), 0).unwrap();
    let decoder = Arc::new(Decoder::load(&dir.join("tiny.gguf"), &Device::Cpu, Dtype::F32).unwrap());
    let template = template_of(&model).unwrap();
    let tokens = |turns: &[(&str, &str)]| chat_tokens(&model, &template, &chat(turns)).unwrap();
    let answer = |text: &str| {
        let mut tokens = model.tokenize(text, false, false).unwrap();
        tokens.extend(model.turn_end());
        tokens
    };
    let folder = dir.join("deberta");
    let (pairs, scores) = expected(&folder);

    // From tokens with a template around them to what was said, and the scores of that.
    let reward_model = RewardModel::open(&decoder, &model, &folder).unwrap();
    let read: Vec<_> = pairs.iter().map(|(q, a)| (tokens(&[("user", q)]), answer(a))).collect();
    for (ours, theirs) in reward_model.score(&read).unwrap().iter().zip(&scores) {
        assert!((ours - theirs).abs() < 1e-4, "{ours} is not {theirs}");
    }
    let talk = [("system", "be kind"), ("user", "why"), ("assistant", "because"), ("user", "please")];
    let texts = Texts::new(model.clone());
    assert_eq!(texts.question(&tokens(&talk)), "be kind\n\nwhy\n\nbecause\n\nplease");
    assert_eq!(texts.question(&tokens(&talk[1..])), "why\n\nbecause\n\nplease");
    assert_eq!(texts.question(&model.tokenize("the sea", true, false).unwrap()), "the sea");
    assert_eq!(texts.answer(&answer("thank you")), "thank you");

    // `apad reward score`.
    let (question, [first, second]) = (&pairs[0].0, [&pairs[0].1, &pairs[1].1]);
    let line = json!({"prompt": [{"role": "user", "content": question}], "chosen": first, "rejected": second});
    fs::write(dir.join("pairs.jsonl"), line.to_string()).unwrap();
    let apad = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_apad")).current_dir(dir).args(args).output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let score = ["reward", "score", "--model", "tiny.gguf", "--reward", "deberta", "--pairs", "pairs.jsonl", "--json"];
    let (good, said) = apad(&score);
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{good} {said}"));
    let margin = f64::from(scores[0]) - f64::from(scores[1]);
    assert!((report["margin"]["mean"].as_f64().unwrap() - margin).abs() < 1e-3, "{report} is not {margin}");
    assert_eq!(report["accuracy"], if margin > 0.0 { 1.0 } else { 0.0 });
    let (good, said) = apad(&[&score[..], &["--held-back"]].concat());
    assert!(!good && said.contains("a classifier doesn't say which pairs were held back"), "{said}");

    // `apad train --reward model:FOLDER`.
    fs::write(dir.join("prompts.jsonl"), json!({"prompt": [{"role": "user", "content": question}]}).to_string())
        .unwrap();
    let train = "train --model tiny.gguf --prompts prompts.jsonl --reward model:deberta --steps 1 --batch 4 \
    --minibatch 2 --max-new 8 --rank 4 --set train.dtype=f32 --set serve.threads=1 --set train.threads=1 --out run";
    let (good, said) = apad(&train.split_whitespace().collect::<Vec<_>>());
    assert!(good, "{said}");
    let classifier = Classifier::open(&folder, &Device::Cpu).unwrap();
    let samples = fs::read_to_string(dir.join("run/seed-1/samples.jsonl")).unwrap();
    for line in samples.lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        let response: Vec<u32> = serde_json::from_value(sample["response_tokens"].clone()).unwrap();
        let theirs = classifier.score(&[(question, &texts.answer(&response))]).unwrap()[0];
        assert!((sample["score"].as_f64().unwrap() - f64::from(theirs)).abs() < 1e-4, "{sample} is not {theirs}");
    }
    assert_eq!(samples.lines().count(), 4);

    // In the engine.
    fs::create_dir(dir.join("engine")).unwrap();
    let engine = open_with(&dir.join("engine"), |c: &mut Config| {
        (c.train.threads, c.train.device, c.train.dtype) = (1, "cpu".into(), Dtype::F32);
        c.reward.model = Some(folder.clone());
    });
    let engine = engine.unwrap();
    let prompt = engine.chat_prompt(&chat(&[("user", question)])).unwrap();
    let answers: Vec<_> = (0..4)
        .map(|seed| {
            let sampling = Sampling { seed: Some(seed), ..Sampling::default() };
            let request = GenerateRequest { prompt: prompt.clone(), sampling, ..GenerateRequest::default() };
            let g = finish(&engine.generate(request).unwrap()).unwrap().1;
            let said = NewFeedback {
                generation_id: g.id.clone(),
                signal: Signal::Rating(if seed % 2 == 0 { 1.0 } else { -1.0 }),
                user: None,
                comment: None,
            };
            engine.feedback(said).unwrap();
            g
        })
        .collect();
    engine.train_step().unwrap();
    for g in answers {
        let record = engine.generation_record(&g.id).unwrap().unwrap();
        let raw = record.samples[0].score.terms.iter().find(|t| t.name == "model").unwrap().raw.unwrap();
        let theirs = classifier.score(&[(question, &texts.answer(&g.response))]).unwrap()[0];
        assert!((raw - f64::from(theirs)).abs() < 1e-4, "{raw} is not {theirs}");
    }
    engine.shutdown();
}
