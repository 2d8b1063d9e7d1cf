//! Bodies of requests and what is read of replies: the JSON of the Tinker API. Sends nothing.

use serde_json::{Value, json};

use super::{Sequence, Step, Wanted};
use crate::error::{Error, Result};
use crate::web::shown;

pub(super) fn session() -> Value {
    let version = concat!("apa ", env!("CARGO_PKG_VERSION"));
    json!({"type": "create_session", "tags": ["apa"], "user_metadata": null, "sdk_version": version})
}

/// `number` is the model's place in its session.
pub(super) fn model(session: &str, number: u64, base: &str, rank: u32, wanted: &Wanted) -> Value {
    json!({
        "type": "create_model", "session_id": session, "model_seq_id": number, "base_model": base,
        // The head is often the embedding's weight as well, and no layer that an adapter of ours has.
        "lora_config": {
            "rank": rank, "seed": wanted.seed, "train_attn": true, "train_mlp": true, "train_unembed": false,
        },
    })
}

pub(super) fn forward(model: &str, sequences: &[Sequence]) -> Value {
    let data: Vec<Value> =
        sequences.iter().map(|s| datum(s, &[("weights", vec![1.0; s.response.len()], 0.0)])).collect();
    json!({"model_id": model, "forward_input": {"data": data, "loss_fn": "cross_entropy"}})
}

/// The gradient as advantages. The ratio of importance sampling is 1 where the step starts, and its derivative by the
/// log-probability too, so a token's share of the gradient is its advantage, negated.
///
/// A server may divide each sequence's loss by the sum of its weights, and the gradient by the number of sequences. So
/// one more weight, at a token whose advantage is 0, brings the sum of all sequences to `longest`, and the advantages
/// are multiplied by both. A server that only adds up gets a constant factor, which AdamW takes out.
pub(super) fn forward_backward(model: &str, step: &Step, longest: u32) -> Value {
    let scale = step.sequences.len() as f32 * longest as f32;
    let parts = step.sequences.iter().zip(&step.logprobs).zip(&step.gradient);
    let data = parts.map(|((sequence, logprobs), gradient)| {
        let tokens = sequence.response.len();
        let lists = [
            ("logprobs", logprobs.clone(), 0.0),
            ("advantages", gradient.iter().map(|g| -g * scale).collect(), 0.0),
            ("weights", vec![1.0; tokens], longest.saturating_sub(tokens as u32) as f32),
        ];
        datum(sequence, &lists)
    });
    let input = json!({"data": data.collect::<Vec<_>>(), "loss_fn": "importance_sampling"});
    json!({"model_id": model, "forward_backward_input": input})
}

pub(super) fn optim_step(model: &str, step: &Step) -> Value {
    let [beta1, beta2] = step.betas;
    json!({
        "type": "optim_step", "model_id": model,
        "adam_params": {
            "learning_rate": step.lr, "beta1": beta1, "beta2": beta2, "eps": step.epsilon,
            "weight_decay": step.weight_decay,
        },
    })
}

/// A sequence, each of whose tokens predicts the next one, and the last one anything. Each list is given for the
/// response's tokens, and for that last prediction.
fn datum(sequence: &Sequence, lists: &[(&str, Vec<f32>, f32)]) -> Value {
    let tokens: Vec<u32> = sequence.prompt.iter().chain(&sequence.response).copied().collect();
    let targets: Vec<u32> = tokens.iter().skip(1).copied().chain([0]).collect();
    let mut inputs = serde_json::Map::new();
    inputs.insert("target_tokens".into(), tensor(&targets, "int64"));
    for (name, values, last) in lists {
        let mut all = vec![0.0; sequence.prompt.len() - 1];
        all.extend_from_slice(values);
        all.push(*last);
        inputs.insert((*name).into(), tensor(&all, "float32"));
    }
    json!({"model_input": {"chunks": [{"type": "encoded_text", "tokens": tokens}]}, "loss_fn_inputs": inputs})
}

fn tensor<T: serde::Serialize>(values: &[T], kind: &str) -> Value {
    json!({"data": values, "dtype": kind, "shape": [values.len()]})
}

/// Text of a reply by its name.
pub(super) fn text(reply: &Value, name: &str) -> Result<String> {
    let text = reply.get(name).and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| unexpected(reply, name))
}

/// Log-probabilities of the sequences' response tokens.
pub(super) fn logprobs(reply: &Value, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
    let wrong = || unexpected(reply, "loss_fn_outputs with a finite logprob for each token");
    let outputs = reply.get("loss_fn_outputs").and_then(Value::as_array).ok_or_else(wrong)?;
    if outputs.len() != sequences.len() {
        return Err(wrong());
    }
    let of = |(output, sequence): (&Value, &Sequence)| {
        let all = output.pointer("/logprobs/data").and_then(Value::as_array)?;
        let (first, count) = (sequence.prompt.len() - 1, sequence.response.len());
        let own = all.get(first..first + count).filter(|_| all.len() == first + count + 1)?;
        own.iter().map(|l| l.as_f64().map(|l| l as f32).filter(|l| l.is_finite())).collect::<Option<Vec<_>>>()
    };
    outputs.iter().zip(sequences).map(|pair| of(pair).ok_or_else(wrong)).collect()
}

/// The gradient's norm, whatever the server calls it in full.
pub(super) fn grad_norm(reply: &Value) -> Option<f64> {
    let metrics = reply.get("metrics")?.as_object()?;
    metrics.iter().find(|(name, _)| name.ends_with("grad_norm")).and_then(|(_, value)| value.as_f64())
}

/// The name of the only base that the server has.
pub(super) fn only_base(reply: &Value) -> Result<String> {
    let models = reply.get("supported_models").and_then(Value::as_array);
    match models.map(Vec::as_slice) {
        Some([one]) => text(one, "model_name"),
        Some(many) => {
            let names: Vec<&str> = many.iter().filter_map(|m| m.get("model_name")?.as_str()).take(10).collect();
            let names = names.join(", ");
            Err(Error::train(format!(
                "the Tinker server has {} models ({names:.300}), expected one of them as \
                train.tinker_base",
                many.len()
            )))
        }
        None => Err(unexpected(reply, "supported_models")),
    }
}

/// The error for a reply that is not what the API promises.
fn unexpected(reply: &Value, expected: &str) -> Error {
    let reply = shown(reply.to_string().as_bytes());
    Error::train(format!("the Tinker server answered {reply:?}, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(prompt: usize, response: usize) -> Sequence {
        Sequence { prompt: (0..prompt as u32).collect(), response: (100..100 + response as u32).collect() }
    }

    #[test]
    fn the_weights_of_each_sequence_add_up_to_the_same_and_the_last_one_teaches_nothing() {
        let sequences = vec![sequence(3, 2), sequence(1, 4)];
        let gradient = vec![vec![0.5, -0.25], vec![1.0, 0.0, -2.0, 0.125]];
        let logprobs = gradient.clone();
        let step =
            Step { sequences, logprobs, gradient, lr: 0.1, betas: [0.9, 0.95], epsilon: 1e-8, weight_decay: 0.0 };
        let body = forward_backward("m", &step, 8);
        let data = body["forward_backward_input"]["data"].as_array().unwrap();
        let list = |i: usize, name: &str| data[i]["loss_fn_inputs"][name]["data"].clone();
        assert_eq!(data[0]["model_input"]["chunks"][0]["tokens"], json!([0, 1, 2, 100, 101]));
        assert_eq!(list(0, "target_tokens"), json!([1, 2, 100, 101, 0]));
        assert_eq!(list(0, "weights"), json!([0.0, 0.0, 1.0, 1.0, 6.0]));
        assert_eq!(list(0, "advantages"), json!([0.0, 0.0, -8.0, 4.0, 0.0]));
        assert_eq!(list(0, "logprobs"), json!([0.0, 0.0, 0.5, -0.25, 0.0]));
        assert_eq!(list(1, "weights"), json!([1.0, 1.0, 1.0, 1.0, 4.0]));
        assert_eq!(list(1, "target_tokens"), json!([100, 101, 102, 103, 0]));
    }

    #[test]
    fn replies_that_are_not_of_the_api_are_errors_that_show_them() {
        let right = json!({"loss_fn_outputs": [{"logprobs": {"data": [9.0, -1.5, -2.0, 9.0]}}]});
        assert_eq!(logprobs(&right, &[sequence(2, 2)]).unwrap(), [[-1.5, -2.0]]);
        for wrong in [
            json!({"loss_fn_outputs": []}),
            json!({"loss_fn_outputs": [{"logprobs": {"data": [9.0, -1.5, -2.0]}}]}),
            json!({"loss_fn_outputs": [{"logprobs": {"data": [9.0, null, -2.0, 9.0]}}]}),
            json!([]),
        ] {
            let error = logprobs(&wrong, &[sequence(2, 2)]).unwrap_err().to_string();
            assert!(error.contains("expected loss_fn_outputs"), "{error}");
        }
        let two = json!({"supported_models": [{"model_name": "a"}, {"model_name": "b"}]});
        assert!(only_base(&two).unwrap_err().message().contains("2 models (a, b)"));
        assert_eq!(grad_norm(&json!({"metrics": {"skyrl.ai/grad_norm": 2.5}})), Some(2.5));
        assert_eq!(grad_norm(&json!({"metrics": null})), None);
    }
}
