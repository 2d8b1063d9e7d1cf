//! JSON objects in which each name stands once. Knows no name.

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// The members of a JSON object, each of which may stand there once: of two values one would be dropped silently.
pub(crate) struct Members(pub(crate) Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Members(Map::new()))
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Members;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> std::result::Result<Members, A::Error> {
        while let Some((key, value)) = members.next_entry::<String, Value>()? {
            let key_shown: String = key.chars().take(32).collect();
            if self.0.insert(key, value).is_some() {
                return Err(A::Error::custom(format!("{key_shown:?} stands there twice, expected each name once")));
            }
        }
        Ok(self)
    }
}
