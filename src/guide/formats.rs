//! Patterns for the string formats (`format`) of JSON schemas. Never reads a schema.

/// How a format is handled.
pub(super) enum Known {
    /// By the grammar compiler.
    Compiler,
    /// By this pattern.
    Pattern(&'static str),
}

/// Formats that answers can be constrained to.
pub(super) const NAMES: [&str; 10] =
    ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

// RFC 3339, with valid days only, without leap seconds and the year 0.
macro_rules! date {
    () => {
        concat!(
            "(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-",
            "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|",
            "02-(?:0[1-9]|1[0-9]|2[0-8]))|",
            "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
        )
    };
}
macro_rules! time {
    () => {
        concat!(
            r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?",
            "(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
        )
    };
}

/// The format of this name, if it is supported.
pub(super) fn of(name: &str) -> Option<Known> {
    match name {
        "date" => Some(Known::Pattern(concat!("^", date!(), "$"))),
        "time" => Some(Known::Pattern(concat!("^", time!(), "$"))),
        "date-time" => Some(Known::Pattern(concat!("^", date!(), "[tT]", time!(), "$"))),
        name if NAMES.contains(&name) => Some(Known::Compiler),
        _ => None,
    }
}
