//! Preference pairs as tokens, and the split into trained and held-back ones. Never reads a weight.

use sha2::{Digest, Sha256};

use super::formats::{Judged, Judgements, Refused};
use crate::error::{Error, Result};
use crate::llama::{Model, PromptTokens};
use crate::types::{PromptText, TokenId};

/// A preference pair in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Its line in the file, from 1; 0 if it comes from no file.
    pub line: usize,
    /// The prompt of both answers, chat template applied.
    pub prompt: Vec<TokenId>,
    /// The better answer, with the end-of-turn token.
    pub chosen: Vec<TokenId>,
    /// The worse answer.
    pub rejected: Vec<TokenId>,
}

impl Pair {
    /// The tokens of one half: prompt and answer.
    pub(super) fn whole(&self, answer: &[TokenId]) -> Vec<TokenId> {
        self.prompt.iter().chain(answer).copied().collect()
    }

    /// Tokens of both halves.
    pub fn tokens(&self) -> usize {
        2 * self.prompt.len() + self.chosen.len() + self.rejected.len()
    }
}

/// Tokenizes pairs.
pub struct Tokenizer<'a> {
    model: &'a Model,
    prompts: PromptTokens<'a>,
    /// Longest prompt with answer, in tokens.
    most: usize,
}

impl<'a> Tokenizer<'a> {
    /// A tokenizer for this model; `most` is the longest prompt with answer, in tokens.
    pub fn new(model: &'a Model, most: usize) -> Self {
        let trained = match model.n_ctx_train() as usize {
            0 => most,
            trained => trained,
        };
        Self { model, prompts: PromptTokens::new(model), most: most.min(trained) }
    }

    /// Tokenizes a prompt: conversations with the template, text as it is.
    ///
    /// # Errors
    /// `Arg` if it leaves no room for an answer or can't be tokenized, `Unsupported` for a conversation without a
    /// template.
    pub fn prompt(&self, prompt: &PromptText) -> Result<Vec<TokenId>> {
        let tokens = self.prompts.of(prompt)?;
        // At least one token of the answer, and its end.
        if tokens.is_empty() || tokens.len() + 2 > self.most {
            let (found, most) = (tokens.len(), self.most);
            return Err(Error::arg(format!(
                "the prompt has {found} tokens and leaves no room for an answer in {most}"
            )));
        }
        Ok(tokens)
    }

    /// Tokenizes an answer with its end-of-turn token, truncated to fit after `prompt` tokens.
    ///
    /// # Errors
    /// `Arg` if it has no token.
    pub fn answer(&self, text: &str, prompt: usize) -> Result<Vec<TokenId>> {
        let mut tokens = self.model.tokenize(text, false, false)?;
        if tokens.is_empty() {
            return Err(Error::arg("the answer has no token"));
        }
        tokens.extend(self.model.turn_end());
        tokens.truncate(self.most.saturating_sub(prompt).max(1));
        Ok(tokens)
    }

    /// Tokenizes both answers of a pair, to follow `prompt` tokens.
    ///
    /// # Errors
    /// `Arg` if one is empty, if both would have to be truncated, or if their tokens are equal.
    pub fn answers(&self, chosen: &str, rejected: &str, prompt: usize) -> Result<[Vec<TokenId>; 2]> {
        let (chosen, rejected) = (self.answer(chosen, prompt)?, self.answer(rejected, prompt)?);
        let room = self.most.saturating_sub(prompt);
        let cut = |answer: &[TokenId]| answer.len() == room && answer.last().copied() != self.model.turn_end();
        if cut(&chosen) && cut(&rejected) {
            let most = self.most;
            return Err(Error::arg(format!("both answers are longer than {most} tokens with their prompt")));
        }
        if chosen == rejected {
            return Err(Error::arg("both answers are the same tokens"));
        }
        Ok([chosen, rejected])
    }

    fn pair(&self, line: usize, prompt: &PromptText, chosen: &str, rejected: &str) -> Result<Pair> {
        let prompt = self.prompt(prompt)?;
        let [chosen, rejected] = self.answers(chosen, rejected, prompt.len())?;
        Ok(Pair { line, prompt, chosen, rejected })
    }

    /// The pairs of a file. Ratings in it are ignored; unusable pairs are added to the refused lines.
    pub fn pairs(&self, file: Judgements) -> (Vec<Pair>, Vec<Refused>) {
        let (mut pairs, mut refused) = (Vec::new(), file.refused);
        for entry in file.entries {
            let Judged::Pair { prompt, chosen, rejected } = entry.judged else {
                refused.push(Refused { line: entry.line, reason: "a rating, expected a pair".into() });
                continue;
            };
            match self.pair(entry.line, &prompt, &chosen, &rejected) {
                Ok(pair) => pairs.push(pair),
                Err(error) => refused.push(Refused { line: entry.line, reason: error.message().to_owned() }),
            }
        }
        refused.sort_by_key(|r| r.line);
        (pairs, refused)
    }
}

/// Splits pairs into those to train on and those held back, about `share` of them.
///
/// The side of a pair depends only on its prompt and the seed, so pairs with one prompt stay together, and adding pairs
/// moves none.
pub fn split(pairs: Vec<Pair>, share: f64, seed: u64) -> (Vec<Pair>, Vec<Pair>) {
    let held_back = |pair: &Pair| {
        let mut sum = Sha256::new();
        sum.update(seed.to_le_bytes());
        pair.prompt.iter().for_each(|token| sum.update(token.to_le_bytes()));
        let mut first = [0; 8];
        first.iter_mut().zip(sum.finalize()).for_each(|(to, from)| *to = from);
        (u64::from_be_bytes(first) as f64) < share * u64::MAX as f64
    };
    let (held, train) = pairs.into_iter().partition(held_back);
    (train, held)
}
