//! Imports feedback from lines of files, and exports it to them. Never decides what counts.

use std::collections::VecDeque;

use crossbeam_channel::Receiver;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::ids::GenerationKind;
use crate::ledger::{Exported, ImportedAnswer, Judgement, Ledger, PairAnswer};
use crate::llama::Model;
use crate::reward::{Entry, Judged, Refused, Tokenizer};
use crate::system::unix_millis;
use crate::types::*;

/// Longest imported prompt with answer, in tokens.
const MOST_TOKENS: usize = 1 << 16;
/// Lines that are being recorded at a time: those that wait are committed together.
const UNDER_WAY: usize = 512;
/// The user of imported feedback if neither the file nor the caller names one.
const IMPORTER: &str = "import";

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Ratings that were recorded.
    pub ratings: usize,
    /// Preferences that were recorded.
    pub preferences: usize,
    /// Corrections, signals and comments that were recorded.
    #[serde(default)]
    pub others: usize,
    /// Lines that were already on record.
    pub known: usize,
    /// Lines that could not be used.
    pub refused: Vec<Refused>,
}

impl Imported {
    /// Whether no line could be used.
    pub fn nothing(&self) -> bool {
        self.ratings + self.preferences + self.others + self.known == 0
    }
}

/// Imports lines: each answer becomes a generation of the initial model, with the judgement as feedback on it. Lines
/// imported before are not imported again: those of our own exports are known by their identity, so that what a user
/// said again counts again, others by what they say. Limits over time don't apply, since whoever imports decides.
///
/// # Errors
/// `Io` if the ledger can't be written, `Closed`. An unusable line is not an error.
pub fn import(ledger: &Ledger, model: &Model, entries: &[Entry], user: Option<&str>) -> Result<Imported> {
    let tokenizer = Tokenizer::new(model, MOST_TOKENS);
    let base = ledger.model_fingerprint()?;
    let mut done = Imported::default();
    let vocabulary = model.n_vocab();
    let mut under_way = VecDeque::new();
    for entry in entries {
        // A line that declares itself anonymous stays so.
        let user = entry.user.as_deref().or(user).or((!entry.anonymous).then_some(IMPORTER));
        let line = Line { ledger, tokenizer: &tokenizer, entry, user, base: base.as_deref(), vocabulary };
        under_way.push_back((entry, line.import()));
        if under_way.len() > UNDER_WAY
            && let Some((entry, begun)) = under_way.pop_front()
        {
            done.count(entry, begun)?;
        }
    }
    under_way.into_iter().try_for_each(|(entry, begun)| done.count(entry, begun))?;
    Ok(done)
}

/// A line that is being recorded: whether it is new.
type Begun = Result<Receiver<Result<bool>>>;

impl Imported {
    /// Waits for a line and counts it.
    fn count(&mut self, entry: &Entry, begun: Begun) -> Result<()> {
        let closed = |_| Error::closed("the ledger is closed");
        match begun.and_then(|outcome| outcome.recv().map_err(closed)?) {
            Ok(false) => self.known += 1,
            Ok(true) => match &entry.judged {
                Judged::Pair { .. } if !entry.correction => self.preferences += 1,
                Judged::Rated { .. } => self.ratings += 1,
                Judged::Pair { .. } | Judged::Said { .. } => self.others += 1,
            },
            Err(error) if error.code() == crate::Code::Arg || error.code() == crate::Code::Unsupported => {
                self.refused.push(Refused { line: entry.line, reason: error.message().to_owned() });
            }
            Err(error) => return Err(error.context(format!("line {}", entry.line))),
        }
        Ok(())
    }
}

struct Line<'a> {
    ledger: &'a Ledger,
    tokenizer: &'a Tokenizer<'a>,
    entry: &'a Entry,
    user: Option<&'a str>,
    base: Option<&'a str>,
    vocabulary: usize,
}

impl Line<'_> {
    /// Begins to record it.
    fn import(&self) -> Begun {
        match &self.entry.judged {
            Judged::Pair { prompt, chosen, rejected } if self.entry.correction => {
                self.said(prompt, rejected, Signal::Correction(chosen.clone()))
            }
            Judged::Pair { prompt, chosen, rejected } => self.pair(prompt, chosen, rejected),
            Judged::Rated { prompt, answer, rating } => self.said(prompt, answer, Signal::Rating(*rating)),
            Judged::Said { prompt, answer, signal } => {
                self.said(prompt, answer, signal.clone().map_or(Signal::Comment, Signal::Named))
            }
        }
    }

    fn pair(&self, prompt: &PromptText, chosen: &str, rejected: &str) -> Begun {
        let (answers, chosen, rejected) = match &self.entry.answer_ids[..] {
            [better, worse] if self.is_answer(better, chosen)? && self.is_answer(worse, rejected)? => {
                (Vec::new(), better.clone(), worse.clone())
            }
            _ => {
                let prompt = self.prompt(prompt)?;
                let [better, worse] = self.tokenizer.answers(chosen, rejected, prompt.len())?;
                let (better, worse) = (self.answer(&prompt, better, chosen), self.answer(&prompt, worse, rejected));
                let (chosen, rejected) = (better.id.clone(), worse.id.clone());
                let answers = [better, worse].into_iter().zip([0, 1]);
                let answers = answers.map(|(generation, i)| ImportedAnswer { generation, origin: self.origin(i) });
                (answers.collect(), chosen, rejected)
            }
        };
        let user = self.user.map(str::to_owned);
        self.ledger.import(answers, Judgement::Preference { chosen, rejected, user })
    }

    fn said(&self, prompt: &PromptText, answer: &str, signal: Signal) -> Begun {
        let (answers, generation_id) = match &self.entry.answer_ids[..] {
            // Exported lines refer to answers that are on record here.
            [id] if self.is_answer(id, answer)? => (Vec::new(), id.clone()),
            _ => {
                let prompt = self.prompt(prompt)?;
                let generation = self.answer(&prompt, self.tokenizer.answer(answer, prompt.len())?, answer);
                let id = generation.id.clone();
                (vec![ImportedAnswer { generation, origin: self.origin(0) }], id)
            }
        };
        let (user, comment) = (self.user.map(str::to_owned), self.entry.comment.clone());
        let said = NewFeedback { generation_id, signal, user, comment };
        self.ledger.import(answers, Judgement::Feedback(said, self.entry.identity.clone()))
    }

    /// The id that the line's answer of that number had where it was made.
    fn origin(&self, number: usize) -> Option<GenerationId> {
        let id = self.entry.answer_ids.get(number)?;
        (1..=GenerationId::MAX_BYTES).contains(&id.0.len()).then(|| id.clone())
    }

    /// Whether that answer is on record under that id.
    fn is_answer(&self, id: &GenerationId, text: &str) -> Result<bool> {
        Ok(self.ledger.generation(id)?.is_some_and(|g| g.text == text))
    }

    /// The exact tokens if the line has them for this base, else the tokens of the text.
    fn prompt(&self, prompt: &PromptText) -> Result<Vec<TokenId>> {
        match (&self.entry.prompt_tokens, &self.entry.base_sha256) {
            (Some(tokens), Some(base)) if Some(base.as_str()) == self.base => {
                if tokens.is_empty() {
                    return Err(Error::arg("prompt_tokens is empty, expected at least one token"));
                }
                match tokens.iter().find(|token| **token as usize >= self.vocabulary) {
                    None => Ok(tokens.clone()),
                    Some(token) => Err(Error::arg(format!(
                        "prompt_tokens has the token {token}, expected numbers below {}",
                        self.vocabulary
                    ))),
                }
            }
            _ => self.tokenizer.prompt(prompt),
        }
    }

    /// An answer, with an id made from its tokens and user: the same line gets the same one again.
    fn answer(&self, prompt: &[TokenId], response: Vec<TokenId>, text: &str) -> Generation {
        let mut sum = Sha256::new();
        sum.update((prompt.len() as u64).to_le_bytes());
        prompt.iter().chain(&response).for_each(|token| sum.update(token.to_le_bytes()));
        sum.update(self.user.unwrap_or_default());
        let hex: String = sum.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Generation {
            id: GenerationId(format!("{}{hex}", GenerationKind::Import.prefix())),
            policy_version: PolicyVersion::INITIAL,
            prompt: prompt.to_vec(),
            response,
            text: text.to_owned(),
            sampling: Sampling { seed: Some(0), ..Sampling::default() },
            finish: FinishReason::Stop,
            // So that forgetting the user deletes it too.
            user: self.user.map(str::to_owned),
            created: unix_millis(),
            unrecorded: false,
        }
    }
}

/// One piece of feedback as a line: TRL's fields where TRL has them (`prompt`, `completion`, `label`; `prompt`,
/// `chosen`, `rejected`), ours beside them. The prompt is the text that the model read, template applied;
/// `prompt_tokens` are exact. `feedback_identity` and the answers' ids are those that it first had, wherever it was
/// imported since.
pub fn line(model: &Model, base_sha256: &str, said: &Exported) -> Value {
    let mut line = json!({"prompt": model.text(said.prompt(), true)});
    let text = |answer: &PairAnswer| match answer {
        PairAnswer::Tokens(_, text) | PairAnswer::Text(text) => text.clone(),
    };
    match said {
        Exported::Feedback(g, f, identity) => {
            match &f.signal {
                Signal::Rating(rating) => {
                    line["completion"] = g.text.clone().into();
                    line["rating"] = (*rating).into();
                    line["label"] = (*rating > 0.0).into();
                }
                Signal::Correction(better) => {
                    line["chosen"] = better.clone().into();
                    line["rejected"] = g.text.clone().into();
                    line["correction"] = true.into();
                }
                Signal::Named(name) => {
                    line["completion"] = g.text.clone().into();
                    line["signal"] = name.clone().into();
                }
                Signal::Comment => line["completion"] = g.text.clone().into(),
            }
            line["generation_id"] = g.id.0.clone().into();
            line["policy_version"] = g.policy_version.0.into();
            line["created"] = f.created.into();
            line["user"] = f.user.clone().into();
            line["comment"] = f.comment.clone().into();
            if let Some(identity) = identity {
                line["feedback_identity"] = identity.clone().into();
            }
        }
        Exported::Preference(pair, [chosen, rejected]) => {
            line["chosen_id"] = chosen.0.clone().into();
            line["rejected_id"] = rejected.0.clone().into();
            line["chosen"] = text(&pair.chosen).into();
            line["rejected"] = text(&pair.rejected).into();
            line["user"] = pair.user.clone().into();
        }
    }
    line["prompt_tokens"] = said.prompt().into();
    line["base_sha256"] = base_sha256.into();
    line
}
