//! Makes the ids of answers, whose prefix tells their kind. Never looks one up.

use crate::system::unix_millis;
use crate::types::GenerationId;

/// How an answer came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GenerationKind {
    /// A client asked for it, whichever version serves.
    Request,
    /// A client asked for it and named the version: what is said of it says nothing of what users get.
    Named,
    /// The engine generated it to learn from.
    Rollout,
    /// The engine generated it to judge a candidate. Never recorded and never trained on.
    Examination,
    /// Made elsewhere and handed in by the application.
    Sample,
    /// Made elsewhere and imported with a file of feedback.
    Import,
}

impl GenerationKind {
    /// Prefix of the ids of this kind.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            GenerationKind::Request => "gen-",
            GenerationKind::Named => "ver-",
            GenerationKind::Rollout => "rol-",
            GenerationKind::Examination => "exm-",
            GenerationKind::Sample => "smp-",
            GenerationKind::Import => "imp-",
        }
    }
}

impl GenerationId {
    /// Whether the answer is of that kind.
    pub(crate) fn is(&self, kind: GenerationKind) -> bool {
        self.0.starts_with(kind.prefix())
    }

    /// A new, unique id: the kind's prefix, the time, and random digits.
    pub(crate) fn new(kind: GenerationKind) -> GenerationId {
        GenerationId(format!("{}{:011x}{:016x}", kind.prefix(), unix_millis(), rand::random::<u64>()))
    }
}
