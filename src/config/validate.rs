//! Checks the settings: each against its range, then those that depend on each other. Never changes a setting or
//! touches a file or a device.

use super::range::Range;
use super::rows::Setting;
use super::{Algorithm, Config, Credit, Role, TrainConfig};
use crate::error::{Error, Result};

impl Config {
    /// Checks that every value is in its range. (Opening the model finds out whether its file is there.)
    ///
    /// # Errors
    /// `Arg`: `train.lambda is -1, expected a number above 0`.
    pub fn validate(&self) -> Result<()> {
        in_range(self, "")?;
        self.train.validate()?;
        let (batch, slots) = (self.serve.batch, self.serve.slots);
        if batch < slots {
            let why = "each slot decodes one token";
            return Err(Error::arg(format!("serve.batch is {batch}, expected at least serve.slots, {slots}: {why}")));
        }
        if self.serve.context < slots {
            let (context, why) = (self.serve.context, "each slot holds at least one token");
            let expected = format!("at least serve.slots, {slots}: {why}");
            return Err(Error::arg(format!("serve.context is {context}, expected {expected}")));
        }
        let others = match self.serve.role {
            Role::All => None,
            Role::Server => Some("server, expected ledger.url to be set: it serves what another server decides"),
            Role::Trainer => Some("trainer, expected ledger.url to be set: it learns from what other servers are told"),
        };
        if let Some(expected) = others.filter(|_| self.ledger.url.is_none()) {
            return Err(Error::arg(format!("serve.role is {expected}")));
        }
        if self.reward.command.is_some() && self.reward.url.is_some() {
            return Err(Error::arg("reward.url is set beside reward.command, expected one of them"));
        }
        let [few, more] = self.gate.shares;
        if more < few {
            return Err(Error::arg(format!(
                "gate.shares is [{few}, {more}], expected the second share to be no smaller than the first"
            )));
        }
        self.reward.signal_weights().map(|_| ())
    }
}

impl TrainConfig {
    /// Checks that every value is in its range.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn validate(&self) -> Result<()> {
        in_range(self, "train")?;
        if self.credit == Credit::Response && self.algorithm != Algorithm::Apa {
            return Err(Error::arg("train.credit is response, expected token where train.algorithm is not apa"));
        }
        if self.tinker().is_some() && self.credit != Credit::Response {
            return Err(Error::arg(
                "train.credit is token, expected response where train.engine is a Tinker server: what needs a critic \
                 can't be trained there",
            ));
        }
        Ok(())
    }
}

/// The first value of a section that is out of range, as an error.
fn in_range(section: &impl Setting, name: &str) -> Result<()> {
    let mut found = Ok(());
    section.walk(name.to_owned(), &[], Range::Any, &mut |row| {
        if found.is_ok() {
            found = row.check();
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn more_slots_than_tokens_of_context_are_refused() {
        let mut config = Config { model: "model.gguf".into(), ..Config::default() };
        (config.serve.context, config.serve.slots) = (32, 33);
        let error = config.validate().unwrap_err();
        assert!(error.message().starts_with("serve.context is 32, expected at least serve.slots, 33"), "{error}");
        config.serve.slots = 32;
        config.validate().unwrap();
    }

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
            ("serve.threads", json!(1024), "serve.threads is 1024, expected a whole number from 0 to 512"),
            ("serve.gpu_layers", json!(-2), "serve.gpu_layers is -2, expected"),
            ("train.engine", json!("tinker:host"), "train.engine is \"tinker:host\", expected candle or tinker:URL"),
            ("train.engine", json!("tinker:https://me:secret@host"), "expected candle or tinker:URL"),
            ("train.engine", json!("tinker:http://host:8000"), "train.credit is token, expected response where"),
            ("train.tinker_seconds", json!(0), "train.tinker_seconds is 0, expected"),
            ("train.device", json!("gpu"), "train.device is \"gpu\", expected auto, cpu or cuda:N"),
            ("train.device", json!("cuda:"), "expected auto, cpu or cuda:N"),
            ("train.lambda", json!(-1), "train.lambda is -1, expected a number above 0"),
            ("train.lr", json!(0), "train.lr is 0, expected a number above 0"),
            ("train.betas", json!([0.9, 1.0]), "train.betas is [0.9, 1.0], expected"),
            ("train.weight_decay", json!(-0.1), "train.weight_decay is -0.1, expected"),
            ("train.gamma", json!(1.1), "train.gamma is 1.1, expected"),
            ("train.gae_lambda", json!(-0.5), "train.gae_lambda is -0.5, expected"),
            ("train.max_tokens", json!(1), "train.max_tokens is 1, expected"),
            (
                "gate.shares",
                json!([0.25, 0.05]),
                "gate.shares is [0.25, 0.05], expected the second share to be no smaller",
            ),
            ("http.listen", json!("8372"), "http.listen is \"8372\", expected"),
            ("http.listen", json!("[::1]:99999"), "http.listen is"),
            ("http.body_limit", json!(3), "http.body_limit is 3, expected"),
            ("http.connections", json!(0), "http.connections is 0, expected"),
            ("http.read_seconds", json!(0), "http.read_seconds is 0, expected"),
            ("http.origins", json!("http://a, b.org"), "http.origins is \"b.org\", expected origins such as"),
            ("http.origins", json!("https://é.example"), "http.origins is \"https://é.example\", expected origins"),
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
