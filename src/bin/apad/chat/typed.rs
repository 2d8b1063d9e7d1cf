//! Lines that are typed while an answer is written, when nobody edits: kept to be heard after it, and what ends the
//! talk is known at once. Edits nothing itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::pending;
use std::io::{Stdin, stdin};
use std::time::Duration;

use rustix::io::{ioctl_fionread, read};

/// What ends the talk.
pub const BYE: [&str; 3] = ["/bye", "/exit", "/quit"];
/// Most lines that wait. Further ones stay with the terminal, whose editor reads them next.
const MOST: usize = 64;
/// Longest line of a terminal that nobody edits, in bytes.
const LINE: usize = 4096;
/// Time between two looks at the terminal.
const LOOK: Duration = Duration::from_millis(50);

/// Lines that wait to be heard.
#[derive(Default)]
pub struct Typed(RefCell<VecDeque<String>>);

impl Typed {
    /// The line that was typed first.
    pub fn next(&self) -> Option<String> {
        self.0.borrow_mut().pop_front()
    }

    /// Forgets them, as a terminal does with its own on Ctrl-C.
    pub fn forget(&self) {
        self.0.borrow_mut().clear();
    }

    /// Reads lines until one ends the talk, which then is the only one that waits. Only while nobody else reads.
    pub async fn until_bye(&self) {
        let (terminal, mut line) = (stdin(), [0; LINE]);
        loop {
            // A task that waited in a read could not be called back, and would take the next line from the editor.
            if !holds_a_line(&terminal) || self.0.borrow().len() >= MOST {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let Ok(length) = read(&terminal, &mut line) else { return pending().await };
            if self.take(&line[..length]) {
                return;
            }
        }
    }

    /// Adds a line; whether it ends the talk.
    fn take(&self, line: &[u8]) -> bool {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches(['\n', '\r']);
        let mut lines = self.0.borrow_mut();
        if BYE.contains(&text.trim()) {
            lines.clear();
            lines.push_back(BYE[0].to_owned());
            return true;
        }
        match lines.back_mut().filter(|last| last.ends_with('\\')) {
            Some(last) => last.extend(["\n", text]),
            None => lines.push_back(text.to_owned()),
        }
        false
    }
}

/// Whether reading would not wait.
fn holds_a_line(terminal: &Stdin) -> bool {
    ioctl_fionread(terminal).is_ok_and(|bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_in_their_order_and_the_one_that_ends_the_talk_waits_alone() {
        let typed = Typed::default();
        assert!(!typed.take(b"one \\\n") && !typed.take(b"two\n") && !typed.take(b"+\n"));
        assert_eq!(typed.next().as_deref(), Some("one \\\ntwo"));
        assert!(typed.take(b" /quit \r\n"));
        assert_eq!((typed.next().as_deref(), typed.next()), (Some("/bye"), None));
    }
}
