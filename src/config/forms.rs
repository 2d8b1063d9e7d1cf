//! Forms of text that settings have: each function finds the part that is wrong. Never knows a setting.

use std::ffi::OsStr;

use super::origin_pattern::OriginPattern;

/// The part of a text that is not of the form; `None` if all of it is.
pub(super) fn no_device(text: &str) -> Option<&str> {
    let cuda = text.strip_prefix("cuda:").is_some_and(|n| n.parse::<u16>().is_ok());
    (!cuda && text != "auto" && text != "cpu").then_some(text)
}

/// The part of a text that is not of the form; `None` if all of it is.
pub(super) fn no_engine(text: &str) -> Option<&str> {
    let url = text.strip_prefix("tinker:").unwrap_or_default();
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).unwrap_or_default();
    // What stands before an @ is a secret, and settings are shown.
    let plain = !host.is_empty() && !host.starts_with('/') && !host.contains(['@', '?', '#', ' ']);
    (!plain && text != "candle").then_some(text)
}

/// The part of a text that is not of the form; `None` if all of it is.
pub(super) fn no_address(text: &str) -> Option<&str> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    (!matches!(port, Some(Ok(_)))).then_some(text)
}

/// The part of a text that is not of the form; `None` if all of it is.
pub(super) fn no_version(text: &str) -> Option<&str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).find(|part| part.parse::<u64>().is_err())
}

/// The part of a text that is not of the form; `None` if all of it is.
pub(super) fn no_origin(text: &str) -> Option<&str> {
    text.split(',').map(str::trim).filter(|o| !o.is_empty()).find(|o| OriginPattern::parse(o).is_none())
}

/// The part of a text that is not of the form; `None` if all of it is.
pub(super) fn no_store(url: &str) -> Option<&str> {
    let known = |(kind, rest): (&str, &str)| ["file", "s3", "gs", "az"].contains(&kind) && !rest.is_empty();
    (!url.split_once("://").is_some_and(known)).then_some(url)
}

/// `APAD_PORT`, `APAD_PORT_8372_TCP_ADDR`, `APAD_SERVICE_HOST` and the like: links to a service named `apad`, or to
/// one whose name begins with it (`APAD_METRICS_SERVICE_HOST`: `apad-metrics`).
pub(super) fn of_kubernetes(name: &str, value: &OsStr) -> bool {
    let is_number = |text: &str| text.parse::<u16>().is_ok();
    // The part after `PORT_`, as in `PORT_8372_TCP_ADDR`.
    let port = |rest: &str| {
        let (number, tail) = rest.split_once('_').unwrap_or((rest, ""));
        let known = |kind: &&str| {
            tail == *kind || tail.strip_prefix(*kind).is_some_and(|t| ["_PORT", "_PROTO", "_ADDR"].contains(&t))
        };
        is_number(number) && ["TCP", "UDP", "SCTP"].iter().any(known)
    };
    let link = |rest: &str| match rest {
        "PORT" => value.to_str().is_some_and(|value| value.contains("://")),
        "SERVICE_HOST" => true,
        "SERVICE_PORT" => value.to_str().is_some_and(is_number),
        rest if rest.starts_with("SERVICE_PORT_") => value.to_str().is_some_and(is_number),
        rest => rest.strip_prefix("PORT_").is_some_and(port),
    };
    name.match_indices('_').any(|(at, _)| link(&name[at + 1..]))
}
