//! Cuts text at word boundaries so that none of llama.cpp's patterns takes time quadratic in the length of a run. Never
//! tokenizes.

/// Digits per piece: a multiple of the three in a word.
const DIGITS: usize = 99;
/// Characters of white space per piece: a multiple of the longest word of it.
const SPACES: usize = 4096;

/// The parts of a text whose tokens, joined, equal those of the text, for the pre-tokenizer `pre`. Nearly always one.
pub(super) fn pieces<'t>(pre: Option<&str>, text: &'t str) -> Vec<&'t str> {
    let cuts = match pre {
        // `(?=(\d{3})+(?!\d))` scans from each digit to the last one.
        Some("superbpe") => cuts_in_digits(text),
        // `\s*[\r
        // ]+` before `\s{512}(?!\S)` scans from each word to the end of the spaces.
        Some("jais-2") => cuts_in_spaces(text),
        _ => Vec::new(),
    };
    let begins = std::iter::once(0).chain(cuts.iter().copied());
    begins.zip(cuts.iter().copied().chain([text.len()])).map(|(begin, end)| &text[begin..end]).collect()
}

/// Cuts after every [`DIGITS`] digits from the end of a run, which is where words of three are counted from.
fn cuts_in_digits(text: &str) -> Vec<usize> {
    let (bytes, mut cuts, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let end = at + bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        let first = at + (end - at) % DIGITS;
        cuts.extend((first..end).step_by(DIGITS).filter(|cut| *cut > at));
        at = end + 1;
    }
    cuts
}

/// Cuts after every [`SPACES`] characters of white space, in runs without line breaks in or after them.
fn cuts_in_spaces(text: &str) -> Vec<usize> {
    let (mut cuts, mut run) = (Vec::new(), Vec::new());
    for (at, c) in text.char_indices().chain([(text.len(), 'x')]) {
        match c {
            '\r' | '\n' => run.clear(),
            c if c.is_whitespace() => run.push(at),
            _ => {
                // The last word of a run keeps at least one of its characters.
                cuts.extend(run.iter().copied().step_by(SPACES).skip(1).filter(|cut| cut + 1 < at));
                run.clear();
            }
        }
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_cut_where_words_end() {
        let digits = format!("a{}b{}", "1".repeat(200), "2".repeat(99));
        let lengths: Vec<usize> = pieces(Some("superbpe"), &digits).iter().map(|p| p.len()).collect();
        assert_eq!(lengths, [3, 99, 99 + 1 + 99]);
        let spaces = format!("a{}b{}\n", " ".repeat(9000), " ".repeat(9000));
        let lengths: Vec<usize> = pieces(Some("jais-2"), &spaces).iter().map(|p| p.len()).collect();
        assert_eq!(lengths, [1 + 4096, 4096, 9000 - 2 * 4096 + 1 + 9001]);
        let all = [(Some("superbpe"), digits.as_str()), (Some("jais-2"), &spaces), (None, &digits), (None, "")];
        for (pre, text) in all {
            assert_eq!(pieces(pre, text).concat(), text);
        }
    }
}
