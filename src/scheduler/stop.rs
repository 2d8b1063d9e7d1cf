//! Finds stop strings across token boundaries, and holds back text that may begin one. Never sees a token.

/// Watches the text of one answer.
pub(super) struct StopStrings {
    stops: Vec<String>,
    held: String,
    /// The one that ended the answer.
    found: Option<String>,
}

impl StopStrings {
    /// `stops` without empty strings.
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new(), found: None }
    }

    /// Adds text; returns the part that can be shown, and whether a stop string ended the answer. Then nothing is held
    /// back.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        if self.stops.is_empty() {
            return (text.to_string(), false);
        }
        self.held.push_str(text);
        if let Some((at, stop)) = self.stops.iter().filter_map(|s| Some((self.held.find(s)?, s))).min() {
            self.found = Some(stop.clone());
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|s| suffix_that_begins(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The stop string that ended the answer.
    pub(super) fn found(&self) -> Option<String> {
        self.found.clone()
    }

    /// The text that is still held back when the answer ends without a stop string.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest suffix of `text` that is a proper prefix of `stop`, in bytes.
fn suffix_that_begins(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut s = StopStrings::new(stops.iter().map(|s| s.to_string()).collect());
        let mut shown = String::new();
        for piece in pieces {
            let (text, end) = s.push(piece);
            shown += &text;
            if end {
                return (shown, true);
            }
        }
        (shown + &s.finish(), false)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_never_shown() {
        assert_eq!(run(&["###"], &["ab#", "#", "#cd"]), ("ab".into(), true));
    }

    #[test]
    fn text_that_only_begins_like_a_stop_string_is_shown_in_the_end() {
        assert_eq!(run(&["###"], &["a##", "b#"]), ("a##b#".into(), false));
    }

    #[test]
    fn the_earliest_of_several_stop_strings_wins() {
        assert_eq!(run(&["cd", "bc"], &["abcd"]), ("a".into(), true));
    }

    #[test]
    fn stop_strings_of_several_bytes_a_codepoint_are_held_whole() {
        assert_eq!(run(&["éa"], &["x", "é", "b"]), ("xéb".into(), false));
    }

    #[test]
    fn without_stop_strings_nothing_is_held() {
        assert_eq!(StopStrings::new(vec![String::new()]).push("abc"), ("abc".into(), false));
    }
}
