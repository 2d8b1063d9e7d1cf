//! Alerts for the operator: raised once, logged, and kept until the condition is over. Decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::feed::{Hub, News, Topic};
use crate::error::Code;
use crate::lock::lock;

/// The condition. The words are stable, since alarms are set on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// Answers are given but can't be recorded: the disk is full or failing.
    NotRecorded,
    /// The database is away: answers and feedback wait on this server's disk, and are recorded once it answers.
    Spooled,
    /// The disk has too little room for another version: learning waits.
    NoRoom,
    /// Training steps fail.
    StepFails,
    /// Trained versions that the record doesn't know were moved aside.
    VersionsAside,
    /// The active version's files are damaged, so an older one serves.
    FellBack,
    /// Nothing is learned: the active version serves but can't be trained on, or what training needs is damaged.
    NotTrained,
    /// A bug stopped the trainer, which starts again; over when a step succeeds.
    TrainerPanicked,
    /// A bug stopped the thread that decodes: the engine is closed.
    SchedulerPanicked,
    /// A bug ended an answer that was held to a format, and no other; over when the next such answer is whole.
    GuidePanicked,
    /// The model's chat template can't be used: chats are refused.
    NoTemplate,
    /// A bug stopped the thread that embeds texts; over when the next one embeds a text.
    EmbedderPanicked,
}

impl AlertKind {
    /// All of them.
    pub const ALL: [AlertKind; 12] = [
        AlertKind::NotRecorded,
        AlertKind::Spooled,
        AlertKind::NoRoom,
        AlertKind::StepFails,
        AlertKind::VersionsAside,
        AlertKind::FellBack,
        AlertKind::NotTrained,
        AlertKind::TrainerPanicked,
        AlertKind::SchedulerPanicked,
        AlertKind::GuidePanicked,
        AlertKind::EmbedderPanicked,
        AlertKind::NoTemplate,
    ];

    /// The word for it in JSON, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            AlertKind::NotRecorded => "not_recorded",
            AlertKind::Spooled => "spooled",
            AlertKind::NoRoom => "no_room",
            AlertKind::StepFails => "step_fails",
            AlertKind::VersionsAside => "versions_aside",
            AlertKind::FellBack => "fell_back",
            AlertKind::NotTrained => "not_trained",
            AlertKind::TrainerPanicked => "trainer_panicked",
            AlertKind::SchedulerPanicked => "scheduler_panicked",
            AlertKind::GuidePanicked => "guide_panicked",
            AlertKind::EmbedderPanicked => "embedder_panicked",
            AlertKind::NoTemplate => "no_template",
        }
    }

    /// The class of the error that listeners are told of.
    fn code(self) -> Code {
        match self {
            AlertKind::TrainerPanicked
            | AlertKind::SchedulerPanicked
            | AlertKind::GuidePanicked
            | AlertKind::EmbedderPanicked => Code::Panic,
            AlertKind::NoTemplate => Code::Unsupported,
            _ => Code::Io,
        }
    }
}

/// A condition that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Alert {
    /// The condition.
    pub kind: AlertKind,
    /// One sentence, without paths or a user's words.
    pub message: String,
}

/// The alerts of an engine.
pub(super) struct Alerts {
    hub: Arc<Hub>,
    raised: Mutex<BTreeMap<AlertKind, String>>,
    /// Panics since the start.
    panics: Mutex<BTreeMap<AlertKind, u64>>,
}

impl Alerts {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { hub, raised: Mutex::default(), panics: Mutex::default() }
    }

    /// Raises an alert; logs and sends it if it is new.
    pub(super) fn raise(&self, kind: AlertKind, message: impl Into<String>) {
        let message = message.into();
        if lock(&self.raised).insert(kind, message.clone()).as_ref() == Some(&message) {
            return;
        }
        tracing::error!(alert = kind.as_str(), "{message}");
        self.hub.send(Topic::Learning, || News::Error { code: kind.code().as_str(), message });
    }

    /// Raises an alert of a panic, and counts it.
    pub(super) fn panicked(&self, kind: AlertKind, message: impl Into<String>) {
        *lock(&self.panics).entry(kind).or_default() += 1;
        self.raise(kind, message);
    }

    /// Panics of a kind since the start.
    pub(super) fn panics(&self, kind: AlertKind) -> u64 {
        lock(&self.panics).get(&kind).copied().unwrap_or_default()
    }

    /// Ends an alert.
    pub(super) fn clear(&self, kind: AlertKind) {
        if lock(&self.raised).remove(&kind).is_some() {
            tracing::info!(alert = kind.as_str(), "over");
        }
    }

    /// The present alerts.
    pub(super) fn list(&self) -> Vec<Alert> {
        lock(&self.raised).iter().map(|(kind, message)| Alert { kind: *kind, message: message.clone() }).collect()
    }
}
