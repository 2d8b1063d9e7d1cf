//! The list of settings, for help texts and for checking names. Derived from the defaults; never a second truth.

use serde_json::Value;

use super::Config;

/// One setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Dotted name, as in `apad.toml` and in options: `train.lambda`.
    pub name: String,
    /// The environment variable that sets it: `APAD_TRAIN_LAMBDA`.
    pub variable: String,
    /// What a value is, in words: `a number`.
    pub kind: &'static str,
    /// Value where nothing sets it; null is unset.
    pub default: Value,
    /// What it does.
    pub doc: &'static str,
}

impl Config {
    /// Every setting, in the order of the sections.
    pub fn keys() -> Vec<Key> {
        let mut keys = Vec::new();
        collect("", &defaults(), &mut keys);
        keys
    }
}

/// The tree of defaults. Settings are plain data: the conversion has no way to fail.
pub(super) fn defaults() -> Value {
    serde_json::to_value(Config::default()).unwrap_or_default()
}

/// Joins a section and a name.
pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// The environment variable of a setting.
pub(super) fn variable(key: &str) -> String {
    format!("APAD_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// What a setting's values are, told from its default.
pub(super) fn kind(default: &Value) -> &'static str {
    match default {
        Value::Bool(_) => "true or false",
        Value::Number(n) if n.is_f64() => "a number",
        Value::Number(_) => "a whole number",
        Value::String(_) => "text",
        Value::Array(_) => "a list of numbers",
        Value::Object(_) => "a section",
        Value::Null => "text or null",
    }
}

/// The known name nearest to a wrong one. A bare last part counts as well: `lambda` for `train.lambda`.
pub(super) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or(name);
        strsim::jaro_winkler(wrong, name).max(0.95 * strsim::jaro_winkler(wrong, last))
    };
    known.max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
}

fn collect(section: &str, tree: &Value, keys: &mut Vec<Key>) {
    let Value::Object(map) = tree else { return };
    for (name, value) in map {
        let name = join(section, name);
        if value.is_object() {
            collect(&name, value, keys);
        } else {
            let doc = DOCS.iter().find(|(key, _)| *key == name).map_or("", |(_, doc)| doc);
            keys.push(Key { variable: variable(&name), kind: kind(value), default: value.clone(), doc, name });
        }
    }
}

const DOCS: &[(&str, &str)] = &[
    ("model", "GGUF file of the base model"),
    ("data", "folder of the ledger and the policy versions; one engine a folder"),
    ("serve.slots", "requests decoded together in one batch"),
    ("serve.context", "tokens of context that the slots share"),
    ("serve.batch", "most tokens of one llama.cpp batch"),
    ("serve.threads", "threads of llama.cpp; 0 takes the number of cores"),
    ("serve.queue", "requests that may wait; one more is refused as busy"),
    ("serve.max_tokens", "answer length where a request sets none"),
    (
        "serve.request_seconds",
        "seconds from the submission of a request to its last token, waiting included; 0 is no limit",
    ),
    ("serve.gpu_layers", "layers kept on the GPU where there is one; -1 is all"),
    ("serve.type", "number format of the served weights: keep, auto (the fastest here), q4_0, q8_0, bf16 and others"),
    ("serve.kl_budget", "most KL to the file's own distribution, in nats a token, that serve.type auto accepts"),
    ("train.enabled", "whether feedback changes the policy; without it the trainer's memory is not taken"),
    ("train.auto", "start a step by itself when `train.batch` new ratings are in"),
    ("train.device", "auto, cpu or cuda:N"),
    ("train.dtype", "number format of the frozen products: auto, f32 or bf16"),
    ("train.threads", "threads of the trainer; 0 takes the number of cores"),
    ("train.algorithm", "the policy loss: apa, awr or ppo"),
    ("train.ppo.clip_range", "PPO: the ratio of new to old probability is clipped to 1 plus or minus this"),
    ("train.ppo.value_clip_range", "PPO: new values are clipped to old values plus or minus this"),
    ("train.ppo.kl_coef", "PPO: first coefficient of the KL penalty in the rewards"),
    ("train.ppo.kl_target", "PPO: KL per response, in nats, that the coefficient is steered to"),
    ("train.ppo.kl_horizon", "PPO: samples over which the coefficient adapts"),
    (
        "train.gate.kl_budget",
        "most KL of a version to the initial model, in nats per response; one beyond is not served",
    ),
    ("train.gate.kl_samples", "samples of a batch on which that KL is measured; 0 measures nothing"),
    ("train.gate.reward_drop", "most that the mean rating may fall from a version's batch to the next"),
    ("train.lambda", "temperature of the target policy; larger stays closer to the initial model"),
    ("train.batch", "new ratings a batch"),
    ("train.minibatch", "samples an optimizer step"),
    ("train.epochs", "passes over a batch"),
    ("train.lr", "learning rate of the policy's adapter"),
    ("train.critic_lr", "learning rate of the critic"),
    ("train.clip_norm", "gradient norm that is clipped to"),
    ("train.betas", "AdamW's betas"),
    ("train.weight_decay", "AdamW's decoupled weight decay"),
    ("train.gamma", "discount of later rewards"),
    ("train.gae_lambda", "lambda of generalized advantage estimation"),
    ("train.whiten", "whiten advantages over the batch"),
    ("train.score_clip", "scores are divided by a running standard deviation and clipped to plus or minus this"),
    ("train.rank", "rank of the adapters"),
    ("train.alpha", "scale numerator of the adapters: the update is multiplied by alpha / rank"),
    ("train.max_tokens", "longest sample, prompt and response; longer ones are left out and counted"),
    ("train.micro_batch_tokens", "tokens computed at once: bounds the trainer's memory"),
    ("train.seed", "seeds adapters and the order of minibatches"),
    ("train.keep_versions", "versions kept on disk beside the active one and the initial model; 0 keeps all"),
    (
        "reward.model",
        "a reward model: a file for this base, as `apad reward train` writes it, or the folder of a DeBERTa-v2 or ModernBERT classifier",
    ),
    ("reward.learn", "new preferences and corrections after which the reward model learns; 0 leaves it as it is"),
    (
        "reward.model_weight",
        "weight of the reward model's score, centred and divided by its running standard deviation",
    ),
    ("reward.command", "shell command that judges answers: JSON lines in, JSON lines out"),
    ("reward.url", "HTTP service that judges answers"),
    ("reward.external_timeout", "seconds that the command or the service may take for a batch"),
    ("reward.external_weight", "weight of their score, centred and divided by its running standard deviation"),
    ("reward.rating_weight", "weight of people's ratings, in [-1, 1]"),
    (
        "reward.length_weight",
        "weight of the length term: 0 up to `reward.length_free` tokens, -1 from twice as many on",
    ),
    ("reward.length_free", "tokens of an answer that cost nothing"),
    ("reward.signals", "named signals and what each adds, like copied=0.3, regenerated=-0.3"),
    ("reward.clip", "the sum of the terms is clipped to plus or minus this"),
    (
        "reward.unrated",
        "answers that nobody rated, added to a batch and judged by the reward model alone; 0 leaves them out",
    ),
    ("reward.staleness", "versions back from the active one that answers may be from to be trained on; 0 takes all"),
    ("reward.rollouts", "prompts that the policy answers for the reward model to judge: a file, or `users`"),
    ("reward.rollout_share", "largest share of rollouts in a batch; the rest is live feedback"),
    ("reward.rollout_idle", "seconds without a request after which rollouts begin; 0 leaves them to demand"),
    ("reward.correction", "what a correction is worth as a sample of its own; 0 makes no sample of it"),
    ("reward.user_hourly", "feedback of one user in a clock hour that counts, from the second user on; 0 is no limit"),
    ("reward.user_share", "largest share of one user in a batch, from the second user on"),
    ("reward.quarantine", "seconds that feedback waits before it is used"),
    (
        "reward.flag_after",
        "comparisons with others after which a user who disagrees is held for review; 0 holds nobody",
    ),
    ("reward.flag_share", "share of those comparisons that must disagree"),
    ("http.listen", "address and port to listen on"),
    ("http.keys", "file with one Bearer key a line; required to listen beyond loopback"),
    ("http.body_limit", "largest request body, in bytes"),
    ("http.connections", "connections at once; one more takes the place of the oldest silent one, or waits"),
    (
        "http.read_seconds",
        "seconds for a request's head or body to arrive, and for a connection to be kept without one",
    ),
    ("http.origins", "origins, separated by commas, whose pages may ask beside those of this machine; * is all"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_text_and_every_text_a_setting() {
        let keys = Config::keys();
        let names: Vec<&str> = keys.iter().map(|k| k.name.as_str()).collect();
        let documented: Vec<&str> = DOCS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, documented);
        assert!(DOCS.iter().all(|(_, doc)| !doc.is_empty()));
    }

    #[test]
    fn no_two_settings_share_a_variable() {
        let mut variables: Vec<String> = Config::keys().into_iter().map(|k| k.variable).collect();
        variables.sort();
        let count = variables.len();
        variables.dedup();
        assert_eq!(variables.len(), count);
    }

    #[test]
    fn an_unset_setting_takes_text() {
        for key in Config::keys().into_iter().filter(|k| k.default.is_null()) {
            Config::builder().set(&key.name, "x".into()).unwrap().set(&key.name, Value::Null).unwrap();
        }
    }
}
