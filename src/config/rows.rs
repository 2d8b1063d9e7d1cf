//! The mechanism of the settings: `settings!` turns a table of rows into structs, defaults, and a walk over all rows,
//! which checks, lists and documents them. Holds no setting itself.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::range::{Given, Range};
use crate::error::{Error, Result};

/// A setting's row, with a value.
pub(super) struct Row<'a> {
    /// Dotted name: `train.lambda`.
    pub name: String,
    /// What a value is, in words: `a number`.
    pub kind: &'static str,
    pub range: Range,
    /// Lines of its text.
    pub doc: &'static [&'static str],
    /// The value, in the form that is checked and in the form that is shown.
    pub given: Given<'a>,
    pub value: Value,
}

impl Row<'_> {
    /// Checks the value against the range.
    ///
    /// # Errors
    /// `Arg`: `train.lambda is -1, expected a number above 0`.
    pub fn check(&self) -> Result<()> {
        match self.range.refuse(self.given) {
            Some(shown) => {
                let expected = self.range.expected(self.kind);
                Err(Error::arg(format!("{} is {shown}, expected {expected}", self.name)))
            }
            None => Ok(()),
        }
    }
}

/// Joins a section and a name.
pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// A field of the settings: a value or a section of values.
pub(super) trait Setting {
    /// Calls `see` with the row of each setting in it.
    fn walk(&self, name: String, doc: &'static [&'static str], range: Range, see: &mut dyn FnMut(Row));
}

/// A single value.
pub(super) trait Leaf: Serialize {
    /// The kind of value, in words.
    const KIND: &'static str;
    fn given(&self) -> Given<'_>;
}

impl<T: Leaf> Setting for T {
    fn walk(&self, name: String, doc: &'static [&'static str], range: Range, see: &mut dyn FnMut(Row)) {
        // Settings are plain data, so this conversion can't fail.
        let value = serde_json::to_value(self).unwrap_or_default();
        see(Row { name, kind: T::KIND, range, doc, given: self.given(), value });
    }
}

macro_rules! leaf {
    ($($type:ty, $kind:literal, $value:ident => $given:expr;)*) => {
        $(impl Leaf for $type {
            const KIND: &'static str = $kind;
            fn given(&self) -> Given<'_> {
                let $value = self;
                $given
            }
        })*
    };
}

leaf! {
    bool, "true or false", _value => Given::Flag;
    u32, "a whole number", n => Given::Whole((*n).into());
    u64, "a whole number", n => Given::Whole((*n).into());
    i32, "a whole number", n => Given::Whole((*n).into());
    usize, "a whole number", n => Given::Whole(*n as i128);
    f64, "a number", n => Given::Numbers(std::slice::from_ref(n));
    [f64; 2], "two numbers", list => Given::Numbers(list);
    String, "text", text => Given::Text(text);
    PathBuf, "a path", path => of_path(path);
    Option<u32>, "a whole number or null", n => n.map_or(Given::Unset, |n| Given::Whole(n.into()));
    Option<f64>, "a number or null", n => n.as_ref().map_or(Given::Unset, |n| Given::Numbers(std::slice::from_ref(n)));
    Option<PathBuf>, "a path or null", path => path.as_deref().map_or(Given::Unset, of_path);
    Option<String>, "text or null", text => text.as_deref().map_or(Given::Unset, Given::Text);
}

/// A path that isn't UTF-8 has no text to check.
fn of_path(path: &Path) -> Given<'_> {
    path.to_str().map_or(Given::Unset, Given::Text)
}

/// Makes a section of settings from its rows: `name: type = default, range;` with the text above. The text documents
/// the field, `apad config` and docs/CONFIG.md.
macro_rules! settings {
    ($($(#[$meta:meta])* $section:ident {
        $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr, $range:expr;)*
    })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $section {
                $($(#[doc = $doc])+ pub $field: $type,)*
            }

            impl Default for $section {
                fn default() -> Self {
                    Self { $($field: $default,)* }
                }
            }

            impl Setting for $section {
                fn walk(&self, name: String, _: &'static [&'static str], _: Range, see: &mut dyn FnMut(Row)) {
                    $(
                        let field = join(&name, stringify!($field).trim_start_matches("r#"));
                        self.$field.walk(field, &[$($doc),+], $range, see);
                    )*
                }
            }
        )*
    };
}

/// Makes an enum whose values are words, with the list of the words.
macro_rules! choices {
    ($($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
            pub enum $name {
                $($(#[$doc])* #[serde(rename = $word)] $variant,)+
            }

            impl $name {
                /// Its values as words.
                pub const WORDS: &'static [&'static str] = &[$($word),+];
            }

            impl Leaf for $name {
                const KIND: &'static str = "text";
                fn given(&self) -> Given<'_> {
                    match self {
                        $($name::$variant => Given::Text($word),)+
                    }
                }
            }
        )*
    };
}

pub(super) use {choices, settings};
