//! `apad chat`: a conversation in the terminal, where one key rates the last answer.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use apa::types::ChatMessage;
use clap::Args;
use tokio::sync::mpsc;

use crate::client::{Answer, ChatParams, Client, Daemon};

/// Talk to a running daemon; `+` or `-` rates the last answer
#[derive(Args)]
#[command(after_help = "\
Example:
  apad chat
  > Name a bird.
  A robin.
  > +")]
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
        println!("+ or - rates the last answer, /new starts over, an empty line or Ctrl-D ends");
    }
    let mut lines = lines();
    let opening: Vec<ChatMessage> = options.system.map(|text| message("system", text)).into_iter().collect();
    let mut talk = opening.clone();
    let mut last: Option<Answer> = None;
    loop {
        if interactive {
            print!("> ");
            std::io::stdout().flush()?;
        }
        let Some(line) = lines.recv().await else { return Ok(()) };
        let line = line?;
        // What goes wrong with one line, a rating or a question, doesn't end a conversation held by a person.
        let outcome = match line.trim() {
            "" if interactive => return Ok(()),
            "" => continue,
            "+" => rate(&client, last.as_ref(), 1.0).await,
            "-" => rate(&client, last.as_ref(), -1.0).await,
            "/new" => {
                talk.clone_from(&opening);
                last = None;
                Ok(())
            }
            question => match answer(&client, &talk, question, &params).await {
                Ok(answer) => {
                    talk.push(message("user", question.to_owned()));
                    talk.push(message("assistant", answer.text.clone()));
                    last = Some(answer);
                    Ok(())
                }
                Err(e) => Err(e),
            },
        };
        match outcome {
            Err(e) if interactive => eprintln!("{e:#}"),
            outcome => outcome?,
        }
    }
}

async fn answer(client: &Client, talk: &[ChatMessage], question: &str, params: &ChatParams) -> Result<Answer> {
    let mut messages = talk.to_vec();
    messages.push(message("user", question.to_owned()));
    let answer = client
        .chat_stream(&messages, params, |text| {
            print!("{text}");
            let _ = std::io::stdout().flush();
        })
        .await;
    println!();
    answer
}

async fn rate(client: &Client, answer: Option<&Answer>, rating: f64) -> Result<()> {
    let Some(answer) = answer else { anyhow::bail!("no answer to rate yet") };
    let receipt = client.feedback(&answer.id, rating).await?;
    let trainer = client.trainer().await?;
    let again = if receipt.replaces_earlier { ", replaces your earlier rating" } else { "" };
    println!("rated {rating:+}{again}; {} of {} ratings for the next step", trainer.pending_ratings, trainer.batch);
    Ok(())
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
