//! Checks ranges. Never changes a setting, and never touches a file or a device.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{Config, HttpConfig, PpoConfig, RewardConfig, ServeConfig, TrainConfig};
use crate::error::{Error, Result};

impl Config {
    /// Whether every value is in its range. (Whether the model file is there is found out by opening it.)
    ///
    /// # Errors
    /// `Arg`: `train.lambda is -1, expected a number above 0`.
    pub fn validate(&self) -> Result<()> {
        if self.data.as_os_str().is_empty() {
            return wrong("data", "empty", "the path of a folder");
        }
        serve(&self.serve)?;
        train(&self.train)?;
        reward(&self.reward)?;
        http(&self.http)
    }
}

impl TrainConfig {
    /// Whether every value is in its range.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn validate(&self) -> Result<()> {
        train(self)
    }
}

fn serve(c: &ServeConfig) -> Result<()> {
    // llama.cpp's own limit on sequences of a context is 256.
    whole("serve.slots", c.slots, 1..=256)?;
    whole("serve.context", c.context, 16..=1 << 24)?;
    whole("serve.batch", c.batch, 1..=1 << 16)?;
    whole("serve.threads", c.threads, 0..=1024)?;
    whole("serve.queue", c.queue, 1..=1 << 16)?;
    whole("serve.max_tokens", c.max_tokens, 1..=1 << 24)?;
    whole("serve.request_seconds", c.request_seconds, 0..=86_400)?;
    whole("serve.gpu_layers", c.gpu_layers, -1..=i32::MAX)?;
    if !(c.kl_budget >= 0.0 && c.kl_budget.is_finite()) {
        return wrong("serve.kl_budget", c.kl_budget, "a number of 0 or more");
    }
    if c.batch < c.slots {
        return wrong(
            "serve.batch",
            c.batch,
            &format!("at least serve.slots, {}: each slot decodes one token", c.slots),
        );
    }
    Ok(())
}

fn train(c: &TrainConfig) -> Result<()> {
    let cuda = c.device.strip_prefix("cuda:").is_some_and(|n| n.parse::<u16>().is_ok());
    if !(cuda || c.device == "auto" || c.device == "cpu") {
        return wrong("train.device", format_args!("{:?}", c.device), "auto, cpu or cuda:N");
    }
    whole("train.threads", c.threads, 0..=1024)?;
    above_zero("train.lambda", c.lambda)?;
    ppo(&c.ppo)?;
    above_zero("train.gate.kl_budget", c.gate.kl_budget)?;
    above_zero("train.gate.reward_drop", c.gate.reward_drop)?;
    whole("train.batch", c.batch, 1..=1 << 16)?;
    whole("train.minibatch", c.minibatch, 1..=1 << 16)?;
    whole("train.epochs", c.epochs, 1..=1000)?;
    above_zero("train.lr", c.lr)?;
    above_zero("train.critic_lr", c.critic_lr)?;
    above_zero("train.clip_norm", c.clip_norm)?;
    if !c.betas.iter().all(|b| (0.0..1.0).contains(b)) {
        return wrong("train.betas", format_args!("{:?}", c.betas), "two numbers of 0 or more, below 1");
    }
    if !(c.weight_decay >= 0.0 && c.weight_decay.is_finite()) {
        return wrong("train.weight_decay", c.weight_decay, "a number of 0 or more");
    }
    if !(c.gamma > 0.0 && c.gamma <= 1.0) {
        return wrong("train.gamma", c.gamma, "a number above 0, at most 1");
    }
    if !(0.0..=1.0).contains(&c.gae_lambda) {
        return wrong("train.gae_lambda", c.gae_lambda, "a number from 0 to 1");
    }
    above_zero("train.score_clip", c.score_clip)?;
    whole("train.rank", c.rank, 1..=4096)?;
    above_zero("train.alpha", c.alpha)?;
    // A prompt token and a response token.
    whole("train.max_tokens", c.max_tokens, 2..=1 << 24)?;
    whole("train.micro_batch_tokens", c.micro_batch_tokens, 1..=1 << 24)
}

fn ppo(c: &PpoConfig) -> Result<()> {
    above_zero("train.ppo.clip_range", c.clip_range)?;
    above_zero("train.ppo.value_clip_range", c.value_clip_range)?;
    if !(c.kl_coef >= 0.0 && c.kl_coef.is_finite()) {
        return wrong("train.ppo.kl_coef", c.kl_coef, "a number of 0 or more");
    }
    above_zero("train.ppo.kl_target", c.kl_target)?;
    above_zero("train.ppo.kl_horizon", c.kl_horizon)
}

fn reward(c: &RewardConfig) -> Result<()> {
    let weights = [
        ("reward.model_weight", c.model_weight),
        ("reward.external_weight", c.external_weight),
        ("reward.rating_weight", c.rating_weight),
        ("reward.length_weight", c.length_weight),
    ];
    if let Some((key, value)) = weights.into_iter().find(|(_, weight)| !(weight.is_finite() && *weight >= 0.0)) {
        return wrong(key, value, "a number of 0 or more");
    }
    c.signal_weights()?;
    whole("reward.external_timeout", c.external_timeout, 1..=3600)?;
    if c.command.is_some() && c.url.is_some() {
        return wrong("reward.url", "set beside reward.command", "one of them");
    }
    whole("reward.length_free", c.length_free, 1..=1 << 24)?;
    above_zero("reward.clip", c.clip)?;
    whole("reward.unrated", c.unrated, 0..=1 << 16)?;
    if !(0.0..=1.0).contains(&c.correction) {
        return wrong("reward.correction", c.correction, "a number from 0 to 1");
    }
    for (key, share) in [
        ("reward.user_share", c.user_share),
        ("reward.flag_share", c.flag_share),
        ("reward.rollout_share", c.rollout_share),
    ] {
        if !(share > 0.0 && share <= 1.0) {
            return wrong(key, share, "a number above 0, at most 1");
        }
    }
    Ok(())
}

fn http(c: &HttpConfig) -> Result<()> {
    let port = c.listen.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(_))) {
        return wrong("http.listen", format_args!("{:?}", c.listen), "an address and a port, such as 127.0.0.1:8372");
    }
    whole("http.body_limit", c.body_limit, 1 << 10..=1 << 30)?;
    whole("http.connections", c.connections, 1..=1 << 16)?;
    whole("http.read_seconds", c.read_seconds, 1..=3600)?;
    let origin = |text: &&str| *text == "*" || text.starts_with("http://") || text.starts_with("https://");
    match c.origins.split(',').map(str::trim).filter(|o| !o.is_empty()).find(|o| !origin(o) || o.ends_with('/')) {
        Some(bad) => wrong("http.origins", format_args!("{bad:?}"), "origins such as https://chat.example.org, or *"),
        None => Ok(()),
    }
}

fn whole<T: PartialOrd + Display>(key: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    wrong(key, value, &format!("a whole number from {} to {}", range.start(), range.end()))
}

fn above_zero(key: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() { Ok(()) } else { wrong(key, value, "a number above 0") }
}

fn wrong<T>(key: &str, value: impl Display, expected: &str) -> Result<T> {
    Err(Error::arg(format!("{key} is {value}, expected {expected}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for (key, value, expected) in [
            ("data", json!(""), "data is empty, expected the path of a folder"),
            ("serve.slots", json!(0), "serve.slots is 0, expected a whole number from 1 to 256"),
            (
                "serve.batch",
                json!(4),
                "serve.batch is 4, expected at least serve.slots, 8: each slot decodes one token",
            ),
            ("serve.gpu_layers", json!(-2), "serve.gpu_layers is -2, expected"),
            ("train.device", json!("gpu"), "train.device is \"gpu\", expected auto, cpu or cuda:N"),
            ("train.device", json!("cuda:"), "expected auto, cpu or cuda:N"),
            ("train.lambda", json!(-1), "train.lambda is -1, expected a number above 0"),
            ("train.lr", json!(0), "train.lr is 0, expected a number above 0"),
            ("train.betas", json!([0.9, 1.0]), "train.betas is [0.9, 1.0], expected"),
            ("train.weight_decay", json!(-0.1), "train.weight_decay is -0.1, expected"),
            ("train.gamma", json!(1.1), "train.gamma is 1.1, expected"),
            ("train.gae_lambda", json!(-0.5), "train.gae_lambda is -0.5, expected"),
            ("train.max_tokens", json!(1), "train.max_tokens is 1, expected"),
            ("http.listen", json!("8372"), "http.listen is \"8372\", expected"),
            ("http.listen", json!("[::1]:99999"), "http.listen is"),
            ("http.body_limit", json!(3), "http.body_limit is 3, expected"),
            ("http.connections", json!(0), "http.connections is 0, expected"),
            ("http.read_seconds", json!(0), "http.read_seconds is 0, expected"),
            ("http.origins", json!("http://a, b.org"), "http.origins is \"b.org\", expected origins such as"),
        ] {
            let error = Config::builder().set(key, value).unwrap().build().unwrap_err();
            assert!(error.message().contains(expected), "{error}");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        for value in [f64::NAN, f64::INFINITY] {
            let mut config = Config::default();
            config.train.lambda = value;
            assert!(config.validate().is_err());
            let mut config = Config::default();
            config.train.weight_decay = value;
            assert!(config.validate().is_err());
        }
    }
}
