//! Layers settings: defaults, then a file, variables and options in the order they are given. Never reads the
//! environment itself; every layer becomes JSON values at dotted names, which are deserialized in one place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::forms::of_kubernetes;
use super::keys::nearest;
use super::rows::join;
use super::{Config, Key};
use crate::error::{Error, Result};
use crate::files;

/// Collects settings; what is given later wins.
///
/// ```
/// # fn main() -> apa::Result<()> {
/// let config = apa::config::Config::builder()
///     .env([("APAD_TRAIN_LAMBDA", "0.2")])?
///     .set("train.batch", 32.into())?
///     .build()?;
/// assert_eq!((config.train.lambda, config.train.batch), (0.2, 32));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    /// The keys that exist, with the types of their values.
    defaults: Value,
    /// The settings so far; always deserializes into a `Config`.
    tree: Value,
    /// Who set which key; keys that are missing have their default.
    origins: BTreeMap<String, Origin>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// An option of a program: a flag, or a call of [`Builder::set`].
    Option,
}

/// A setting with the value it has now.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// The setting's key.
    pub key: Key,
    /// Its value; null is unset.
    pub value: Value,
    /// Where that came from.
    pub origin: Origin,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("by default"),
            Origin::File(path) => write!(f, "in {}", path.display()),
            Origin::Variable(name) => write!(f, "in the variable {name}"),
            Origin::Option => f.write_str("in the options"),
        }
    }
}

/// Longest configuration file, in bytes.
const MOST_BYTES: u64 = 1 << 20;

impl Config {
    /// Starts from the defaults.
    pub fn builder() -> Builder {
        // Settings are plain data: the conversion has no way to fail.
        let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
        Builder { tree: defaults.clone(), defaults, origins: BTreeMap::new() }
    }
}

impl Builder {
    /// Adds the settings of a TOML file. Paths in it are relative to the working directory, as on the command line.
    ///
    /// # Errors
    /// `Io` if it can't be read; `Arg` if it is not TOML, or for a key that is unknown or of a wrong type.
    pub fn file(self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = files::read_text(path, MOST_BYTES).map_err(|e| Error::from(e).context(path.display()))?;
        let wrong = |e: &dyn fmt::Display| Error::arg(format!("{} is not a configuration file: {e}", path.display()));
        let table: toml::Table = toml::from_str(&text).map_err(|e| wrong(&e))?;
        let value = serde_json::to_value(table).map_err(|e| wrong(&e))?;
        self.put("", value, &Origin::File(path.to_owned()))
    }

    /// Adds the variables whose name starts with `APAD_`, of those given: `std::env::vars_os()`, less any that are not
    /// settings. Those that Kubernetes sets in every pod for services named like `apad` are none.
    ///
    /// # Errors
    /// `Arg` for an `APAD_` variable that is unknown, not UTF-8, or of a wrong type.
    pub fn env<K: Into<OsString>, V: Into<OsString>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Result<Self> {
        let known: Vec<(String, String)> = Config::keys().into_iter().map(|k| (k.variable, k.name)).collect();
        for (name, value) in vars {
            let (Ok(name), value) = (name.into().into_string(), value.into()) else { continue };
            if !name.starts_with("APAD_") {
                continue;
            }
            let Some((_, key)) = known.iter().find(|(variable, _)| *variable == name) else {
                if of_kubernetes(&name, &value) {
                    continue;
                }
                let hint = hint(nearest(&name, known.iter().map(|(variable, _)| variable.as_str())));
                return Err(Error::arg(format!("unknown variable {name}{hint}")));
            };
            let Some(text) = value.to_str() else {
                return Err(Error::arg(format!("the variable {name} is not UTF-8")));
            };
            self = self.put_text(key, text, &Origin::Variable(name))?;
        }
        Ok(self)
    }

    /// Sets one key (`train.lambda`), or a section (`train`) to an object of keys.
    ///
    /// # Errors
    /// `Arg` for an unknown key, naming the nearest known one, or a wrong type.
    pub fn set(self, key: &str, value: Value) -> Result<Self> {
        if key.is_empty() {
            return Err(Error::arg("the name of a setting is empty"));
        }
        self.put(key, value, &Origin::Option)
    }

    /// Sets one key from text as in a variable or on a command line: `0.2`, `true`, `0.9,0.95`, `cpu`.
    ///
    /// # Errors
    /// As [`Builder::set`].
    pub fn set_text(self, key: &str, text: &str) -> Result<Self> {
        self.put_text(key, text, &Origin::Option)
    }

    /// Checks all settings together and returns them.
    ///
    /// # Errors
    /// `Arg` for a value out of range: `train.lambda is -1, expected a number above 0`.
    pub fn build(self) -> Result<Config> {
        let config = deserialize(&self.tree)?;
        config.validate()?;
        Ok(config)
    }

    /// Every setting with the value it has so far, and where that came from.
    pub fn settings(&self) -> Vec<Set> {
        let set = |key: Key| Set {
            value: find(&self.tree, &key.name).cloned().unwrap_or_default(),
            origin: self.origins.get(&key.name).cloned().unwrap_or(Origin::Default),
            key,
        };
        Config::keys().into_iter().map(set).collect()
    }

    fn put_text(self, key: &str, text: &str, origin: &Origin) -> Result<Self> {
        let value = match find(&self.defaults, key) {
            Some(Value::Null) if text.is_empty() => Value::Null,
            Some(Value::Null) if is("number", key) => parse(text, text),
            Some(Value::Bool(_)) if text == "1" || text == "0" => Value::Bool(text == "1"),
            Some(Value::Array(_)) if !text.starts_with('[') => parse(&format!("[{text}]"), text),
            Some(Value::String(_) | Value::Null) | None => text.into(),
            Some(_) => parse(text, text),
        };
        self.put(key, value, origin)
    }

    fn put(mut self, key: &str, value: Value, origin: &Origin) -> Result<Self> {
        let Some(default) = find(&self.defaults, key) else {
            let keys = Config::keys();
            let hint = hint(nearest(key, keys.iter().map(|k| k.name.as_str())));
            return Err(Error::arg(format!("unknown key {key} {origin}{hint}")));
        };
        let fits = match (default, &value) {
            (Value::Object(_), Value::Object(_)) => {
                let Value::Object(map) = value else { return Ok(self) };
                return map.into_iter().try_fold(self, |b, (name, v)| b.put(&join(key, &name), v, origin));
            }
            (Value::Bool(_), Value::Bool(_)) | (Value::String(_), Value::String(_)) => true,
            (Value::Number(want), Value::Number(got)) => want.is_f64() || !got.is_f64(),
            (Value::Null, Value::Number(got)) => is("number", key) && (!is("whole", key) || !got.is_f64()),
            (Value::Null, Value::String(_)) => !is("number", key),
            (Value::Array(_), Value::Array(_)) | (Value::Null, Value::Null) => true,
            _ => false,
        };
        if !fits {
            let known = Config::keys().into_iter().find(|k| k.name == key);
            let kind = known.map_or("a section", |key| key.kind);
            return Err(Error::arg(format!("{key} is {value}, expected {kind} ({origin})")));
        }
        if let Some(place) = find_mut(&mut self.tree, key) {
            *place = value;
        }
        self.origins.insert(key.to_owned(), origin.clone());
        // Deserialized at once, while the key and its origin are known, to check words, integer ranges and list
        // lengths.
        deserialize(&self.tree).map_err(|e| Error::arg(format!("{key} {origin}: {e}")))?;
        Ok(self)
    }
}

/// Whether the kind of a setting's values has this word.
fn is(word: &str, key: &str) -> bool {
    Config::keys().iter().any(|known| known.name == key && known.kind.contains(word))
}

fn deserialize(tree: &Value) -> Result<Config> {
    Config::deserialize(tree).map_err(|e| Error::arg(e.to_string()))
}

fn find<'a>(tree: &'a Value, key: &str) -> Option<&'a Value> {
    if key.is_empty() { Some(tree) } else { key.split('.').try_fold(tree, |t, name| t.as_object()?.get(name)) }
}

fn find_mut<'a>(tree: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    key.split('.').try_fold(tree, |t, name| t.as_object_mut()?.get_mut(name))
}

/// JSON, or a number that JSON spells differently (`.5`), or else the text itself, which then has the wrong type.
fn parse(json: &str, text: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|_| text.parse::<f64>().map_or_else(|_| text.into(), Value::from))
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Algorithm;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("apad.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn message(result: Result<Builder>) -> String {
        result.unwrap_err().message().to_owned()
    }

    #[test]
    fn links_that_kubernetes_sets_are_no_settings() {
        let links = [
            ("APAD_PORT", "tcp://10.0.0.7:8372"),
            ("APAD_PORT_8372_TCP", "tcp://10.0.0.7:8372"),
            ("APAD_PORT_8372_TCP_ADDR", "10.0.0.7"),
            ("APAD_PORT_8372_TCP_PORT", "8372"),
            ("APAD_PORT_8372_TCP_PROTO", "tcp"),
            ("APAD_SERVICE_HOST", "10.0.0.7"),
            ("APAD_SERVICE_PORT", "8372"),
            ("APAD_SERVICE_PORT_HTTP", "8372"),
            ("APAD_SERVICE_PORT_HTTP_METRICS", "9090"),
            ("APAD_PORT_8372_SCTP", "sctp://[fd00::7]:8372"),
            ("APAD_X_PORT", "tcp://10.0.0.9:80"),
            ("APAD_X_PORT_80_TCP_PROTO", "tcp"),
            ("APAD_MODEL_SERVICE_HOST", "10.0.0.9"),
            ("APAD_TRAIN_SERVICE_PORT_WEB", "80"),
            ("APAD_METRICS_PORT", "udp://10.0.0.8:53"),
            ("APAD_METRICS_PORT_53_UDP_ADDR", "10.0.0.8"),
            ("APAD_METRICS_SERVICE_HOST", "10.0.0.8"),
            ("APAD_METRICS_SERVICE_PORT", "53"),
        ];
        assert!(Config::builder().env(links).is_ok());
        let unknown = ["APAD_PORT", "APAD_PORTS", "APAD_PORT_X_TCP", "APAD_SERVICE", "APAD_PORT_1_TCP_X"];
        let misspelt = ["APAD_SERVICE_SLOTS", "APAD_SERVE_PORT", "APAD_HTTP_PORT", "APAD_SERVICE_HOSTS"];
        for unknown in unknown.into_iter().chain(misspelt) {
            assert!(Config::builder().env([(unknown, "1")]).is_err(), "{unknown}");
        }
    }

    #[test]
    fn defaults_come_back_unchanged() {
        assert_eq!(Config::builder().build().unwrap(), Config::default());
    }

    #[test]
    fn later_layers_win_and_untouched_keys_keep_their_values() {
        let (_dir, path) = file("model = 'a.gguf'\n[train]\nlambda = 0.3\nbatch = 8\nepochs = 3\nlr = 1\n");
        let config = Config::builder()
            .file(&path)
            .unwrap()
            .env([("APAD_TRAIN_LAMBDA", "0.2"), ("APAD_TRAIN_BATCH", "4"), ("HOME", "/nowhere")])
            .unwrap()
            .set("train.batch", json!(2))
            .unwrap()
            .build()
            .unwrap();
        assert_eq!(config.model, PathBuf::from("a.gguf"));
        assert_eq!((config.train.lambda, config.train.batch, config.train.epochs), (0.2, 2, 3));
        assert_eq!((config.train.lr, config.train.rank), (1.0, Config::default().train.rank));
    }

    #[test]
    fn each_setting_tells_its_value_and_where_it_came_from() {
        let (_dir, path) = file("[train]\nlambda = 0.3\nbatch = 8\n");
        let builder = Config::builder().file(&path).unwrap().env([("APAD_TRAIN_BATCH", "4")]).unwrap();
        let settings = builder.set("serve.slots", json!(2)).unwrap().settings();
        let of = |name: &str| {
            let set = settings.iter().find(|set| set.key.name == name).unwrap();
            (set.value.clone(), set.origin.clone())
        };
        assert_eq!(of("train.lambda"), (json!(0.3), Origin::File(path)));
        assert_eq!(of("train.batch"), (json!(4), Origin::Variable("APAD_TRAIN_BATCH".into())));
        assert_eq!(of("serve.slots"), (json!(2), Origin::Option));
        assert_eq!(of("train.epochs"), (json!(2), Origin::Default));
        assert_eq!(settings.len(), Config::keys().len());
    }

    #[test]
    fn variables_of_every_kind_are_read() {
        let config = Config::builder()
            .env([
                ("APAD_TRAIN_AUTO", "false"),
                ("APAD_TRAIN_WHITEN", "0"),
                ("APAD_TRAIN_BETAS", "0.8,0.9"),
                ("APAD_TRAIN_LR", ".5"),
                ("APAD_TRAIN_ALGORITHM", "ppo"),
                ("APAD_TRAIN_DEVICE", "cuda:1"),
                ("APAD_SERVE_GPU_LAYERS", "-1"),
                ("APAD_HTTP_KEYS", "keys.txt"),
                ("APAD_MODEL", "123"),
            ])
            .unwrap()
            .build()
            .unwrap();
        assert!(!config.train.auto && !config.train.whiten);
        assert_eq!((config.train.betas, config.train.lr), ([0.8, 0.9], 0.5));
        assert_eq!((config.train.algorithm, config.train.device.as_str()), (Algorithm::Ppo, "cuda:1"));
        assert_eq!(config.http.keys, Some(PathBuf::from("keys.txt")));
        assert_eq!(config.model, PathBuf::from("123"));
    }

    #[test]
    fn a_section_can_be_set_as_an_object() {
        let config = Config::builder().set("train", json!({"lambda": 0.5, "rank": 4})).unwrap().build().unwrap();
        assert_eq!((config.train.lambda, config.train.rank), (0.5, 4));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one_and_its_origin() {
        let (_dir, path) = file("[train]\nlamda = 0.3\n");
        let text = message(Config::builder().file(&path));
        assert_eq!(text, format!("unknown key train.lamda in {}; did you mean train.lambda?", path.display()));
        let text = message(Config::builder().env([("APAD_TRAIN_EPOCH", "1")]));
        assert_eq!(text, "unknown variable APAD_TRAIN_EPOCH; did you mean APAD_TRAIN_EPOCHS?");
        let text = message(Config::builder().set("critic_lr", json!(1)));
        assert_eq!(text, "unknown key critic_lr in the options; did you mean train.critic_lr?");
        assert!(message(Config::builder().set("train/lambda", json!(1))).contains("unknown key"));
        assert!(message(Config::builder().set("model.x", json!(1))).contains("unknown key"));
        assert!(message(Config::builder().set("", json!({"train": {"rank": 1}}))).contains("empty"));
    }

    #[test]
    fn a_wrong_type_names_key_expected_and_got() {
        let text = message(Config::builder().env([("APAD_TRAIN_BATCH", "many")]));
        assert_eq!(text, "train.batch is \"many\", expected a whole number (in the variable APAD_TRAIN_BATCH)");
        let text = message(Config::builder().set("train.batch", json!(1.5)));
        assert_eq!(text, "train.batch is 1.5, expected a whole number (in the options)");
        let text = message(Config::builder().set("train", json!(3)));
        assert_eq!(text, "train is 3, expected a section (in the options)");
        assert!(message(Config::builder().set("train.lambda", Value::Null)).contains("expected a number"));
    }

    #[test]
    fn a_value_that_the_type_cannot_hold_is_refused_where_it_was_given() {
        for (key, value, part) in [
            ("train.batch", json!(-1), "train.batch in the options: "),
            ("train.algorithm", json!("sgd"), "unknown variant `sgd`"),
            ("train.betas", json!([0.9]), "train.betas in the options: "),
        ] {
            let text = message(Config::builder().set(key, value));
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_not_toml_is_named() {
        let (_dir, path) = file("train = [");
        assert!(message(Config::builder().file(&path)).contains("apad.toml is not a configuration file"));
        assert!(message(Config::builder().file(path.with_extension("none"))).contains("apad.none"));
    }
}
