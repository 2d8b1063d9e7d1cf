//! `apad chat`: a conversation in the terminal, with ratings of its answers. Reads lines and hands them on.

mod news;
mod style;
mod talk;
mod terminal;
mod typed;

use std::io::IsTerminal;

use anyhow::Result;
use apa::shown::{shown, shown_lines};
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{ChatParams, Client, Daemon};
use style::dim;
use talk::{COMMANDS, Heard, Stop, Talk};
use terminal::{Read, Terminal};
use typed::Typed;

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
A line that ends with a backslash goes on with the next one. Ctrl-C stops an answer, Ctrl-D ends.
Other lines typed while an answer is written are heard after it."))]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Instruction for the whole conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Talk with this version, whichever serves
    #[arg(long, value_name = "N")]
    policy_version: Option<u64>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 is greedy
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Only so many of the likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Only tokens that are at least this likely, relative to the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Name recorded with answers and ratings
    #[arg(long, value_name = "ID")]
    user: Option<String>,
}

pub async fn run(options: Options) -> Result<()> {
    let client = options.daemon.client()?;
    let props = client.props().await?;
    let params = ChatParams {
        model: options.policy_version.map(|version| format!("{}@{version}", props.model)),
        max_tokens: options.max_tokens,
        temperature: options.temperature,
        top_p: options.top_p,
        top_k: options.top_k,
        min_p: options.min_p,
        user: options.user,
        ..ChatParams::default()
    };
    let talk = Talk::new(client.clone(), params, options.system);
    if !std::io::stdin().is_terminal() {
        return piped(talk).await;
    }
    println!("{}", shown(&props.model));
    println!("{}", dim("+ or - rates the last answer, /help tells what else there is, /bye or Ctrl-D ends"));
    interactive(talk, client).await
}

/// Lines of a file or another program; the first error ends it.
async fn piped(mut talk: Talk) -> Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        if talk.hear(&line, &Stop::Never).await? == Heard::Bye {
            break;
        }
    }
    Ok(())
}

/// A person at a terminal; an error in one line must not end the conversation.
async fn interactive(mut talk: Talk, client: Client) -> Result<()> {
    let mut terminal = Terminal::open(talk::words())?;
    let mut news = news::follow(client);
    // From here on Ctrl-C never ends the program: while a line is edited it is a key like any.
    let _caught = signal(SignalKind::interrupt())?;
    let stop = Stop::Terminal(Typed::default());
    loop {
        let read = match stop.typed() {
            Some(line) => {
                println!("> {}", shown_lines(&line));
                Read::Line(line)
            }
            None => {
                terminal.ask();
                loop {
                    tokio::select! {
                        read = terminal.read() => break read?,
                        Some(said) = news.recv() => terminal.say(&dim(&said)),
                    }
                }
            }
        };
        match read {
            Read::Line(line) => match talk.hear(&line, &stop).await {
                Ok(Heard::Bye) => return Ok(()),
                Ok(Heard::All) => {}
                Err(e) => eprintln!("{}", shown_lines(&format!("{e:#}"))),
            },
            Read::Interrupted => println!("{}", dim("/bye or Ctrl-D ends")),
            Read::End => return Ok(()),
        }
    }
}
