//! A conversation under way: questions, answers, and what is said of them. Reads no line itself.

use std::io::Write;

use anyhow::{Context, Result, bail};
use apa::engine::{TrainerState, TrainerStatus};
use apa::shown::shown_lines;
use apa::types::ChatMessage;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::style::dim;
use super::typed::{BYE, Typed};
use crate::answer::{Answer, STOPPED};
use crate::client::{ChatParams, Client, LearningProps};

/// Commands that a line may hold instead of a question.
pub const COMMANDS: &str = "\
+ or -          the last answer was good, or not
/rate NUMBER    how good, from -1 to 1
/fix TEXT       the answer as it should have been; the conversation goes on from it
/again          another answer to the last question (and says `regenerated` of the first)
/better         the last answer is better than the one before it; /worse if not
/signal NAME    a named signal, like copied
/note TEXT      a comment
/max NUMBER     most tokens of an answer from now on
/new            starts over
/help           this
/bye            ends, in the midst of an answer too";

/// The commands' first words, those of `COMMANDS` that begin with a slash.
pub fn words() -> Vec<String> {
    let words = COMMANDS.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(|word| word.trim_end_matches(';').to_owned()).collect()
}

/// What ends an answer early.
pub enum Stop {
    /// Nothing: nobody is at a terminal.
    Never,
    /// Ctrl-C from the beginning of the answer on, or a line that ends the talk.
    Terminal(Typed),
}

impl Stop {
    /// A line that was typed while an answer was written.
    pub fn typed(&self) -> Option<String> {
        match self {
            Stop::Never => None,
            Stop::Terminal(typed) => typed.next(),
        }
    }

    async fn wait(&self) {
        let Stop::Terminal(typed) = self else { return std::future::pending().await };
        // A listener of its own: what was pressed before is over.
        let Ok(mut pressed) = signal(SignalKind::interrupt()) else { return typed.until_bye().await };
        tokio::select! {
            _ = pressed.recv() => typed.forget(),
            () = typed.until_bye() => {}
        }
    }
}

/// Whether the conversation goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It does.
    All,
    /// It was ended.
    Bye,
}

/// A conversation under way.
pub struct Talk {
    client: Client,
    params: ChatParams,
    /// Messages that every conversation begins with.
    opening: Vec<ChatMessage>,
    messages: Vec<ChatMessage>,
    /// The answer that feedback is about.
    last: Option<Answer>,
    /// The previous answer to the same question.
    other: Option<Answer>,
}

impl Talk {
    /// Begins one, with an instruction perhaps.
    pub fn new(client: Client, params: ChatParams, system: Option<String>) -> Self {
        let opening: Vec<ChatMessage> = system.map(|text| message("system", text)).into_iter().collect();
        Self { client, params, messages: opening.clone(), opening, last: None, other: None }
    }

    /// Does what a line says: nothing for an empty one.
    pub async fn hear(&mut self, line: &str, stop: &Stop) -> Result<Heard> {
        // A backslash before the end of a line only joins it with the next one.
        let line = line.trim().replace("\\\n", "\n");
        let (word, rest) =
            line.split_once(char::is_whitespace).map_or((line.as_str(), ""), |(word, rest)| (word, rest.trim()));
        match (word, rest) {
            ("", _) => {}
            (word, "") if BYE.contains(&word) => return Ok(Heard::Bye),
            ("+", "") => self.rate(1.0).await?,
            ("-", "") => self.rate(-1.0).await?,
            ("/rate", number) => {
                self.rate(number.parse().with_context(|| format!("{number:?} is no number, expected /rate -1 to 1"))?)
                    .await?;
            }
            ("/fix" | "/note" | "/signal", "") => bail!("{word} needs some words"),
            ("/fix", text) => self.fix(text).await?,
            ("/note", text) => self.say("comment", text.into(), "noted").await?,
            ("/signal", name) => self.say("signal", name.into(), "noted").await?,
            ("/again", "") => self.again(stop).await?,
            ("/better" | "/worse", "") => self.prefer(word == "/better").await?,
            ("/max", number) => self.set_most(number)?,
            ("/new", "") => {
                self.messages.clone_from(&self.opening);
                (self.last, self.other) = (None, None);
            }
            ("/help", "") => println!("{COMMANDS}"),
            _ if word.starts_with('/') => bail!("there is no {line:?} here, /help tells what there is"),
            _ => self.ask(&line, stop).await?,
        }
        Ok(Heard::All)
    }

    fn set_most(&mut self, number: &str) -> Result<()> {
        let most: u32 = number.parse().ok().filter(|most| *most > 0).with_context(|| {
            format!("{number:?} is no number of tokens, expected /max and a whole number of 1 or more")
        })?;
        self.params.max_tokens = Some(most);
        println!("{}", dim(&format!("answers may have {most} tokens from now on")));
        Ok(())
    }

    async fn ask(&mut self, question: &str, stop: &Stop) -> Result<()> {
        self.messages.push(message("user", question.to_owned()));
        match self.answer(stop).await {
            Ok(answer) => {
                (self.last, self.other) = (Some(answer), None);
                Ok(())
            }
            Err(e) => {
                self.messages.pop();
                Err(e)
            }
        }
    }

    /// Answers the last message, and prints the answer.
    async fn answer(&mut self, stop: &Stop) -> Result<Answer> {
        let on_text = |text: &str| {
            print!("{}", shown_lines(text));
            let _ = std::io::stdout().flush();
        };
        let answer = self.client.chat_stream_until(&self.messages, &self.params, stop.wait(), on_text).await;
        let mark = match &answer {
            Ok(answer) if answer.finish_reason == STOPPED => " [stopped]".to_owned(),
            Ok(answer) if answer.finish_reason == "length" => {
                let most = answer.usage.completion_tokens;
                format!(" [cut off at {most} tokens; /max NUMBER allows more]")
            }
            _ => String::new(),
        };
        println!("{}", if mark.is_empty() { mark } else { dim(&mark) });
        let answer = answer?;
        if answer.finish_reason == STOPPED {
            self.client.until_recorded(&answer.id).await;
        }
        self.messages.push(message("assistant", answer.text.clone()));
        Ok(answer)
    }

    async fn again(&mut self, stop: &Stop) -> Result<()> {
        self.say("signal", "regenerated".into(), "once more").await?;
        let before = self.messages.pop();
        match self.answer(stop).await {
            Ok(answer) => {
                self.other = self.last.replace(answer);
                println!("{}", dim("/better says that this one is better, /worse that the one before it is"));
                Ok(())
            }
            Err(e) => {
                self.messages.extend(before);
                Err(e)
            }
        }
    }

    async fn rate(&self, rating: f64) -> Result<()> {
        self.say("rating", rating.into(), &format!("rated {rating:+}")).await
    }

    async fn fix(&mut self, text: &str) -> Result<()> {
        let learning = self.client.props().await?.learning;
        let teaches = match learning.correction > 0.0 {
            true => "corrected; the policy learns it with the next step".to_owned(),
            false => format!("corrected; {}", pair_in_words(learning.pairs)),
        };
        self.say("correction", text.into(), &teaches).await?;
        if let Some(said) = self.messages.last_mut() {
            said.content = text.to_owned();
        }
        Ok(())
    }

    /// Sends one piece of feedback on the last answer, and tells what it does.
    async fn say(&self, key: &str, value: Value, done: &str) -> Result<()> {
        let answer = self.last.as_ref().context("no answer yet to say that of")?;
        let receipt =
            self.client.say(json!({"generation_id": answer.id, key: value, "user": self.params.user})).await?;
        let again = if receipt.replaces_earlier { ", replaces what you said before" } else { "" };
        let unused = receipt.left_out.map(|why| format!(", doesn't count: {why}")).unwrap_or_default();
        // A client's key may not ask the trainer.
        let step = match self.client.trainer().await {
            Ok(trainer) => step_in_words(&trainer),
            Err(_) => learning_in_words(&self.client.props().await?.learning),
        };
        println!("{}", dim(&format!("{done}{again}{unused}; {step}")));
        Ok(())
    }

    async fn prefer(&self, better: bool) -> Result<()> {
        let (Some(last), Some(other)) = (&self.last, &self.other) else {
            bail!("there are no two answers to one question, /again makes another")
        };
        let (chosen, rejected) = if better { (last, other) } else { (other, last) };
        self.client.prefer(&chosen.id, &rejected.id, self.params.user.as_deref()).await?;
        let pairs = self.client.props().await?.learning.pairs;
        println!("{}", dim(&format!("preferred; {}", pair_in_words(pairs))));
        Ok(())
    }
}

/// What a pair does: a correction or a preference.
fn pair_in_words(pairs: u32) -> String {
    match pairs {
        0 => "kept as a pair, from which nothing learns here (reward.learn is 0)".into(),
        pairs => {
            format!(
                "kept as a pair for the reward model, which learns from {pairs} new ones; no answer changes by itself"
            )
        }
    }
}

/// When the ratings that wait teach.
fn step_in_words(trainer: &TrainerStatus) -> String {
    let TrainerStatus { pending_ratings, batch, .. } = trainer;
    match trainer.state {
        TrainerState::Off => "training is off".into(),
        TrainerState::Unsupported => "this model is served and not trained".into(),
        _ => format!("{pending_ratings} of {batch} ratings for the next step"),
    }
}

/// The same for who may not know how many are in.
fn learning_in_words(learning: &LearningProps) -> String {
    match learning.enabled {
        true => format!("the model learns whenever {} ratings are in", learning.batch),
        false => "training is off".into(),
    }
}

fn message(role: &str, content: String) -> ChatMessage {
    ChatMessage { role: role.into(), content }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_the_tab_key_completes_are_those_of_the_help() {
        let words = words();
        assert!(words.contains(&"/worse".to_owned()) && words.contains(&"/bye".to_owned()), "{words:?}");
        assert!(words.iter().all(|word| word[1..].chars().all(char::is_alphabetic)), "{words:?}");
    }
}
