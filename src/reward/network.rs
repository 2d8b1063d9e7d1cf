//! The network of a reward model: an adapter and a scalar head on the frozen base. Reads and writes its file; never
//! trains.

use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::pairs::Pair;
use super::report::Report;
use super::settings::Settings;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Writer};
use crate::policy::{Decoder, Lora, Packed, ValueHead};
use crate::types::{TokenId, UnixMillis};

const KIND: &str = "reward_model";
const MANIFEST_KEY: &str = "apa.reward.manifest";
const HEAD_PREFIX: &str = "value_head.";
/// The manifest format of this build.
const FORMAT: u32 = 1;

/// The metadata of a reward model's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of the manifest.
    pub format: u32,
    /// Version of this crate that wrote it.
    pub apa_version: String,
    /// SHA-256 of the base model's file; the reward model fits no other.
    pub base_sha256: String,
    /// When it was made.
    pub created: UnixMillis,
    /// SHA-256 of the pairs it was trained on, unpacked.
    pub pairs_sha256: String,
    /// Pairs trained on.
    pub trained_pairs: usize,
    /// Lines of the pairs that were held back.
    pub held_back: Vec<usize>,
    /// Pairs that could not be used.
    pub refused: usize,
    /// How it was trained.
    pub settings: Settings,
    /// The token that ends an answer; added to answers that lack it.
    pub end_token: Option<TokenId>,
    /// Epochs after which the kept weights were reached.
    pub epochs_done: f64,
    /// Results on the held-back pairs.
    pub validation: Report,
}

impl Manifest {
    /// The metadata before training.
    pub fn new(settings: Settings, base_sha256: &str) -> Self {
        Self {
            format: FORMAT,
            apa_version: env!("CARGO_PKG_VERSION").into(),
            base_sha256: base_sha256.to_owned(),
            created: crate::system::unix_millis(),
            pairs_sha256: String::new(),
            trained_pairs: 0,
            held_back: Vec::new(),
            refused: 0,
            settings,
            end_token: None,
            epochs_done: 0.0,
            validation: Report::default(),
        }
    }
}

/// Maps a sequence of tokens to a scalar. Cheap to clone; clones share the weights.
#[derive(Clone)]
pub struct RewardNetwork {
    pub(super) decoder: Arc<Decoder>,
    pub(super) lora: Lora,
    pub(super) head: ValueHead,
}

impl RewardNetwork {
    /// One scalar per sequence, at its last token, [sequences]. Differentiable unless the adapter is detached.
    pub(super) fn forward<S: AsRef<[TokenId]>>(&self, sequences: &[S]) -> Result<Tensor> {
        let packed = Packed::new(sequences)?;
        let last: Vec<u32> = packed.ranges().map(|range| range.end as u32 - 1).collect();
        let hidden = self.decoder.hidden(&packed, Some(&self.lora))?; // [tokens, width]
        let last = Tensor::new(last, self.decoder.device())?;
        self.head.forward(&hidden.index_select(&last, 0)?)
    }

    /// The score of each sequence, computing at most `micro_tokens` tokens at a time, but a longer sequence alone.
    pub(super) fn scores<S: AsRef<[TokenId]>>(&self, sequences: &[S], micro_tokens: usize) -> Result<Vec<f32>> {
        let model = Self { lora: self.lora.detached(), ..self.clone() };
        let mut scores = Vec::with_capacity(sequences.len());
        for range in groups(sequences.iter().map(|s| s.as_ref().len()), micro_tokens) {
            let group = sequences.get(range).unwrap_or_default();
            scores.extend(model.forward(group)?.detach().to_vec1::<f32>()?);
        }
        Ok(scores)
    }

    /// How well its scores rank the answers of pairs.
    pub(super) fn report(&self, pairs: &[Pair], micro_tokens: usize) -> Result<Report> {
        let sequences: Vec<Vec<TokenId>> =
            pairs.iter().flat_map(|p| [p.whole(&p.chosen), p.whole(&p.rejected)]).collect();
        let scores = self.scores(&sequences, micro_tokens)?;
        let (halves, _) = scores.as_chunks::<2>();
        let (chosen, rejected): (Vec<f32>, Vec<f32>) = halves.iter().map(|[c, r]| (*c, *r)).unzip();
        Ok(Report::new(&chosen, &rejected))
    }

    /// Writes the file, whole or not at all. `more` adds tensors, `values` metadata.
    pub(super) fn write(
        &self,
        path: &Path,
        manifest: &Manifest,
        more: &[(String, Tensor)],
        values: &[(&str, String)],
    ) -> Result<()> {
        let mut file = Writer::new();
        for (key, value) in values {
            file.set(key, value.as_str());
        }
        file.set("general.type", KIND);
        self.lora.add_to(&mut file)?;
        self.head.add_to(&mut file)?;
        for (name, tensor) in more {
            file.tensor(name, tensor)?;
        }
        let manifest = serde_json::to_string(manifest).map_err(|e| Error::io(e.to_string()))?;
        file.set(MANIFEST_KEY, manifest.as_str());
        file.write(path)
    }

    /// Reads the file of a reward model for this base. Tensors whose names begin with one of `beside` are ignored.
    pub(super) fn read(file: &Gguf, decoder: Arc<Decoder>, beside: &[&str]) -> Result<(Self, Manifest)> {
        match file.str("general.type")? {
            KIND => {}
            other => return Err(Error::model(format!("its general.type is {other:.40}, expected {KIND}"))),
        }
        let text = file.str(MANIFEST_KEY)?;
        let damaged = |e: serde_json::Error| Error::model(format!("its manifest is damaged: {e}"));
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        // The format first, since a newer manifest may lack our fields.
        let Format { format } = serde_json::from_str(text).map_err(damaged)?;
        if format > FORMAT {
            return Err(Error::unsupported(format!("its format is {format}, this build knows up to {FORMAT}")));
        }
        let manifest: Manifest = serde_json::from_str(text).map_err(damaged)?;
        let beside: Vec<&str> = beside.iter().copied().chain([HEAD_PREFIX]).collect();
        let lora = Lora::read_from(file, &decoder, &beside)?;
        let head = ValueHead::read_from(file, &decoder)?;
        Ok((Self { decoder, lora, head }, manifest))
    }
}

/// Ranges of consecutive items with at most `most` tokens together; a longer item is alone.
pub(super) fn groups(lengths: impl Iterator<Item = usize>, most: usize) -> Vec<std::ops::Range<usize>> {
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    let mut filled = 0usize;
    for (index, length) in lengths.enumerate() {
        match groups.last_mut() {
            Some(group) if filled.saturating_add(length) <= most => {
                group.end = index + 1;
                filled += length;
            }
            _ => {
                groups.push(index..index + 1);
                filled = length;
            }
        }
    }
    groups
}
