//! A reward model of either kind, by its path: a folder is somebody's classifier, a file our adapter. Never learns.

use std::path::Path;
use std::sync::Arc;

use super::{Classifier, Pair, Report, Scorer};
use crate::error::Result;
use crate::llama::{Model, template_of};
use crate::policy::Decoder;
use crate::types::{ChatMessage, TokenId};

/// What grades answers. Cheap to clone; clones share the weights.
#[derive(Clone)]
pub enum Grader {
    /// A file: an adapter and a head on the base, as `apad reward train` writes it.
    Adapter(Box<Scorer>),
    /// A folder: a sequence classifier that reads texts.
    Classifier {
        /// It.
        classifier: Arc<Classifier>,
        /// From tokens of the base to what it reads.
        texts: Arc<Texts>,
    },
}

impl Grader {
    /// Reads the reward model at `path`. `model` and `decoder` are of the base whose answers it grades.
    ///
    /// # Errors
    /// As [`Scorer::open`] for a file, [`Classifier::open`] for a folder.
    pub fn open(decoder: &Arc<Decoder>, model: &Arc<Model>, path: &Path) -> Result<Self> {
        if path.is_dir() {
            let classifier = Arc::new(Classifier::open(path, decoder.device())?);
            return Ok(Self::Classifier { classifier, texts: Arc::new(Texts::new(model.clone())) });
        }
        Ok(Self::Adapter(Box::new(Scorer::open(decoder.clone(), path)?)))
    }

    /// The score of each answer to its prompt (template applied), as tokens of the base. Higher is better; only
    /// differences between answers mean something. A score may be NaN or infinite where weights are damaged: it judges
    /// nothing.
    ///
    /// # Errors
    /// `Arg` if prompt and answer have no token, or one outside the vocabulary; `Train` if nothing can be computed.
    pub fn score<P: AsRef<[TokenId]>, A: AsRef<[TokenId]>>(&self, answers: &[(P, A)]) -> Result<Vec<f32>> {
        match self {
            Self::Adapter(scorer) => scorer.score(answers),
            Self::Classifier { classifier, texts } => {
                let text = |(prompt, answer): &(P, A)| (texts.question(prompt.as_ref()), texts.answer(answer.as_ref()));
                let read: Vec<(String, String)> = answers.iter().map(text).collect();
                let read: Vec<(&str, &str)> = read.iter().map(|(q, a)| (q.as_str(), a.as_str())).collect();
                classifier.score(&read)
            }
        }
    }

    /// Scores pairs and judges the scores.
    ///
    /// # Errors
    /// As [`Grader::score`].
    pub fn judge(&self, pairs: &[Pair]) -> Result<Report> {
        let of = |answer: fn(&Pair) -> &Vec<TokenId>| {
            self.score(&pairs.iter().map(|pair| (&pair.prompt, answer(pair))).collect::<Vec<_>>())
        };
        match self {
            Self::Adapter(scorer) => scorer.judge(pairs),
            Self::Classifier { .. } => Ok(Report::new(&of(|pair| &pair.chosen)?, &of(|pair| &pair.rejected)?)),
        }
    }
}

/// Takes off what the base's chat template put around what people said: a classifier was taught questions without it.
pub struct Texts {
    model: Arc<Model>,
    /// What stands before a conversation and behind it, longest first.
    frames: Vec<(String, String)>,
    /// What stands between its turns.
    between: Vec<String>,
}

/// What no template has, and no template changes.
const MARKS: [&str; 3] = ["0first0mark0", "0second0mark0", "0third0mark0"];
const TURN: &str = "\n\n";

impl Texts {
    /// Learns from the template that the model carries; without one, texts stay as they are.
    pub fn new(model: Arc<Model>) -> Self {
        let rendered = |roles: &[&str]| -> Option<Vec<String>> {
            let message = |(role, mark): (&&str, &&str)| ChatMessage { role: (*role).into(), content: (*mark).into() };
            let messages: Vec<ChatMessage> = roles.iter().zip(&MARKS).map(message).collect();
            let mut rest = template_of(&model).ok()?.render(&messages).ok()?;
            // Tokens don't say whether the template or the tokenizer put it there.
            if let Some(bos) = model.bos().map(|bos| model.text(&[bos], true)) {
                rest = rest.strip_prefix(bos.as_str()).map(str::to_owned).unwrap_or(rest);
            }
            let mut parts = Vec::new();
            for message in &messages {
                let (before, after) = rest.split_once(message.content.as_str())?;
                parts.push(before.to_owned());
                rest = after.to_owned();
            }
            parts.push(rest);
            Some(parts)
        };
        let (mut frames, mut between) = (Vec::new(), Vec::new());
        for roles in [&["user"][..], &["system", "user"], &["user", "assistant", "user"]] {
            let Some(mut parts) = rendered(roles) else { continue };
            if let (Some(after), false) = (parts.pop(), parts.is_empty()) {
                frames.push((parts.remove(0), after));
                between.extend(parts);
            }
        }
        frames.sort_by_key(|(before, _)| std::cmp::Reverse(before.len()));
        frames.dedup();
        between.sort_by_key(|text| std::cmp::Reverse(text.len()));
        between.retain(|text| !text.trim().is_empty());
        Self { model, frames, between }
    }

    /// What was asked, turns apart by an empty line.
    pub fn question(&self, prompt: &[TokenId]) -> String {
        let bos = self.model.bos();
        let bare = prompt.strip_prefix(bos.as_slice()).filter(|_| bos.is_some()).unwrap_or(prompt);
        let text = self.model.text(bare, true);
        let within =
            |(before, after): &(String, String)| text.strip_prefix(before.as_str())?.strip_suffix(after.as_str());
        match self.frames.iter().find_map(within) {
            Some(said) => {
                self.between.iter().fold(said.to_owned(), |said, between| said.replace(between.as_str(), TURN))
            }
            None => self.model.text(bare, false),
        }
    }

    /// What was answered, without what ends a turn.
    pub fn answer(&self, response: &[TokenId]) -> String {
        self.model.text(response, false)
    }
}
