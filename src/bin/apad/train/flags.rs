//! The numbers of an experiment as flags, each with the default and the paper's value (arXiv 2306.02231). Checks
//! nothing: the library does.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

/// Names of these flags' fields: what a run that goes on must not be told again.
pub const NAMES: [&str; 28] = [
    "algorithm",
    "credit",
    "lambda",
    "nats_per_reward",
    "length_power",
    "kl_step",
    "kl_budget",
    "kl_samples",
    "lr",
    "critic_lr",
    "epochs",
    "batch",
    "minibatch",
    "rank",
    "alpha",
    "beta1",
    "beta2",
    "weight_decay",
    "clip_norm",
    "gamma",
    "gae_lambda",
    "no_whiten",
    "score_clip",
    "ppo_clip",
    "ppo_value_clip",
    "ppo_kl_coef",
    "ppo_kl_target",
    "ppo_kl_horizon",
];

#[derive(Clone, Copy, ValueEnum)]
enum Algorithm {
    Apa,
    Awr,
    Ppo,
    Rloo,
}

#[derive(Clone, Copy, ValueEnum)]
enum Credit {
    Token,
    Response,
}

/// What decides how is learned.
#[derive(Args)]
#[command(next_help_heading = "Learning")]
pub struct Hyperparameters {
    /// The policy loss (default: apa)
    #[arg(long, value_enum)]
    algorithm: Option<Algorithm>,
    /// What APA takes for an action, and so what a reward is credited to (paper: token)
    #[arg(long, value_enum)]
    credit: Option<Credit>,
    /// Temperature of the target policy; larger stays closer to the initial model (paper and default: 0.1 for APA with
    /// credit by token, 1 for AWR)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lambda: Option<f64>,
    /// APA with credit by response: how much likelier an answer is to become, in nats, for a reward of one standard
    /// deviation above what was expected (default: 4)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    nats_per_reward: Option<f64>,
    /// APA with credit by response: 0 lets answers of every length move as far, 1 lets one of T tokens move T times as
    /// far (default: 0)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_power: Option<f64>,
    /// Most KL of a batch's new policy to the one before, in nats a response; 0 is no limit (default: 0.1)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    kl_step: Option<f64>,
    /// Most KL to the initial model, in nats a response; 0 is no limit (default: 10)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    kl_budget: Option<f64>,
    /// Answers of a batch on which both are measured, after every optimizer step; 0 limits nothing (default: 8)
    #[arg(long, value_name = "N")]
    kl_samples: Option<u32>,
    /// Learning rate of the policy's adapter (default: 1e-4; paper, full weights: 1e-6, PPO 8e-6)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Learning rate of the critic (default: 3e-4; paper: the policy's)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    critic_lr: Option<f64>,
    /// Passes over a batch (paper and default: 2)
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
    /// Answers a step (default: 16; paper: 128 with 125M, 64 with 1B and 6B)
    #[arg(long, value_name = "N")]
    pub batch: Option<u32>,
    /// Answers an optimizer step (default: 8; paper: 8 with 125M, 2 with 1B, 1 with 6B)
    #[arg(long, value_name = "N")]
    minibatch: Option<u32>,
    /// Rank of the adapters, policy's and critic's (default: 16; paper: none, the top two layers whole)
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    /// The adapters' update is multiplied by alpha / rank (default: 32)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    alpha: Option<f64>,
    /// AdamW's first beta (paper and default: 0.9)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta1: Option<f64>,
    /// AdamW's second beta (paper and default: 0.95)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta2: Option<f64>,
    /// AdamW's decoupled weight decay (paper and default: 1e-6)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight_decay: Option<f64>,
    /// Gradient norm that is clipped to (default: 1)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    clip_norm: Option<f64>,
    /// Discount (paper and default: 1)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    gamma: Option<f64>,
    /// Lambda of generalized advantage estimation (paper and default: 0.95)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    gae_lambda: Option<f64>,
    /// Leave advantages as they are (paper and default: whitened over the batch)
    #[arg(long)]
    no_whiten: bool,
    /// Scores are divided by a running standard deviation and clipped to this (default: 5)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    score_clip: Option<f64>,
    /// PPO: the ratio of probabilities is clipped to 1 ± this (paper and default: 0.2)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    ppo_clip: Option<f64>,
    /// PPO: values are clipped to the old ones ± this (paper and default: 0.2)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    ppo_value_clip: Option<f64>,
    /// PPO: first coefficient of the KL penalty (paper and default: 0.05)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    ppo_kl_coef: Option<f64>,
    /// PPO: KL a response, in nats, that the coefficient is steered to (paper and default: 6)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    ppo_kl_target: Option<f64>,
    /// PPO: samples over which it is steered (paper and default: 10000)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    ppo_kl_horizon: Option<f64>,
}

impl Hyperparameters {
    /// The library's settings that were given.
    pub fn settings(&self) -> Vec<(&'static str, Option<Value>)> {
        let algorithm = self.algorithm.map(|a| match a {
            Algorithm::Apa => "apa",
            Algorithm::Awr => "awr",
            Algorithm::Ppo => "ppo",
            Algorithm::Rloo => "rloo",
        });
        let credit = self.credit.map(|c| match c {
            Credit::Token => "token",
            Credit::Response => "response",
        });
        let lambda = match self.algorithm {
            Some(Algorithm::Awr) => "train.awr.lambda",
            _ => "train.lambda",
        };
        let betas = match (self.beta1, self.beta2) {
            (None, None) => None,
            (first, second) => {
                let [paper1, paper2] = apa::config::TrainConfig::default().betas;
                Some(json!([first.unwrap_or(paper1), second.unwrap_or(paper2)]))
            }
        };
        let float = |x: Option<f64>| x.map(Value::from);
        let count = |n: Option<u32>| n.map(Value::from);
        vec![
            ("train.algorithm", algorithm.map(Value::from)),
            ("train.credit", credit.map(Value::from)),
            (lambda, float(self.lambda)),
            ("train.nats_per_reward", float(self.nats_per_reward)),
            ("train.length_power", float(self.length_power)),
            ("train.kl_step", float(self.kl_step)),
            ("train.kl_budget", float(self.kl_budget)),
            ("train.kl_samples", count(self.kl_samples)),
            ("train.lr", float(self.lr)),
            ("train.critic_lr", float(self.critic_lr)),
            ("train.epochs", count(self.epochs)),
            ("train.batch", count(self.batch)),
            ("train.minibatch", count(self.minibatch)),
            ("train.rank", count(self.rank)),
            ("train.alpha", float(self.alpha)),
            ("train.betas", betas),
            ("train.weight_decay", float(self.weight_decay)),
            ("train.clip_norm", float(self.clip_norm)),
            ("train.gamma", float(self.gamma)),
            ("train.gae_lambda", float(self.gae_lambda)),
            ("train.whiten", self.no_whiten.then_some(false.into())),
            ("train.score_clip", float(self.score_clip)),
            ("train.ppo.clip_range", float(self.ppo_clip)),
            ("train.ppo.value_clip_range", float(self.ppo_value_clip)),
            ("train.ppo.kl_coef", float(self.ppo_kl_coef)),
            ("train.ppo.kl_target", float(self.ppo_kl_target)),
            ("train.ppo.kl_horizon", float(self.ppo_kl_horizon)),
        ]
    }
}
