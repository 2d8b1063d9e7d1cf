//! Flags that each stand for a setting: their text, range and default come from the setting's row. Never checks a
//! value: the library does.

use std::marker::PhantomData;

use apa::config::{Config, Dtype, Key, Weights};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};
use serde_json::Value;

/// The flags of a command that stand for settings.
pub trait Flags {
    /// Their heading in the help, if they have one of their own.
    const HEADING: Option<&'static str> = None;
    /// Name of each flag, and the setting it sets.
    const FLAGS: &'static [(&'static str, &'static str)];
    /// What the help adds to the text of a setting.
    fn note(_flag: &str) -> &'static str {
        ""
    }
}

/// The flags of `F` that were given, with their values as text.
#[derive(Clone, Debug)]
pub struct Given<F>(Vec<(&'static str, String)>, PhantomData<F>);

impl<F: Flags> Given<F> {
    /// The value of a flag, if it was given.
    pub fn get(&self, flag: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| *name == flag).map(|(_, text)| text.as_str())
    }

    /// The settings that were given, as text.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, Option<String>)> + '_ {
        F::FLAGS.iter().map(|(flag, key)| (*key, self.get(flag).map(str::to_owned)))
    }
}

impl<F: Flags> Args for Given<F> {
    fn augment_args(command: Command) -> Command {
        let keys = Config::keys();
        let arg = |(flag, name): &(&'static str, &'static str)| {
            let arg = Arg::new(*flag).long(*flag);
            // A test finds a row that names no setting.
            let Some(key) = keys.iter().find(|key| key.name == *name) else { return arg };
            let arg = arg.value_name(value_name(key)).help(help(key, F::note(flag)));
            let arg = if key.kind.contains("number") { arg.allow_negative_numbers(true) } else { arg };
            let arg = match key.kind {
                "a whole number" => arg.value_parser(whole),
                "a number" => arg.value_parser(number),
                _ => arg,
            };
            match F::HEADING {
                Some(heading) => arg.help_heading(heading),
                None => arg,
            }
        };
        command.args(F::FLAGS.iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<F: Flags> FromArgMatches for Given<F> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |(flag, _): &(&'static str, &'static str)| Some((*flag, matches.get_one::<String>(flag)?.clone()));
        Ok(Self(F::FLAGS.iter().filter_map(given).collect(), PhantomData))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Text that is a whole number, as it is.
fn whole(text: &str) -> Result<String, String> {
    text.parse::<i128>().map(|_| text.to_owned()).map_err(|_| "expected a whole number".to_owned())
}

/// Text that is a number, as it is.
fn number(text: &str) -> Result<String, String> {
    text.parse::<f64>().map(|_| text.to_owned()).map_err(|_| "expected a number".to_owned())
}

/// What the help calls a value of this kind.
fn value_name(key: &Key) -> &'static str {
    match key.kind {
        "a whole number" => "N",
        "a number" => "X",
        "two numbers" => "X,X",
        "true or false" => "BOOL",
        kind if kind.starts_with("a path") => "PATH",
        _ => "TEXT",
    }
}

fn help(key: &Key, note: &str) -> String {
    let range = if key.range == "any" { String::new() } else { format!("{}; ", key.range) };
    format!("{}{note} [{range}default: {}]", key.doc, default(key))
}

fn default(key: &Key) -> String {
    match &key.default {
        Value::Null => "unset".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
        value => value.to_string(),
    }
}

/// The defaults of some settings, as text: for a command that holds them fixed whatever a file or a variable says.
pub fn defaults(names: &'static [&'static str]) -> impl Iterator<Item = (&'static str, Option<String>)> {
    let keys = Config::keys();
    names.iter().map(move |name| (*name, keys.iter().find(|key| key.name == *name).map(default)))
}

/// Where a daemon listens by default.
pub fn local_daemon() -> String {
    format!("http://{}", Config::default().http.listen)
}

/// Reads a number format by its word in the settings.
pub fn dtype() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(Dtype::WORDS).try_map(|word| serde_json::from_value(Value::String(word)))
}

/// Reads how weights are held by its word in the settings.
pub fn weights() -> impl TypedValueParser<Value = Weights> {
    PossibleValuesParser::new(Weights::WORDS).try_map(|word| serde_json::from_value(Value::String(word)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{serve, train};

    fn names<F: Flags>() -> Vec<&'static str> {
        F::FLAGS.iter().map(|(_, key)| *key).collect()
    }

    #[test]
    fn every_flag_stands_for_a_setting_and_its_help_has_the_settings_default() {
        let keys = Config::keys();
        for name in names::<serve::Served>().into_iter().chain(names::<train::Learning>()) {
            let key = keys.iter().find(|key| key.name == name).unwrap_or_else(|| panic!("{name} is no setting"));
            assert!(help(key, "").starts_with(&key.doc) && help(key, "").ends_with(&format!("{}]", default(key))));
        }
    }

    #[test]
    fn flags_reach_the_settings_as_text() {
        let command = Given::<train::Learning>::augment_args(Command::new("train"));
        let matches = command.get_matches_from(["train", "--lambda", "-1", "--betas", "0.8,0.9"]);
        let given = Given::<train::Learning>::from_arg_matches(&matches).unwrap();
        let set: Vec<_> = given.settings().filter_map(|(key, text)| Some((key, text?))).collect();
        assert_eq!(set, [("train.lambda", "-1".to_owned()), ("train.betas", "0.8,0.9".to_owned())]);
    }
}
