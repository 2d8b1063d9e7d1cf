//! Lines of a terminal, edited with rustyline: history, several lines, completion of commands, and messages that don't
//! tear the line. Knows no daemon.

use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Cmd, Context, Editor, EventHandler, ExternalPrinter, Helper, KeyCode, KeyEvent, Modifiers};
use tokio::sync::mpsc;

use crate::pull::cache_folder;

/// Lines that the history keeps.
const KEPT: usize = 1000;

/// What came of asking for a line.
pub enum Read {
    /// A line, or several.
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// The terminal. A thread edits: a terminal can't be waited for asynchronously.
pub struct Terminal {
    wanted: mpsc::UnboundedSender<()>,
    lines: mpsc::Receiver<Result<Read, ReadlineError>>,
    printer: Box<dyn ExternalPrinter + Send>,
}

impl Terminal {
    /// Opens it; `words` are completed by the tab key.
    pub fn open(words: Vec<String>) -> Result<Self> {
        let config = rustyline::Config::builder().max_history_size(KEPT)?.auto_add_history(true).build();
        let mut editor: Editor<Words, FileHistory> = Editor::with_config(config).context("opening the terminal")?;
        editor.set_helper(Some(Words(words)));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), EventHandler::Simple(Cmd::Newline));
        let history = history_file();
        if let Some(path) = &history {
            // There is none yet the first time.
            let _ = editor.load_history(path);
        }
        let printer = Box::new(editor.create_external_printer().context("opening the terminal")?);
        let (wanted, mut asked) = mpsc::unbounded_channel();
        let (sender, lines) = mpsc::channel(1);
        thread::Builder::new().name("apad-terminal".into()).spawn(move || {
            while asked.blocking_recv().is_some() {
                let read = match editor.readline("> ") {
                    Ok(line) => Ok(Read::Line(line)),
                    Err(ReadlineError::Interrupted) => Ok(Read::Interrupted),
                    Err(ReadlineError::Eof) => Ok(Read::End),
                    Err(error) => Err(error),
                };
                if let Some(path) = &history {
                    // What was typed is for its user alone: rustyline makes the file so. Without it, the talk goes on.
                    let _ = editor.append_history(path);
                }
                if sender.blocking_send(read).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { wanted, lines, printer })
    }

    /// Shows the prompt, and begins to edit a line.
    pub fn ask(&self) {
        // Fails only if the thread is gone, which `read` tells.
        let _ = self.wanted.send(());
    }

    /// Waits for the line that was asked for. Nothing is lost if the wait is given up and begun again.
    ///
    /// # Errors
    /// What rustyline says of the terminal.
    pub async fn read(&mut self) -> Result<Read> {
        Ok(self.lines.recv().await.unwrap_or(Ok(Read::End))?)
    }

    /// Prints a line above the one that is being edited.
    pub fn say(&mut self, line: &str) {
        let _ = self.printer.print(format!("{line}\n"));
    }
}

/// Where lines are kept from one talk to the next.
fn history_file() -> Option<PathBuf> {
    let folder = cache_folder().ok()?;
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat_history"))
}

/// Words that begin a command.
struct Words(Vec<String>);

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = line.get(..at).unwrap_or_default();
        let fits = |word: &&String| begun.starts_with('/') && word.starts_with(begun);
        Ok((0, self.0.iter().filter(fits).cloned().collect()))
    }
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let goes_on = context.input().ends_with('\\');
        Ok(if goes_on { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}

impl Helper for Words {}
