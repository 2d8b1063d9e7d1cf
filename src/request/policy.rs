//! Reads what is asked of versions and of the trainer. Changes nothing.

use super::Unknown;
use super::fields::{Fields, shown};
use crate::error::{Error, Result};
use crate::types::{PolicyVersion, whole};

/// Fields of a request to serve a version.
pub(crate) const ACTIVATE_FIELDS: &[&str] = &["version", "whole"];

/// Fields of a request to adopt versions.
pub(crate) const ADOPT_FIELDS: &[&str] = &["name"];

/// Reads `{version, whole?}`: the version to serve, and whether by weights of its own rather than by its adapter.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_activate(body: &[u8]) -> Result<(PolicyVersion, bool)> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let version = fields.required("version")?;
    let number = whole(&version).ok_or_else(|| {
        Error::arg(format!("version is {}, expected the number of a version, from 0 on", shown(&version)))
    })?;
    let own = fields.flag("whole")?;
    fields.finish(ACTIVATE_FIELDS)?;
    Ok((PolicyVersion(number), own))
}

/// Reads `{name?}`: one of the versions that were set aside, or all of them.
///
/// # Errors
/// As [`parse_activate`].
pub fn parse_adopt(body: &[u8]) -> Result<Option<String>> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let name = fields.string("name")?;
    fields.finish(ADOPT_FIELDS)?;
    Ok(name)
}

/// Reads the body of a request that takes no fields: nothing, or an empty object.
///
/// # Errors
/// As [`parse_activate`].
pub fn parse_nothing(body: &[u8]) -> Result<()> {
    if body.trim_ascii().is_empty() {
        return Ok(());
    }
    Fields::parse(body, Unknown::Refuse)?.finish(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_whole_number_in_any_notation_and_errors_name_the_field() {
        assert_eq!(parse_activate(br#"{"version": 0.0}"#).unwrap(), (PolicyVersion(0), false));
        assert_eq!(parse_activate(br#"{"version": 3, "whole": true}"#).unwrap(), (PolicyVersion(3), true));
        let refusal = |body: &[u8]| parse_activate(body).unwrap_err().message().to_owned();
        let expected = "expected the number of a version, from 0 on";
        for (given, shown) in [("-1", "-1"), ("0.5", "0.5"), ("\"0\"", "a string"), ("[0]", "an array")] {
            let body = format!("{{\"version\": {given}}}");
            assert_eq!(refusal(body.as_bytes()), format!("version is {shown}, {expected}"));
        }
        assert_eq!(refusal(b"{}"), "version is missing");
        assert_eq!(refusal(br#"{"verson": 1}"#), r#"unknown field "verson", did you mean "version"?"#);
        assert_eq!(refusal(br#"{"version": 1, "hole": true}"#), r#"unknown field "hole", did you mean "whole"?"#);
        assert_eq!(refusal(br#"{"version": 1, "whole": 1}"#), "whole is 1, expected true or false");
    }

    #[test]
    fn where_nothing_is_read_only_nothing_is_taken() {
        assert!([&b""[..], b" \n", b"{}"].iter().all(|body| parse_nothing(body).is_ok()));
        let refusal = |body: &[u8]| parse_nothing(body).unwrap_err().message().to_owned();
        assert_eq!(refusal(br#"{"dry_run": true}"#), r#"unknown field "dry_run", expected none"#);
        assert_eq!(refusal(b"[]"), "the body is an array, expected a JSON object");
        assert_eq!(parse_adopt(br#"{"name": "000003"}"#).unwrap().as_deref(), Some("000003"));
        assert!(parse_adopt(br#"{"names": "000003"}"#).unwrap_err().message().ends_with("did you mean \"name\"?"));
    }
}
