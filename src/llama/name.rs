//! Names out of a model's file, as they may be shown. Reads no file.

use crate::shown::is_obeyed;

/// Longest name of a model, in characters.
const NAME_CHARS: usize = 200;

/// A name that is safe on terminals and in URLs: bounded in length, without what a terminal obeys.
pub(super) fn plain_name(name: &str) -> String {
    let name: String = name.chars().map(|c| if is_obeyed(c) { ' ' } else { c }).take(NAME_CHARS).collect();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_moves_no_cursor_and_ends_no_line() {
        assert_eq!(plain_name(" org/\x1b[31mname\r\n\u{9b}x\u{202e}y "), "org/ [31mname   x y");
        assert_eq!(plain_name("\n\t"), "");
        assert_eq!(plain_name(&"n".repeat(1000)).len(), NAME_CHARS);
    }
}
