//! Our own reward models: a trained network with its manifest. Never learns.

use std::path::Path;
use std::sync::Arc;

use super::network::{Manifest, RewardNetwork};
use super::pairs::Pair;
use super::report::Report;
use crate::error::Result;
use crate::gguf::Gguf;
use crate::policy::Decoder;
use crate::types::TokenId;

/// Tokens computed at a time.
const MICRO_TOKENS: usize = 1024;

/// A trained reward model. Cheap to clone; clones share the weights.
#[derive(Clone)]
pub struct RewardAdapter {
    network: RewardNetwork,
    manifest: Manifest,
}

impl RewardAdapter {
    /// Reads the file of a reward model for this base.
    ///
    /// # Errors
    /// `Model` for a file of another kind or a damaged one, `Arg` for one of another base or with a tensor that is
    /// missing or of the wrong shape (it is named), `Unsupported` for a newer format.
    pub fn open(decoder: Arc<Decoder>, file: &Path) -> Result<Self> {
        let read = || RewardNetwork::read(&Gguf::open(file)?, decoder, &[]);
        let (network, manifest) = read().map_err(|e| e.context(format!("reward model {}", file.display())))?;
        Ok(Self { network, manifest })
    }

    /// Made from a newly trained network.
    pub fn new(network: RewardNetwork, manifest: Manifest) -> Self {
        Self { network, manifest }
    }

    pub(super) fn into_network(self) -> RewardNetwork {
        self.network
    }

    /// Writes the file that [`RewardAdapter::open`] reads, whole or not at all.
    ///
    /// # Errors
    /// `Io` if it can't be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        self.network.write(file, &self.manifest, &[], &[])
    }

    /// The metadata in its file.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The score of each answer to its prompt (template applied), both as tokens. Higher is better; only differences
    /// between answers are meaningful. Truncated answers are scored as if they ended there. A score may be NaN or
    /// infinite if weights are damaged, and must be ignored then.
    ///
    /// # Errors
    /// `Arg` if prompt and answer have no token, or one outside the vocabulary.
    pub fn score<P: AsRef<[TokenId]>, A: AsRef<[TokenId]>>(&self, answers: &[(P, A)]) -> Result<Vec<f32>> {
        let sequence = |(prompt, answer): &(P, A)| {
            let (prompt, answer) = (prompt.as_ref(), answer.as_ref());
            // In training, every answer ended with it.
            let end = self.manifest.end_token.filter(|end| answer.last() != Some(end));
            prompt.iter().chain(answer).copied().chain(end).collect::<Vec<TokenId>>()
        };
        let sequences: Vec<Vec<TokenId>> = answers.iter().map(sequence).collect();
        self.network.scores(&sequences, MICRO_TOKENS)
    }

    /// How well its scores rank the answers of pairs.
    ///
    /// # Errors
    /// As [`RewardAdapter::score`].
    pub fn report(&self, pairs: &[Pair]) -> Result<Report> {
        self.network.report(pairs, MICRO_TOKENS)
    }
}
