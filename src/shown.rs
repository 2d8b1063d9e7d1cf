//! Text of users, models and files as it may be shown on a terminal: a reader sees what was meant to be obeyed. Cuts
//! nothing.

use std::borrow::Cow;

/// Whether a terminal obeys the character rather than shows it: controls, and marks that change the direction of the
/// text around them.
pub fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with such characters written out, as `\u{1b}`; tabs and ends of lines too.
pub fn shown(text: &str) -> Cow<'_, str> {
    written_out(text, |_| false, |c| c.escape_unicode().to_string())
}

/// The same, but for tabs and ends of lines, which stay.
pub fn shown_lines(text: &str) -> Cow<'_, str> {
    written_out(text, |c| matches!(c, '\n' | '\t'), |c| c.escape_unicode().to_string())
}

/// JSON that says the same, with such characters as JSON writes them out: they occur in its texts alone, but for ends
/// of lines and tabs between them.
pub fn shown_json(json: &str) -> Cow<'_, str> {
    written_out(json, |c| matches!(c, '\n' | '\t' | '\r'), |c| format!("\\u{:04x}", u32::from(c)))
}

fn written_out(text: &str, stays: impl Fn(char) -> bool, written: impl Fn(char) -> String) -> Cow<'_, str> {
    let obeyed = |c: &char| is_obeyed(*c) && !stays(*c);
    if !text.chars().any(|c| obeyed(&c)) {
        return Cow::Borrowed(text);
    }
    let mut said = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if obeyed(&c) { said += &written(c) } else { said.push(c) }
    }
    Cow::Owned(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out_and_all_else_stays() {
        let name = "a\u{1b}[31m\u{7}b\u{9b}c\u{202e}d\n\u{e9}\u{4e2d}\u{1f600}";
        let end = "\u{e9}\u{4e2d}\u{1f600}";
        assert_eq!(shown(name), format!("a\\u{{1b}}[31m\\u{{7}}b\\u{{9b}}c\\u{{202e}}d\\u{{a}}{end}"));
        assert_eq!(shown_lines("a\tb\nc\rd"), "a\tb\nc\\u{d}d");
        assert!(matches!(shown("plain \u{e9}"), Cow::Borrowed(_)));
        let json = serde_json::to_string_pretty(&serde_json::json!({ "user": name })).unwrap();
        let said = shown_json(&json);
        assert!(!said.chars().any(|c| is_obeyed(c) && c != '\n'), "{said:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&said).unwrap()["user"], name);
    }
}
