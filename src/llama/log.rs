//! What llama.cpp and ggml log, as events of `llama.cpp`: a line of one cause once, its repetitions at `debug`. Never
//! logs anything of its own.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Mutex;

use llama_cpp_sys_2 as sys;

use crate::lock::lock;

/// Most causes that are remembered; lines of further causes are logged every time.
const MOST_CAUSES: usize = 1024;
/// Longest line, in bytes: longer lines are split.
const LONGEST: usize = 8 << 10;

/// Lines as they come: a text may hold part of one, or several.
#[derive(Default)]
struct Lines {
    level: sys::ggml_log_level,
    begun: String,
    told: BTreeSet<String>,
}

static LINES: Mutex<Option<Lines>> = Mutex::new(None);

/// Sends llama.cpp's and ggml's lines to `tracing`, from now on.
pub(super) fn send_to_tracing() {
    // SAFETY: the function lives as long as the process and takes whatever it is given.
    unsafe {
        sys::llama_log_set(Some(take), std::ptr::null_mut());
        sys::ggml_log_set(Some(take), std::ptr::null_mut());
    }
}

unsafe extern "C" fn take(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp gives text that ends with a zero, alive during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let whole = {
        let mut lines = lock(&LINES);
        lines.get_or_insert_with(Lines::default).add(level, &text)
    };
    // Whoever listens may call us again.
    whole.into_iter().for_each(|(level, line, first)| tell(level, &line, first));
}

fn tell(level: sys::ggml_log_level, line: &str, first: bool) {
    match (level, first) {
        (sys::GGML_LOG_LEVEL_ERROR, _) => tracing::error!(target: "llama.cpp", "{line}"),
        (sys::GGML_LOG_LEVEL_WARN, true) => tracing::warn!(target: "llama.cpp", "{line}"),
        // About a hundred lines per model and context; none needs action.
        (sys::GGML_LOG_LEVEL_INFO | sys::GGML_LOG_LEVEL_WARN, _) => tracing::debug!(target: "llama.cpp", "{line}"),
        _ => tracing::trace!(target: "llama.cpp", "{line}"),
    }
}

impl Lines {
    /// The lines that are whole now, and whether each is the first of its cause.
    fn add(&mut self, level: sys::ggml_log_level, text: &str) -> Vec<(sys::ggml_log_level, String, bool)> {
        if level != sys::GGML_LOG_LEVEL_CONT {
            self.level = level;
        }
        self.begun.push_str(text);
        let mut whole = Vec::new();
        while let Some(end) = self.begun.find('\n').or((self.begun.len() > LONGEST).then_some(self.begun.len())) {
            let rest = self.begun.split_off((end + 1).min(self.begun.len()));
            let line = std::mem::replace(&mut self.begun, rest);
            let line = line.trim_end();
            if !line.is_empty() {
                whole.push((self.level, line.to_owned(), self.is_first(line)));
            }
        }
        whole
    }

    fn is_first(&mut self, line: &str) -> bool {
        self.told.len() >= MOST_CAUSES || self.told.insert(cause(line))
    }
}

/// A line without what differs from one tensor, file or number to the next.
fn cause(line: &str) -> String {
    let differs = |word: &str| word.contains(|c: char| c.is_ascii_digit() || matches!(c, '.' | '/' | '\'' | '"'));
    line.split_whitespace().map(|word| if differs(word) { "*" } else { word }).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_each_tensor_is_told_once() {
        let mut lines = Lines::default();
        let of = |n: usize| {
            let what = "cannot be used with preferred buffer type AMX";
            format!("done_getting_tensors: tensor 'blk.{n}.attn_q.weight' (q4_1) {what}\n")
        };
        let told: Vec<bool> = (0..210).flat_map(|n| lines.add(sys::GGML_LOG_LEVEL_WARN, &of(n))).map(|l| l.2).collect();
        assert_eq!((told.len(), told.iter().filter(|first| **first).count()), (210, 1));
        assert!(lines.add(sys::GGML_LOG_LEVEL_WARN, "quite another thing\n")[0].2);
    }

    #[test]
    fn a_line_comes_whole_however_it_is_cut_and_none_grows_without_end() {
        let mut lines = Lines::default();
        assert!(lines.add(sys::GGML_LOG_LEVEL_INFO, "half a ").is_empty());
        let whole = lines.add(sys::GGML_LOG_LEVEL_CONT, "line\n\nnext\nand");
        let said: Vec<(u32, &str)> = whole.iter().map(|(level, line, _)| (*level, line.as_str())).collect();
        assert_eq!(said, [(sys::GGML_LOG_LEVEL_INFO, "half a line"), (sys::GGML_LOG_LEVEL_INFO, "next")]);
        (0..100).for_each(|_| drop(lines.add(sys::GGML_LOG_LEVEL_CONT, &"x".repeat(LONGEST / 10))));
        assert!(lines.begun.len() <= LONGEST);
        // With more causes than can be remembered, each line is logged.
        for n in 0..2 * MOST_CAUSES {
            let name: String = n.to_string().bytes().map(|digit| char::from(digit + 49)).collect();
            assert!(lines.add(sys::GGML_LOG_LEVEL_WARN, &format!("\nabout {name}\n")).last().unwrap().2);
        }
        assert!(lines.told.len() <= MOST_CAUSES);
    }
}
