//! The bodies of answers as OpenAPI describes them: what clients get. The engine's own records describe themselves.

use serde::Serialize;
use utoipa::ToSchema;

use crate::config::Promotion;
use crate::engine::{Adopted, Alert, AsideVersion, UnlearnPlan, UnlearnReceipt, VersionFigures};
use crate::ledger::{Forgotten, LeftOut, ReviewEntry, ReviewVerdict};
use crate::types::{GenerationId, PolicyVersion, Sampling, StoredVerdict, TokenId, VersionInfo};

macro_rules! lists {
    ($($name:ident: $one:ident,)*) => {
        $(
            #[derive(Serialize, ToSchema)]
            pub(super) struct $name {
                /// `list`.
                object: &'static str,
                data: Vec<$one>,
            }

            impl $name {
                pub(super) fn of(data: Vec<$one>) -> Self {
                    Self { object: "list", data }
                }
            }
        )*
    };
}

lists! {
    Models: ModelCard,
    Versions: VersionInfo,
    Verdicts: StoredVerdict,
    Aside: AsideVersion,
    AdoptedVersions: Adopted,
    Figures: VersionFigures,
}

macro_rules! answers {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            #[derive(Serialize, ToSchema)]
            $(#[$meta])*
            pub(super) struct $name { $($(#[$field_meta])* pub(super) $field: $type,)* }
        )*
    };
}

answers! {
    Tokens {
        tokens: Vec<TokenId>,
    }

    Text {
        content: String,
    }

    PromptText {
        /// The prompt, as a model reads it.
        prompt: String,
    }

    InputTokens {
        input_tokens: usize,
    }

    /// What serves now.
    Serving {
        policy_version: PolicyVersion,
    }

    PreferenceReceipt {
        /// Row number in the ledger; grows with time.
        preference_id: u64,
    }

    /// With `dry_run`.
    UnlearnCost {
        /// What it takes; null if no version learned from the user.
        unlearning: Option<UnlearnPlan>,
    }

    Reviewed {
        user: String,
        verdict: ReviewVerdict,
    }

    Reviews {
        /// `list`.
        object: &'static str,
        /// Users whose ratings wait for a decision.
        data: Vec<ReviewEntry>,
        /// Feedback that can't be used, the newest first.
        left_out: Vec<LeftOut>,
    }

    Health {
        /// `ok`, `draining` or `closed`.
        status: &'static str,
        /// `ready`, `draining` or `closed`.
        state: &'static str,
        model: String,
        policy_version: PolicyVersion,
        /// Conditions that need attention; serving goes on where it can.
        alerts: Vec<Alert>,
        /// Versions that wait for a person's decision.
        proposals: Vec<PolicyVersion>,
    }

    ModelCard {
        id: String,
        /// `model`.
        object: &'static str,
        /// Seconds since the Unix epoch.
        created: u64,
        owned_by: &'static str,
        policy_version: PolicyVersion,
        /// Most tokens of a prompt and its answer.
        context_length: u32,
    }

    Properties {
        model_alias: String,
        model: String,
        chat_template: Option<String>,
        /// Answers that are decoded at once.
        total_slots: u32,
        default_generation_settings: DefaultSettings,
        learning: Learning,
        build_info: &'static str,
    }

    DefaultSettings {
        /// Most tokens of a prompt and its answer.
        n_ctx: u32,
        params: DefaultSampling,
    }

    /// What requests that say nothing else are sampled with.
    DefaultSampling {
        #[serde(flatten)]
        sampling: Sampling,
        /// Most tokens of an answer.
        n_predict: u32,
    }

    /// What feedback does.
    Learning {
        /// Whether there is a trainer.
        enabled: bool,
        /// Ratings that start a step.
        batch: u32,
        /// Nats a response that training may move the policy in all.
        kl_budget: f64,
        /// The reward of a correction; 0 if corrections don't teach the policy.
        correction: f64,
        /// New preference pairs that start the learning of a reward model; 0 is never.
        pairs: u32,
        /// Seconds that feedback waits before it is used.
        quarantine: u32,
        /// Whether a reward model judges answers, too.
        judged_by_model: bool,
        /// How a candidate comes to serve (`gate.mode`).
        #[schema(value_type = String)]
        mode: Promotion,
    }

    Embeddings {
        /// `list`.
        object: &'static str,
        data: Vec<Embedding>,
        model: String,
        usage: InputUsage,
    }

    Embedding {
        /// `embedding`.
        object: &'static str,
        /// Its place in the input.
        index: usize,
        /// Numbers, or with `encoding_format` `base64` their little-endian bytes as text.
        embedding: Row,
    }

    InputUsage {
        prompt_tokens: usize,
        total_tokens: usize,
    }

    Scores {
        /// `list`.
        object: &'static str,
        data: Vec<Scored>,
        model: String,
        usage: InputUsage,
    }

    Scored {
        /// `score`.
        object: &'static str,
        /// Its place in `completions`.
        index: usize,
        score: f32,
    }

    Ranking {
        /// `list`.
        object: &'static str,
        /// The best one first.
        results: Vec<Ranked>,
        model: String,
        usage: InputUsage,
    }

    Ranked {
        /// Its place in `documents`.
        index: usize,
        relevance_score: f32,
        /// With `return_documents`.
        #[serde(skip_serializing_if = "Option::is_none")]
        document: Option<Document>,
    }

    Document {
        text: String,
    }

    Dropped {
        id: GenerationId,
        /// `response`.
        object: &'static str,
        deleted: bool,
    }
}

/// An embedding, as it was asked for.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Row {
    Numbers(Vec<f32>),
    Base64(String),
}

/// What was forgotten; with `unlearn` what is replaced, too; with `dry_run` only what that takes.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ForgetAnswer {
    Forgotten(Forgotten),
    Unlearned(UnlearnReceipt),
    Cost(UnlearnCost),
}
