//! Forms of text that settings have: each function finds the part that is wrong. Never knows a setting.

use super::origin_pattern::OriginPattern;

/// The part of a text that is not of the form; `None` if all of it is.
pub(super) fn no_device(text: &str) -> Option<&str> {
    let cuda = text.strip_prefix("cuda:").is_some_and(|n| n.parse::<u16>().is_ok());
    (!cuda && text != "auto" && text != "cpu").then_some(text)
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
