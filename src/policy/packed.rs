//! Sequences concatenated without padding. Only numbers; knows no model.

use std::ops::Range;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::types::TokenId;

/// Concatenated sequences. Tensors computed from it are [tokens, ...]; attention stays inside each sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    tokens: Vec<TokenId>,
    starts: Vec<usize>,
    positions: Vec<u32>,
}

impl Packed {
    /// Concatenates sequences. Errors if there is none or one is empty.
    pub fn new<S: AsRef<[TokenId]>>(sequences: &[S]) -> Result<Self> {
        let mut packed = Self { tokens: Vec::new(), starts: vec![0], positions: Vec::new() };
        for (index, sequence) in sequences.iter().enumerate() {
            let sequence = sequence.as_ref();
            if sequence.is_empty() {
                return Err(Error::arg(format!("sequence {index} has no tokens, expected at least one")));
            }
            packed.tokens.extend_from_slice(sequence);
            packed.positions.extend(0..sequence.len() as u32);
            packed.starts.push(packed.tokens.len());
        }
        if packed.tokens.is_empty() {
            return Err(Error::arg("there are no sequences, expected at least one"));
        }
        Ok(packed)
    }

    /// All tokens, sequence after sequence.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The start of each sequence, then the number of tokens: one entry more than there are sequences.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Each token's position in its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.starts.len() - 1
    }

    /// The range of rows of each sequence, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.starts.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// The rows that predict each sequence's tokens after its first `prompts[i]`, with those tokens.
    ///
    /// Errors if a prompt is empty (nothing predicts its first token) or fills its sequence.
    pub fn targets(&self, prompts: &[usize]) -> Result<Targets> {
        if prompts.len() != self.sequences() {
            return Err(Error::arg(format!("{} prompt lengths for {} sequences", prompts.len(), self.sequences())));
        }
        let mut targets = Targets { rows: Vec::new(), tokens: Vec::new(), starts: vec![0] };
        for (index, (range, &prompt)) in self.ranges().zip(prompts).enumerate() {
            if prompt == 0 || prompt >= range.len() {
                let length = range.len();
                return Err(Error::arg(format!(
                    "the prompt of sequence {index} has {prompt} of its {length} tokens, expected 1 to {}",
                    length - 1
                )));
            }
            let first = range.start + prompt;
            targets.rows.extend((first - 1..range.end - 1).map(|row| row as u32));
            targets.tokens.extend_from_slice(&self.tokens[first..range.end]);
            targets.starts.push(targets.rows.len());
        }
        Ok(targets)
    }
}

/// Which rows predict which tokens: one entry per response token, in sequence order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    rows: Vec<u32>,
    tokens: Vec<TokenId>,
    starts: Vec<usize>,
}

impl Targets {
    /// Rows of the hidden states that the tokens were sampled from.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The tokens they predict.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The start of each sequence's entries, then the number of entries.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Number of response tokens.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// Repeats a value per sequence, such as a temperature, for each response token.
    pub fn spread(&self, each: &[f32]) -> Result<Vec<f32>> {
        let sequences = self.starts.len() - 1;
        if each.len() != sequences {
            return Err(Error::arg(format!("{} values for {sequences} sequences", each.len())));
        }
        let lengths = self.starts.windows(2).map(|pair| pair[1] - pair[0]);
        Ok(each.iter().zip(lengths).flat_map(|(&value, n)| std::iter::repeat_n(value, n)).collect())
    }

    /// Selects these rows of hidden states: [tokens, width] to [response tokens, width].
    pub fn select(&self, hidden: &Tensor) -> Result<Tensor> {
        let rows = Tensor::new(self.rows.as_slice(), hidden.device())?;
        Ok(hidden.index_select(&rows, 0)?)
    }
}
