//! The settings as a list, for names, help and documents. Read from the rows; holds no setting itself.

use serde_json::Value;

use super::Config;
use super::range::Range;
use super::rows::{Row, Setting};

/// One setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Dotted name, as in `apad.toml` and in options: `train.lambda`.
    pub name: String,
    /// The environment variable that sets it: `APAD_TRAIN_LAMBDA`.
    pub variable: String,
    /// What a value is, in words: `a number`.
    pub kind: &'static str,
    /// Which values it takes, in words: `above 0`.
    pub range: String,
    /// Value if nothing sets it; null is unset.
    pub default: Value,
    /// What the setting does.
    pub doc: String,
}

impl Config {
    /// Every setting, in the order of the sections.
    pub fn keys() -> Vec<Key> {
        let mut keys = Vec::new();
        Self::default().rows(&mut |row| keys.push(Key::from(row)));
        keys
    }

    /// Passes the row of each setting, with its present value, to `see`.
    pub(super) fn rows(&self, see: &mut dyn FnMut(Row)) {
        self.walk(String::new(), &[], Range::Any, see);
    }
}

impl From<Row<'_>> for Key {
    fn from(row: Row) -> Self {
        let doc = row.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        let (variable, range) = (variable(&row.name), row.range.to_string());
        Self { name: row.name, variable, kind: row.kind, range, default: row.value, doc }
    }
}

/// The environment variable of a setting.
fn variable(key: &str) -> String {
    format!("APAD_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// The known name closest to an unknown one. The last part alone counts as well: `lambda` for `train.lambda`.
pub(super) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or(name);
        strsim::jaro_winkler(wrong, name).max(0.95 * strsim::jaro_winkler(wrong, last))
    };
    known.max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_the_configuration_is_a_setting_with_a_text() {
        fn leaves(tree: &Value, section: &str, names: &mut Vec<String>) {
            for (name, value) in tree.as_object().unwrap() {
                let name = crate::config::rows::join(section, name);
                if value.is_object() { leaves(value, &name, names) } else { names.push(name) }
            }
        }
        let mut names = Vec::new();
        leaves(&serde_json::to_value(Config::default()).unwrap(), "", &mut names);
        let keys = Config::keys();
        assert_eq!(keys.iter().map(|k| k.name.clone()).collect::<Vec<_>>(), names);
        assert!(keys.iter().all(|k| k.doc.ends_with(['.', ')']) && !k.doc.contains("  ")), "{keys:#?}");
    }

    #[test]
    fn no_two_settings_share_a_variable() {
        let mut variables: Vec<String> = Config::keys().into_iter().map(|k| k.variable).collect();
        variables.sort();
        let count = variables.len();
        variables.dedup();
        assert_eq!(variables.len(), count);
    }

    #[test]
    fn an_unset_setting_takes_a_value_and_null_again() {
        for key in Config::keys().into_iter().filter(|k| k.default.is_null()) {
            let value = if key.kind.contains("number") { 1.into() } else { "x".into() };
            Config::builder().set(&key.name, value).unwrap().set(&key.name, Value::Null).unwrap();
        }
    }
}
