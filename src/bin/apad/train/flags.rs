//! The settings of learning that `apad train` takes as flags. Checks nothing: the library does.

use crate::flags::{Flags, Given};

/// The flags of learning.
#[derive(Clone, Debug)]
pub struct Learning;

impl Flags for Learning {
    const HEADING: Option<&'static str> = Some("Learning");
    const FLAGS: &'static [(&'static str, &'static str)] = &[
        ("algorithm", "train.algorithm"),
        ("credit", "train.credit"),
        (LAMBDA, "train.lambda"),
        ("nats-per-reward", "train.nats_per_reward"),
        ("length-power", "train.length_power"),
        ("kl-step", "train.kl_step"),
        ("kl-budget", "train.kl_budget"),
        ("kl-samples", "train.kl_samples"),
        ("lr", "train.lr"),
        ("critic-lr", "train.critic_lr"),
        ("epochs", "train.epochs"),
        ("batch", "train.batch"),
        ("minibatch", "train.minibatch"),
        ("rank", "train.rank"),
        ("alpha", "train.alpha"),
        ("betas", "train.betas"),
        ("weight-decay", "train.weight_decay"),
        ("clip-norm", "train.clip_norm"),
        ("gamma", "train.gamma"),
        ("gae-lambda", "train.gae_lambda"),
        ("whiten", "train.whiten"),
        ("score-clip", "train.score_clip"),
        ("ppo-clip", "train.ppo.clip_range"),
        ("ppo-value-clip", "train.ppo.value_clip_range"),
        ("ppo-kl-coef", "train.ppo.kl_coef"),
        ("ppo-kl-target", "train.ppo.kl_target"),
        ("ppo-kl-horizon", "train.ppo.kl_horizon"),
    ];

    fn note(flag: &str) -> &'static str {
        if flag == LAMBDA { " With --algorithm awr it is train.awr.lambda." } else { "" }
    }
}

const LAMBDA: &str = "lambda";

/// Names of the flags: what a resumed run must not be told again.
pub fn names() -> impl Iterator<Item = &'static str> {
    Learning::FLAGS.iter().map(|(flag, _)| *flag)
}

/// The settings that were given. λ is that of the algorithm that was given with it.
pub fn settings(given: &Given<Learning>) -> impl Iterator<Item = (&'static str, Option<String>)> + '_ {
    let awr = given.get("algorithm") == Some("awr");
    given.settings().map(move |(key, text)| (if awr && key == "train.lambda" { "train.awr.lambda" } else { key }, text))
}
