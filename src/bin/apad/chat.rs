//! `apad chat`: a conversation in the terminal, with ratings of its answers.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result, bail};
use apa::types::ChatMessage;
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::{Answer, ChatParams, Client, Daemon};

/// Commands that a line may hold instead of a question.
const COMMANDS: &str = "\
+ or -          the last answer was good, or not
/rate NUMBER    how good, from -1 to 1
/fix TEXT       the answer as it should have been; the conversation goes on from it
/again          another answer to the last question (and says `regenerated` of the first)
/better         the last answer is better than the one before it; /worse if not
/signal NAME    a named signal, like copied
/note TEXT      a comment
/new            starts over";

/// Talk to a running daemon; `+` or `-` rates the last answer
#[derive(Args)]
#[command(after_help = format!("\
Example:
  apad chat --user ann
  > Name a bird.
  A robin.
  > +
  > /fix A robin, for one.

Lines that are no questions:
{COMMANDS}
An empty line or Ctrl-D ends."))]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Instruction for the whole conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 is greedy
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Name recorded with answers and ratings
    #[arg(long, value_name = "ID")]
    user: Option<String>,
}

pub async fn run(options: Options) -> Result<()> {
    let client = options.daemon.client()?;
    let status = client.status().await?;
    let params = ChatParams {
        max_tokens: options.max_tokens,
        temperature: options.temperature,
        user: options.user,
        ..ChatParams::default()
    };
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        println!("{}, policy version {}", status.model, status.policy_version);
        println!("+ or - rates the last answer, /help tells what else there is, an empty line or Ctrl-D ends");
    }
    let mut lines = lines();
    let opening: Vec<ChatMessage> = options.system.map(|text| message("system", text)).into_iter().collect();
    let mut talk = Talk { client, params, messages: opening.clone(), opening, last: None, other: None };
    loop {
        if interactive {
            print!("> ");
            std::io::stdout().flush()?;
        }
        let Some(line) = lines.recv().await else { return Ok(()) };
        let line = line?;
        match line.trim() {
            "" if interactive => return Ok(()),
            "" => continue,
            // An error in one line must not end the conversation.
            line => match talk.hear(line).await {
                Err(e) if interactive => eprintln!("{e:#}"),
                outcome => outcome?,
            },
        }
    }
}

/// A conversation under way.
struct Talk {
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
    async fn hear(&mut self, line: &str) -> Result<()> {
        let (word, rest) = line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim()));
        match (word, rest) {
            ("+", "") => self.rate(1.0).await,
            ("-", "") => self.rate(-1.0).await,
            ("/rate", number) => {
                self.rate(number.parse().with_context(|| format!("{number:?} is no number, expected /rate -1 to 1"))?)
                    .await
            }
            ("/fix" | "/note" | "/signal", "") => bail!("{word} needs some words"),
            ("/fix", text) => {
                self.say("correction", text.into(), "corrected").await?;
                if let Some(said) = self.messages.last_mut() {
                    said.content = text.to_owned();
                }
                Ok(())
            }
            ("/note", text) => self.say("comment", text.into(), "noted").await,
            ("/signal", name) => self.say("signal", name.into(), "noted").await,
            ("/again", "") => self.again().await,
            ("/better" | "/worse", "") => self.prefer(word == "/better").await,
            ("/new", "") => {
                self.messages.clone_from(&self.opening);
                (self.last, self.other) = (None, None);
                Ok(())
            }
            ("/help", "") => {
                println!("{COMMANDS}");
                Ok(())
            }
            _ if word.starts_with('/') => bail!("there is no {line:?} here, /help tells what there is"),
            _ => self.ask(line).await,
        }
    }

    async fn ask(&mut self, question: &str) -> Result<()> {
        self.messages.push(message("user", question.to_owned()));
        match self.answer().await {
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
    async fn answer(&mut self) -> Result<Answer> {
        let on_text = |text: &str| {
            print!("{text}");
            let _ = std::io::stdout().flush();
        };
        let answer = self.client.chat_stream(&self.messages, &self.params, on_text).await;
        println!();
        let answer = answer?;
        self.messages.push(message("assistant", answer.text.clone()));
        Ok(answer)
    }

    async fn again(&mut self) -> Result<()> {
        self.say("signal", "regenerated".into(), "once more").await?;
        let before = self.messages.pop();
        match self.answer().await {
            Ok(answer) => {
                self.other = self.last.replace(answer);
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

    /// Sends one piece of feedback on the last answer.
    async fn say(&self, key: &str, value: Value, done: &str) -> Result<()> {
        let answer = self.last.as_ref().context("no answer yet to say that of")?;
        let receipt =
            self.client.say(json!({"generation_id": answer.id, key: value, "user": self.params.user})).await?;
        let trainer = self.client.trainer().await?;
        let again = if receipt.replaces_earlier { ", replaces what you said before" } else { "" };
        let unused = receipt.left_out.map(|why| format!(", doesn't count: {why}")).unwrap_or_default();
        println!("{done}{again}{unused}; {} of {} ratings for the next step", trainer.pending_ratings, trainer.batch);
        Ok(())
    }

    async fn prefer(&self, better: bool) -> Result<()> {
        let (Some(last), Some(other)) = (&self.last, &self.other) else {
            bail!("there are no two answers to one question, /again makes another")
        };
        let (chosen, rejected) = if better { (last, other) } else { (other, last) };
        self.client.prefer(&chosen.id, &rejected.id, self.params.user.as_deref()).await?;
        println!("preferred");
        Ok(())
    }
}

fn message(role: &str, content: String) -> ChatMessage {
    ChatMessage { role: role.into(), content }
}

/// Lines of stdin, read on a thread of their own: a terminal can't be waited for asynchronously.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
