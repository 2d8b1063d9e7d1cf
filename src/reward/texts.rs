//! Converts tokens of the base to the texts that a classifier reads. Never scores one.

use std::sync::Arc;

use crate::llama::{Model, template_of};
use crate::types::{ChatMessage, TokenId};

/// Removes what the base's chat template put around people's texts: classifiers were trained on questions without it.
pub struct Texts {
    model: Arc<Model>,
    /// Text before and after a conversation, the longest first.
    frames: Vec<(String, String)>,
    /// Text between its turns.
    between: Vec<String>,
}

/// Texts that occur in no template and that no template changes.
const MARKS: [&str; 3] = ["0first0mark0", "0second0mark0", "0third0mark0"];
const TURN: &str = "\n\n";

impl Texts {
    /// Derives the frames from the model's template; without one, texts are unchanged.
    pub fn new(model: Arc<Model>) -> Self {
        let rendered = |roles: &[&str]| -> Option<Vec<String>> {
            let message = |(role, mark): (&&str, &&str)| ChatMessage { role: (*role).into(), content: (*mark).into() };
            let messages: Vec<ChatMessage> = roles.iter().zip(&MARKS).map(message).collect();
            let mut rest = template_of(&model).ok()?.render(&messages[..].into()).ok()?.text;
            // Tokens don't tell whether the template or the tokenizer added it.
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

    /// The question, its turns separated by an empty line.
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

    /// The answer, without the end of turn.
    pub fn answer(&self, response: &[TokenId]) -> String {
        self.model.text(response, false)
    }
}
