//! Integers that don't fit a JSON number here: they keep their digits on the way to a template. Renders nothing.

use serde_json::{Number, Value as Json};

/// Precedes the digits of an integer too large for a JSON number here. A private-use character, which users' text never
/// begins with and the output never shows.
pub(super) const BIG: char = '\u{10fffd}';

/// Parses JSON without rounding integers: those that don't fit 64 bits become texts, which templates write as the
/// original numbers. `None` if it isn't JSON.
pub fn parse_whole_integers(text: &str) -> Option<Json> {
    let (mut marked, mut rest, mut quoted) = (String::with_capacity(text.len()), text, false);
    while let Some(c) = rest.chars().next() {
        let mut length = c.len_utf8();
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => length += rest[1..].chars().next().map_or(0, char::len_utf8),
            '-' | '0'..='9' if !quoted => {
                let end = |c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E');
                length = rest.find(end).unwrap_or(rest.len());
                let number = &rest[..length];
                let digits = number.strip_prefix('-').unwrap_or(number);
                let whole = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
                if whole && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    marked.extend(['"', BIG]);
                    marked.push_str(number);
                    marked.push('"');
                    rest = &rest[length..];
                    continue;
                }
            }
            _ => {}
        }
        marked.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    serde_json::from_str(&marked).ok()
}

/// The large integer that a text of [`parse_whole_integers`] stands for, as the nearest float.
pub fn large_integer(text: &str) -> Option<Json> {
    let digits = text.strip_prefix(BIG)?;
    let unsigned = digits.strip_prefix('-').unwrap_or(digits);
    let whole = !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit());
    let number: f64 = digits.parse().ok().filter(|_| whole)?;
    Number::from_f64(number.clamp(f64::MIN, f64::MAX)).map(Json::Number)
}

/// JSON text, in which large integers of [`parse_whole_integers`] are numbers with the digits that they had.
pub fn json_with_whole_integers(value: &Json) -> String {
    let text = value.to_string();
    let (mut out, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some(at) = rest.find(BIG) {
        let (before, behind) = (&rest[..at], &rest[at + BIG.len_utf8()..]);
        let digits = behind.find('"').map(|end| &behind[..end]);
        match (before.strip_suffix('"').filter(|before| !before.ends_with('\\')), digits) {
            (Some(before), Some(digits)) if large_integer(&format!("{BIG}{digits}")).is_some() => {
                out.push_str(before);
                out.push_str(digits);
                rest = &behind[digits.len() + 1..];
            }
            _ => {
                out.push_str(&rest[..at + BIG.len_utf8()]);
                rest = behind;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_any_length_are_read_whole() {
        let read = |text: &str| parse_whole_integers(text).unwrap();
        let big = |digits: &str| Json::from(format!("{BIG}{digits}"));
        let text = r#"{"n":12345678901234567890123,"m":[-98765432109876543210,1,-2,18446744073709551615,1.5e3]}"#;
        assert_eq!(read(text)["n"], big("12345678901234567890123"));
        assert_eq!(read(text)["m"][0], big("-98765432109876543210"));
        assert_eq!(
            read(text)["m"].to_string(),
            format!("[\"{BIG}-98765432109876543210\",1,-2,18446744073709551615,1500.0]")
        );
        let quoted = r#"{"s":"a\"12345678901234567890123"}"#;
        assert_eq!(read(quoted).to_string(), quoted);
        assert_eq!(json_with_whole_integers(&read(text)), text.replace("1.5e3", "1500.0"));
        assert_eq!(json_with_whole_integers(&read(quoted)), quoted);
        for odd in [format!("{BIG}"), format!("{BIG}-"), format!("{BIG}1x"), format!("a{BIG}1"), format!("\"{BIG}1")] {
            let as_it_is = Json::from(odd).to_string();
            assert_eq!(json_with_whole_integers(&read(&as_it_is)), as_it_is);
        }
        for text in ["", "{", "[01234567890123456789012]", "[--123456789012345678901234]", "[1 2]"] {
            assert_eq!(parse_whole_integers(text), None, "{text}");
        }
    }
}
