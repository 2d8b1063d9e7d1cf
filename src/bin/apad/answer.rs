//! An answer as the daemon sends it, whole or piece by piece. Asks nothing.

use anyhow::{Context, Result, bail};
use apa::types::PolicyVersion;
use futures_util::StreamExt;
use reqwest::Response;
use serde::Deserialize;

/// Longest line of a stream, in bytes; the daemon's are far shorter.
const LINE_LIMIT: usize = 1 << 20;

/// Why an answer ended that its client stopped.
pub const STOPPED: &str = "stopped";

/// A finished answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Its id, for feedback.
    pub id: String,
    /// Its text.
    pub text: String,
    /// What was thought before it.
    pub thought: String,
    /// The version that generated it.
    pub policy_version: PolicyVersion,
    /// `stop` or `length`.
    pub finish_reason: String,
    /// Its tokens.
    pub usage: Usage,
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, template applied.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
}

impl Answer {
    /// Adds a piece of a stream; what was thought is shown before the text.
    pub fn take(&mut self, chunk: Completion, on_text: &mut impl FnMut(&str)) {
        self.id = chunk.id;
        self.policy_version = chunk.policy_version.unwrap_or(self.policy_version);
        self.usage = chunk.usage.unwrap_or(self.usage);
        let Some(choice) = chunk.choices.into_iter().next() else { return };
        let said = choice.delta.unwrap_or_default();
        if let Some(thought) = said.reasoning_content.filter(|t| !t.is_empty()) {
            on_text(&thought);
            self.thought.push_str(&thought);
        }
        if let Some(text) = said.content.filter(|t| !t.is_empty()) {
            if self.text.is_empty() && !self.thought.is_empty() {
                on_text("\n\n");
            }
            on_text(&text);
            self.text.push_str(&text);
        }
        self.finish_reason = choice.finish_reason.unwrap_or_default();
    }
}

/// Calls `line` for each line of a response as it comes, without its end, until it returns false.
pub async fn each_line(response: Response, mut line: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
    let mut bytes = response.bytes_stream();
    let mut pending = Vec::new();
    while let Some(chunk) = bytes.next().await {
        pending.extend_from_slice(&chunk.context("the stream broke off")?);
        while let Some(end) = pending.iter().position(|&b| b == b'\n') {
            let whole: Vec<u8> = pending.drain(..=end).collect();
            if !line(whole.trim_ascii())? {
                return Ok(());
            }
        }
        if pending.len() > LINE_LIMIT {
            bail!("the stream has a line of over {LINE_LIMIT} bytes");
        }
    }
    Ok(())
}

/// An answer in OpenAI's form.
#[derive(Deserialize)]
pub struct Completion {
    /// Its id.
    pub id: String,
    /// The version that generated it.
    pub policy_version: Option<PolicyVersion>,
    /// Its choices.
    pub choices: Vec<Choice>,
    /// Its tokens.
    pub usage: Option<Usage>,
}

/// One of its choices.
#[derive(Deserialize)]
pub struct Choice {
    /// All of it.
    pub message: Option<Said>,
    /// A piece of it.
    pub delta: Option<Said>,
    /// Why it ended.
    pub finish_reason: Option<String>,
}

/// The text of a choice.
#[derive(Default, Deserialize)]
pub struct Said {
    /// The text.
    pub content: Option<String>,
    /// What was thought before it.
    pub reasoning_content: Option<String>,
}
