//! The vocabulary that the stages exchange: ids, units, and the records of a generation's life. No behaviour, no I/O.

mod feedback;
mod versions;
mod whole;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Div, RangeInclusive};

pub use feedback::*;
use serde::{Deserialize, Deserializer, Serialize};
pub use versions::*;
pub(crate) use whole::whole;

/// A token of the model's vocabulary.
pub type TokenId = u32;

/// Milliseconds since the Unix epoch.
pub type UnixMillis = u64;

/// An amount of information, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Nats(#[serde(deserialize_with = "nan_from_null")] pub f64);

impl Add for Nats {
    type Output = Nats;
    fn add(self, other: Nats) -> Nats {
        Nats(self.0 + other.0)
    }
}

impl Div<f64> for Nats {
    type Output = Nats;
    fn div(self, by: f64) -> Nats {
        Nats(self.0 / by)
    }
}

impl fmt::Display for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} nats", self.0)
    }
}

/// Names one answer, for feedback and for the record. Opaque, unique, of 1 to [`GenerationId::MAX_BYTES`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct GenerationId(pub String);

impl GenerationId {
    /// Longest id, in bytes.
    pub const MAX_BYTES: usize = 64;
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A published state of the policy. 0 is the initial model without an adapter; numbers only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct PolicyVersion(pub u64);

impl PolicyVersion {
    /// The initial model: no adapter.
    pub const INITIAL: PolicyVersion = PolicyVersion(0);
}

impl fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How tokens are drawn. Stored with every generation: the trainer needs the temperature.
///
/// Whatever shapes the distribution, the sampled tokens are the policy's own and are trained on. Their
/// log-probabilities, in training and as clients see them, are those of the plain model, without filters, penalties,
/// biases or a format's mask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 means greedy. In [0, 10].
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Nucleus mass, in (0, 1].
    pub top_p: f32,
    /// Least probability relative to the most probable token, in [0, 1].
    pub min_p: f32,
    /// Multiplicative penalty on tokens of the last 64; 1 is none.
    pub repeat_penalty: f32,
    /// Additive penalty per earlier use, in [-2, 2].
    pub frequency_penalty: f32,
    /// Additive penalty on any earlier use, in [-2, 2].
    pub presence_penalty: f32,
    /// Added to the logits of these tokens before anything else; in [-100, 100], at most [`Sampling::MAX_BIASES`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<TokenId, f32>,
    /// What the answer must look like; anything if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The tokens that end an answer are never sampled, where its format allows others.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_eos: bool,
    /// Seeds this request's own generator. Unset: drawn at submission, and recorded.
    pub seed: Option<u64>,
}

impl Sampling {
    /// Values of `temperature`.
    pub const TEMPERATURE: RangeInclusive<f32> = 0.0..=10.0;
    /// Largest `top_k`.
    pub const MAX_TOP_K: u32 = 1 << 20;
    /// Values of `top_p` and `min_p`.
    pub const MASS: RangeInclusive<f32> = 0.0..=1.0;
    /// Values of `repeat_penalty`.
    pub const REPEAT_PENALTY: RangeInclusive<f32> = 0.01..=10.0;
    /// Values of `frequency_penalty` and `presence_penalty`.
    pub const PENALTY: RangeInclusive<f32> = -2.0..=2.0;
    /// Values that are added to a logit.
    pub const BIAS: RangeInclusive<f32> = -100.0..=100.0;
    /// Most tokens with a bias of their own.
    pub const MAX_BIASES: usize = 300;
}

impl Default for Sampling {
    /// The plain policy at temperature 1: what APA trains on.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            format: None,
            ignore_eos: false,
            seed: None,
        }
    }
}

/// Constrains an answer: only tokens that can still lead to a valid one are sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// JSON that matches this schema.
    JsonSchema(serde_json::Value),
    /// Text that matches this GBNF grammar, whose start symbol is `root`.
    Grammar(String),
}

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateRequest {
    /// Prompt tokens; the engine's `chat_prompt` and `tokenize` make them.
    pub prompt: Vec<TokenId>,
    /// How to sample.
    pub sampling: Sampling,
    /// Most tokens to make; the configured default if unset.
    pub max_tokens: Option<u32>,
    /// Strings that end the answer; not part of its text. At most [`GenerateRequest::MAX_STOPS`].
    pub stop: Vec<String>,
    /// Returns the log-probabilities of the sampled tokens and of this many most probable ones beside each, at most
    /// [`GenerateRequest::MAX_LOGPROBS`]; `None` computes none.
    pub logprobs: Option<u32>,
    /// The user it is for.
    pub user: Option<String>,
    /// Identifies the conversation: while two versions are compared, a conversation stays with one. Unset, the prompt
    /// is a conversation of its own.
    pub conversation: Option<u64>,
    /// The conversation was answered before: while two versions are compared, one that began before them stays with the
    /// version that serves everyone.
    pub answered: bool,
    /// Version to answer with, if it is being served; otherwise the active one answers.
    pub version: Option<PolicyVersion>,
    /// No other version may answer: the one that is named is brought into serving beside the active one, or the request
    /// fails.
    pub exact_version: bool,
    /// An answer on record whose words the prompt repeats: that of a response that this one goes on from, or of a
    /// request that is asked again. Where it is forgotten, this one goes too; where it is gone by then, this one is not
    /// recorded.
    pub origin: Option<GenerationId>,
}

impl GenerateRequest {
    /// Most strings that end an answer.
    pub const MAX_STOPS: usize = 16;
    /// Most alternatives beside each sampled token whose log-probabilities are returned.
    pub const MAX_LOGPROBS: u32 = 20;
}

/// A token that might have been sampled.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Alternative {
    /// The text of the token; bytes that are not UTF-8 by themselves are replaced.
    pub token: String,
    /// The log-probability of the token under the plain model at temperature 1, in nats; at least -9999.
    pub logprob: f32,
    /// The bytes of the token.
    pub bytes: Vec<u8>,
    /// The token.
    pub id: TokenId,
}

/// A sampled token and the most probable ones at its position, itself perhaps among them. The JSON is OpenAI's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct TokenLogprob {
    /// The sampled token.
    #[serde(flatten)]
    pub chosen: Alternative,
    /// The most probable tokens, the most probable first; as many as the request asked for.
    pub top_logprobs: Vec<Alternative>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string matched.
    Stop,
    /// The token limit or the context was reached.
    Length,
    /// The client left or asked to stop.
    Cancelled,
}

impl FinishReason {
    /// The word used in JSON and in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// One answer as it was made: the exact tokens, settings and weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Generation {
    /// The id that feedback names.
    pub id: GenerationId,
    /// The weights that made every token of it.
    pub policy_version: PolicyVersion,
    /// The prompt as the model saw it, template applied.
    pub prompt: Vec<TokenId>,
    /// What was sampled, the end-of-turn token included where the model gave one.
    pub response: Vec<TokenId>,
    /// The text of the response, as the client got it.
    pub text: String,
    /// How it was sampled, `seed` filled in.
    pub sampling: Sampling,
    /// Why the answer ended.
    pub finish: FinishReason,
    /// The user that the client named.
    pub user: Option<String>,
    /// When it was submitted.
    pub created: UnixMillis,
    /// The answer could not be recorded, so its id can't be rated. Never set on one that comes from the record.
    #[serde(skip)]
    pub unrecorded: bool,
}

/// One training sample: tokens and the scalar that judges them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rollout {
    /// Prompt tokens; at least one.
    pub prompt: Vec<TokenId>,
    /// Response tokens; at least one.
    pub response: Vec<TokenId>,
    /// Temperature it was sampled at; greedy (0) is trained at 1.
    pub temperature: f32,
    /// Reward before normalization.
    pub score: f64,
    /// Lower bound of each token's advantage, after whitening: for answers that should become likelier whatever the
    /// critic expects.
    pub advantage_floor: Option<f64>,
    /// The server's own log-probabilities of the response's tokens (perhaps without the last) at temperature 1, nats,
    /// if known. Never trained on: they only show how far the two engines are apart.
    pub served_logprobs: Option<Vec<f32>>,
    /// The version that sampled it; none for text that no version of this model sampled.
    pub version: Option<PolicyVersion>,
    /// Log-probabilities of the response's tokens under that version, nats, by the trainer's own forward pass; none if
    /// it is the policy being trained. PPO's ratio is taken to them.
    pub behavior_logprobs: Option<Vec<f32>>,
}

/// What one training batch did to the policy, measured on that batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct StepMetrics {
    /// Samples that were trained on.
    pub samples: usize,
    /// Samples longer than the trainer's limit, of which only the last part was trained on.
    pub shortened: usize,
    /// Response tokens in the batch.
    pub response_tokens: usize,
    /// Mean score before normalization.
    #[serde(deserialize_with = "nan_from_null")]
    pub mean_reward: f64,
    /// Mean response length, in tokens.
    #[serde(deserialize_with = "nan_from_null")]
    pub mean_length: f64,
    /// KL of the policy before the batch to the initial model: k1, summed over a response, mean over responses.
    pub kl_per_response: Nats,
    /// The same per token, estimator k1.
    pub kl_k1_per_token: Nats,
    /// The same per token, estimator k3.
    pub kl_k3_per_token: Nats,
    /// Policy loss, mean over the batch's optimizer steps.
    #[serde(deserialize_with = "nan_from_null")]
    pub policy_loss: f64,
    /// Value loss, mean over the batch's optimizer steps.
    #[serde(deserialize_with = "nan_from_null")]
    pub value_loss: f64,
    /// Gradient norm of the policy before clipping, mean over steps.
    #[serde(deserialize_with = "nan_from_null")]
    pub grad_norm: f64,
    /// Fraction of tokens on the clipped side of PPO's policy loss, mean over steps; 0 for the other losses.
    pub clip_fraction: f64,
    /// Fraction of tokens on the clipped side of PPO's value loss, mean over steps; 0 for the other losses.
    pub value_clip_fraction: f64,
    /// KL of the policy before the batch to the initial model, over the whole vocabulary at each token, summed over a
    /// response, mean over responses. Exact at the batch's states; the policy's own KL only where the policy sampled
    /// the batch.
    pub kl_exact_per_response: Nats,
    /// The same for the policy after the batch, over a few of its responses. None if it was not measured.
    pub candidate_kl_per_response: Option<Nats>,
    /// KL of the policy after the batch to the policy before it, measured the same way.
    pub kl_step: Option<Nats>,
    /// Learning rate of the policy's steps: the setting, or less where earlier batches moved too fast.
    pub lr: f64,
    /// Why the policy's steps ended before the batch did; none if they did not.
    pub stopped: Option<String>,
    /// Baseline of the rewards: their running mean, this batch included.
    #[serde(deserialize_with = "nan_from_null")]
    pub baseline: f64,
    /// Weight given to the critic beyond that baseline, in [0, 1]: the share of the variance that it had explained.
    pub critic_trust: f64,
    /// Entropy of the policy before the batch, mean over response tokens, at the sampling temperature.
    pub entropy: Nats,
    /// Root of the mean squared distance of the critic's values from the returns before the batch, in scaled rewards.
    #[serde(deserialize_with = "nan_from_null")]
    pub value_error: f64,
    /// Mean distance between the server's log-probability of a token and the trainer's, over the samples whose server's
    /// log-probabilities are known; none if there are none.
    pub serve_train_gap: Option<Nats>,
    /// Fraction of the returns' variance that the critic explained before the batch.
    #[serde(deserialize_with = "nan_from_null")]
    pub explained_variance: f64,
    /// Optimizer steps taken.
    pub steps: usize,
    /// Optimizer steps dropped because a loss or gradient was not finite.
    pub dropped_steps: usize,
    /// Wall time of the batch, in seconds.
    #[serde(deserialize_with = "nan_from_null")]
    pub seconds: f64,
}

/// JSON has no NaN: a measurement that could not be made is written as null, and must be read back.
fn nan_from_null<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// A chat message, as in the OpenAI API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or another role the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A prompt as its file gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PromptText {
    /// Goes through the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Goes in as it is.
    Text(String),
}
