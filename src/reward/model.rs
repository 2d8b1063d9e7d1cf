//! A reward model of either kind, chosen by its path: a folder is a classifier, a file our adapter. Never learns.

use std::path::Path;
use std::sync::Arc;

use super::adapter::RewardAdapter;
use super::classifier::Classifier;
use super::pairs::Pair;
use super::report::Report;
use super::texts::Texts;
use crate::error::Result;
use crate::llama::Model;
use crate::policy::Decoder;
use crate::types::TokenId;

/// Scores answers. Cheap to clone; clones share the weights.
#[derive(Clone)]
pub enum RewardModel {
    /// A file: an adapter and a head on the base, as `apad reward train` writes it.
    Adapter(Box<RewardAdapter>),
    /// A folder: a sequence classifier that reads texts.
    Classifier {
        /// The classifier.
        classifier: Arc<Classifier>,
        /// Turns tokens of the base into the texts it reads.
        texts: Arc<Texts>,
    },
}

impl RewardModel {
    /// Reads the reward model at `path`. `model` and `decoder` are the base whose answers it scores.
    ///
    /// # Errors
    /// As [`RewardAdapter::open`] for a file, [`Classifier::open`] for a folder.
    pub fn open(decoder: &Arc<Decoder>, model: &Arc<Model>, path: &Path) -> Result<Self> {
        if path.is_dir() {
            let classifier = Arc::new(Classifier::open(path, decoder.device())?);
            return Ok(Self::Classifier { classifier, texts: Arc::new(Texts::new(model.clone())) });
        }
        Ok(Self::Adapter(Box::new(RewardAdapter::open(decoder.clone(), path)?)))
    }

    /// The score of each answer to its prompt (template applied), both as tokens of the base. Higher is better; only
    /// differences between answers are meaningful. A score may be NaN or infinite if weights are damaged, and must be
    /// ignored then.
    ///
    /// # Errors
    /// `Arg` if prompt and answer have no token, or one outside the vocabulary; `Train` if nothing can be computed.
    pub fn score<P: AsRef<[TokenId]>, A: AsRef<[TokenId]>>(&self, answers: &[(P, A)]) -> Result<Vec<f32>> {
        match self {
            Self::Adapter(adapter) => adapter.score(answers),
            Self::Classifier { classifier, texts } => {
                let text = |(prompt, answer): &(P, A)| (texts.question(prompt.as_ref()), texts.answer(answer.as_ref()));
                let read: Vec<(String, String)> = answers.iter().map(text).collect();
                let read: Vec<(&str, &str)> = read.iter().map(|(q, a)| (q.as_str(), a.as_str())).collect();
                classifier.score(&read)
            }
        }
    }

    /// How well its scores rank the answers of pairs.
    ///
    /// # Errors
    /// As [`RewardModel::score`].
    pub fn report(&self, pairs: &[Pair]) -> Result<Report> {
        let of = |answer: fn(&Pair) -> &Vec<TokenId>| {
            self.score(&pairs.iter().map(|pair| (&pair.prompt, answer(pair))).collect::<Vec<_>>())
        };
        match self {
            Self::Adapter(adapter) => adapter.report(pairs),
            Self::Classifier { .. } => Ok(Report::new(&of(|pair| &pair.chosen)?, &of(|pair| &pair.rejected)?)),
        }
    }
}
