//! What an engine is told: one tree of settings with defaults, checked before anything starts. The only reader of
//! configuration files and of the environment; never looks at either unless asked.

mod builder;
mod keys;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
pub use builder::Builder;
pub use keys::Key;

/// Settings of an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// GGUF file of the base model.
    pub model: PathBuf,
    /// Folder of the ledger and the policy versions; one engine a folder.
    pub data: PathBuf,
    /// Serving.
    pub serve: ServeConfig,
    /// Learning.
    pub train: TrainConfig,
    /// What an answer is worth, and whose word counts.
    pub reward: RewardConfig,
    /// The HTTP service.
    pub http: HttpConfig,
}

/// Settings of the serving side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServeConfig {
    /// Requests decoded together in one batch.
    pub slots: u32,
    /// Tokens of context that the slots share.
    pub context: u32,
    /// Most tokens of one llama.cpp batch.
    pub batch: u32,
    /// Threads of llama.cpp; 0 takes the number of cores.
    pub threads: u32,
    /// Requests that may wait; one more is refused as busy.
    pub queue: u32,
    /// Answer length where a request sets none.
    pub max_tokens: u32,
    /// Seconds from the submission of a request to its last token, waiting included; 0 is no limit.
    pub request_seconds: u32,
    /// Layers kept on the GPU where there is one; -1 is all.
    pub gpu_layers: i32,
    /// Number format of the served weights: `keep` is the file's own, `auto` the fastest here, others are named as in
    /// [`crate::llama::FileType`]. The trainer keeps the file's own.
    pub r#type: String,
    /// Most KL to the file's own distribution, in nats a token, that `auto` accepts.
    pub kl_budget: f64,
}

/// The policy loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Advantage-Induced Policy Alignment.
    Apa,
    /// Advantage-weighted regression.
    Awr,
    /// Proximal policy optimization.
    Ppo,
}

/// Number format of the frozen weights' matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 where the processor multiplies it, else f32.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16 with 32-bit sums.
    Bf16,
}

/// Settings of the trainer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Whether feedback changes the policy. Without it the trainer's memory is not taken.
    pub enabled: bool,
    /// Start a step by itself when `batch` new ratings are in.
    pub auto: bool,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// Number format of the frozen products.
    pub dtype: Dtype,
    /// Threads of the trainer; 0 takes the number of cores.
    pub threads: u32,
    /// The loss.
    pub algorithm: Algorithm,
    /// What only PPO uses.
    pub ppo: PpoConfig,
    /// What keeps a trained candidate from being served.
    pub gate: GateConfig,
    /// Temperature of the target policy π_init · exp(A/λ): larger stays closer to the initial model. (APA paper: 0.1)
    pub lambda: f64,
    /// New ratings a batch.
    pub batch: u32,
    /// Samples an optimizer step.
    pub minibatch: u32,
    /// Passes over a batch. (paper: 2)
    pub epochs: u32,
    /// Learning rate of the policy's adapter. (paper, full weights: 1e-6)
    pub lr: f64,
    /// Learning rate of the critic.
    pub critic_lr: f64,
    /// Gradient norm that is clipped to.
    pub clip_norm: f64,
    /// AdamW's betas. (paper: 0.9, 0.95)
    pub betas: [f64; 2],
    /// AdamW's decoupled weight decay. (paper: 1e-6)
    pub weight_decay: f64,
    /// Discount γ. (paper: 1)
    pub gamma: f64,
    /// λ of generalized advantage estimation. (paper: 0.95)
    pub gae_lambda: f64,
    /// Whiten advantages over the batch.
    pub whiten: bool,
    /// Scores are divided by a running standard deviation and clipped to ± this.
    pub score_clip: f64,
    /// Rank of the adapters.
    pub rank: u32,
    /// Scale numerator of the adapters: the update is multiplied by alpha / rank.
    pub alpha: f64,
    /// Longest sample, prompt and response; longer ones are left out and counted.
    pub max_tokens: u32,
    /// Tokens computed at once: bounds the trainer's memory.
    pub micro_batch_tokens: u32,
    /// Seeds adapters and the order of minibatches.
    pub seed: u64,
    /// Versions kept on disk beside the active one and the initial model; 0 keeps all.
    pub keep_versions: u32,
}

/// Settings of PPO. (Defaults: paper)
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PpoConfig {
    /// The ratio of new to old probability is clipped to 1 ± this.
    pub clip_range: f64,
    /// New values are clipped to old values ± this.
    pub value_clip_range: f64,
    /// First coefficient β of the KL penalty in the rewards.
    pub kl_coef: f64,
    /// KL per response, in nats, that β is steered to.
    pub kl_target: f64,
    /// Samples over which β adapts.
    pub kl_horizon: f64,
}

/// Settings of the reward: one scalar from terms with weights, each left out where an answer lacks it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// A reward model: a file for this base, as `apad reward train` writes it, or the folder of a DeBERTa-v2 or
    /// ModernBERT classifier.
    pub model: Option<PathBuf>,
    /// New preferences and corrections after which the reward model learns, and is replaced if it tells held-back pairs
    /// apart at least as well; 0 leaves it as it is.
    pub learn: u32,
    /// Weight of the reward model's score, which is centred and divided by its running standard deviation.
    pub model_weight: f64,
    /// A shell command that judges answers: reads lines `{"prompt", "response"}`, writes lines `{"score": number}`.
    pub command: Option<String>,
    /// A service that judges answers: gets `{"samples": [{"prompt", "response"}]}`, gives `{"scores": [numbers]}`.
    pub url: Option<String>,
    /// Seconds that the command or the service may take for a batch.
    pub external_timeout: u32,
    /// Weight of the command's or the service's score, which is centred and divided by its running standard deviation.
    pub external_weight: f64,
    /// Weight of people's ratings, in [-1, 1].
    pub rating_weight: f64,
    /// Weight of the length term: 0 up to `length_free` tokens, -1 from twice as many on.
    pub length_weight: f64,
    /// Tokens of an answer that cost nothing.
    pub length_free: u32,
    /// Named signals and what each adds: `copied=0.3, regenerated=-0.3`.
    pub signals: String,
    /// The sum is clipped to ± this.
    pub clip: f64,
    /// Answers that nobody rated, added to a batch and judged by the reward model alone; 0 leaves them out.
    pub unrated: u32,
    /// Versions back from the active one that answers may be from to be trained on; older ones are left out. 0 takes
    /// all.
    pub staleness: u32,
    /// Prompts that the policy answers afresh for the reward model to judge, while nobody asks or on demand: a file of
    /// JSON lines, or `users` for the newest prompts of users. Unset: none.
    pub rollouts: Option<String>,
    /// Largest share of rollouts in a batch; the rest is live feedback, as far as there is some.
    pub rollout_share: f64,
    /// Seconds without a request after which rollouts begin; 0 leaves them to demand.
    pub rollout_idle: u32,
    /// What a correction is worth as a sample of its own, with the answer as the user would have had it: its score, and
    /// the least advantage of its tokens; 0 makes no sample of it.
    pub correction: f64,
    /// Pieces of feedback of one user in a clock hour that count; 0 is no limit. Begins with the second user.
    pub user_hourly: u32,
    /// Largest share of one user in a batch. Begins with the second user.
    pub user_share: f64,
    /// Seconds that feedback waits before it is used.
    pub quarantine: u32,
    /// Comparisons with other users' ratings of the same answers after which a user who disagrees is held for review; 0
    /// holds nobody.
    pub flag_after: u32,
    /// Share of those comparisons that must disagree.
    pub flag_share: f64,
}

impl RewardConfig {
    /// The named signals and their weights.
    ///
    /// # Errors
    /// `Arg` for text that is not like `copied=0.3, regenerated=-0.3`.
    pub fn signal_weights(&self) -> Result<BTreeMap<String, f64>> {
        let wrong = |part: &str| {
            Error::arg(format!(
                "reward.signals has {part:?}, expected names and weights like copied=0.3, abandoned=-0.5"
            ))
        };
        let pair = |part: &str| {
            let (name, weight) = part.split_once('=').ok_or_else(|| wrong(part))?;
            let weight: f64 = weight.trim().parse().map_err(|_| wrong(part))?;
            let name = name.trim();
            if name.is_empty() || name.len() > 64 || !weight.is_finite() {
                return Err(wrong(part));
            }
            Ok((name.to_owned(), weight))
        };
        self.signals.split(',').map(str::trim).filter(|part| !part.is_empty()).map(pair).collect()
    }
}

/// What keeps a trained candidate from being served.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// Most KL to the initial model, in nats a response. Generous: answers that far are hardly the model's any more.
    pub kl_budget: f64,
    /// Samples of the batch on which that KL is measured, with a pass of the new policy; 0 measures nothing.
    pub kl_samples: u32,
    /// Most that the mean rating of a batch may lie below that of the version's own batch.
    pub reward_drop: f64,
}

/// Settings of the HTTP service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on.
    pub listen: String,
    /// File with one Bearer key a line; required to listen beyond loopback.
    pub keys: Option<PathBuf>,
    /// Largest request body, in bytes.
    pub body_limit: usize,
    /// Connections at once. One more takes the place of the oldest that never asked for anything, or waits.
    pub connections: u32,
    /// Seconds for the head or the body of a request to arrive, and for a connection to be kept without one.
    pub read_seconds: u32,
    /// Origins, separated by commas, whose pages may ask beside those of this machine, like https://chat.example.org; *
    /// is all.
    pub origins: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            data: PathBuf::from("apa-data"),
            serve: ServeConfig::default(),
            train: TrainConfig::default(),
            reward: RewardConfig::default(),
            http: HttpConfig::default(),
        }
    }
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            slots: 8,
            context: 8192,
            batch: 512,
            threads: 0,
            queue: 64,
            max_tokens: 512,
            request_seconds: 600,
            gpu_layers: -1,
            r#type: "keep".into(),
            kl_budget: 0.1,
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            auto: true,
            device: "auto".into(),
            dtype: Dtype::Auto,
            threads: 0,
            algorithm: Algorithm::Apa,
            ppo: PpoConfig::default(),
            gate: GateConfig::default(),
            lambda: 0.1,
            batch: 16,
            minibatch: 8,
            epochs: 2,
            lr: 1e-4,
            critic_lr: 3e-4,
            clip_norm: 1.0,
            betas: [0.9, 0.95],
            weight_decay: 1e-6,
            gamma: 1.0,
            gae_lambda: 0.95,
            whiten: true,
            score_clip: 5.0,
            rank: 16,
            alpha: 32.0,
            max_tokens: 2048,
            micro_batch_tokens: 1024,
            seed: 0,
            keep_versions: 0,
        }
    }
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            model: None,
            learn: 100,
            model_weight: 1.0,
            command: None,
            url: None,
            external_timeout: 60,
            external_weight: 1.0,
            rating_weight: 1.0,
            length_weight: 0.0,
            length_free: 256,
            signals: "copied=0.3, regenerated=-0.3, abandoned=-0.3".into(),
            clip: 5.0,
            unrated: 0,
            staleness: 0,
            rollouts: None,
            rollout_share: 0.5,
            rollout_idle: 60,
            correction: 0.0,
            user_hourly: 120,
            user_share: 0.5,
            quarantine: 0,
            flag_after: 10,
            flag_share: 0.6,
        }
    }
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self { clip_range: 0.2, value_clip_range: 0.2, kl_coef: 0.05, kl_target: 6.0, kl_horizon: 10_000.0 }
    }
}

impl Default for GateConfig {
    fn default() -> Self {
        Self { kl_budget: 200.0, kl_samples: 4, reward_drop: 1.5 }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8372".into(),
            keys: None,
            body_limit: 4 << 20,
            connections: 512,
            read_seconds: 30,
            origins: String::new(),
        }
    }
}
