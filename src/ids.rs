//! Names new answers; what kind an answer is can be told from its name. Never looks one up.

use crate::system::unix_millis;
use crate::types::GenerationId;

/// How an answer came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GenerationKind {
    /// Somebody asked.
    Request,
    /// The engine asked itself, to learn from it.
    Rollout,
    /// The engine asked itself, to judge a candidate. Never on record and never trained on.
    Examination,
    /// It was made elsewhere, and handed in by the application.
    Sample,
    /// It was made elsewhere, and came in with a file of feedback.
    Import,
}

impl GenerationKind {
    /// What the names of its answers begin with.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            GenerationKind::Request => "gen-",
            GenerationKind::Rollout => "rol-",
            GenerationKind::Examination => "exm-",
            GenerationKind::Sample => "smp-",
            GenerationKind::Import => "imp-",
        }
    }
}

impl GenerationId {
    /// Whether it is of that kind.
    pub(crate) fn is(&self, kind: GenerationKind) -> bool {
        self.0.starts_with(kind.prefix())
    }

    /// A name that nobody has had: of the kind, the time, and chance.
    pub(crate) fn new(kind: GenerationKind) -> GenerationId {
        GenerationId(format!("{}{:011x}{:016x}", kind.prefix(), unix_millis(), rand::random::<u64>()))
    }
}
