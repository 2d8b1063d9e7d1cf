//! Resolves the references of a JSON schema. Never reads another document.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::values::{refuse, short};
use crate::error::Result;

/// Most schemas that references may name.
const TARGETS: usize = 1000;
/// How deep names are searched.
const DEPTH: usize = 128;

/// A schema that is named: its JSON pointer, and whether others hold for the same value there.
type Target = (String, bool);

/// The references of one schema.
pub(super) struct References<'a> {
    root: &'a Value,
    /// Schemas that they name, as JSON pointers from the root, in the order of discovery; and whether others hold for
    /// the same value where they are named.
    targets: Vec<Target>,
    numbers: HashMap<Target, usize>,
    /// Every `$id` and `$anchor`, with its position.
    ids: BTreeMap<String, String>,
    anchors: BTreeMap<String, Vec<String>>,
}

impl<'a> References<'a> {
    pub(super) fn new(root: &'a Value) -> Self {
        let (ids, anchors) = (BTreeMap::new(), BTreeMap::new());
        let mut all = References { root, targets: Vec::new(), numbers: HashMap::new(), ids, anchors };
        all.name_resources(root, String::new(), 0);
        all
    }

    /// The position of the schema with this number, and whether others hold for the same value where it is named.
    pub(super) fn target(&self, number: usize) -> Option<Target> {
        self.targets.get(number).cloned()
    }

    /// The schema at a position.
    pub(super) fn schema(&self, pointer: &str) -> Option<&'a Value> {
        self.root.pointer(pointer)
    }

    /// Collects `$id` and `$anchor`.
    fn name_resources(&mut self, at: &Value, pointer: String, depth: usize) {
        if depth > DEPTH {
            return;
        }
        match at {
            Value::Object(map) => {
                if let Some(Value::String(id)) = map.get("$id") {
                    self.ids.entry(id.trim_end_matches('#').into()).or_insert_with(|| pointer.clone());
                }
                if let Some(Value::String(name)) = map.get("$anchor") {
                    self.anchors.entry(name.clone()).or_default().push(pointer.clone());
                }
                for (key, member) in map {
                    if !matches!(key.as_str(), "const" | "enum" | "default" | "examples") {
                        self.name_resources(member, format!("{pointer}/{}", escaped(key)), depth + 1);
                    }
                }
            }
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.name_resources(item, format!("{pointer}/{i}"), depth + 1);
                }
            }
            _ => {}
        }
    }

    /// The innermost enclosing schema with an `$id`, which references there are relative to.
    pub(super) fn base_of(&self, pointer: &str) -> String {
        let ends = pointer.match_indices('/').map(|(at, _)| at).chain([pointer.len()]).rev();
        let mut bases = ends.map(|end| &pointer[..end]).filter(|p| self.root.pointer(p).is_some_and(is_resource));
        bases.next().unwrap_or_default().to_owned()
    }

    /// Resolves a reference to its index in `targets`; `combined` if others hold for the same value.
    pub(super) fn resolve(&mut self, reference: &str, at: &str, base: &str, combined: bool) -> Result<usize> {
        let shown = short(format_args!("{reference:?}"));
        let (resource, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let start = match resource {
            "" => base.to_owned(),
            id => match self.ids.get(id) {
                Some(pointer) => pointer.clone(),
                None => return refuse(at, format!("$ref names {shown}, which is not in the schema")),
            },
        };
        let pointer = match decoded(fragment) {
            None => return refuse(at, format!("$ref is {shown}, which is no reference")),
            Some(path) if path.is_empty() || path == "/" && self.root.pointer(&format!("{start}/")).is_none() => start,
            Some(path) if path.starts_with('/') => start + &path,
            Some(name) => match self.anchors.get(&name).map(Vec::as_slice) {
                Some([one]) => one.clone(),
                Some(_) => return refuse(at, format!("$ref names {shown}, and several schemas have that $anchor")),
                None => return refuse(at, format!("$ref names {shown}, and no schema has that $anchor")),
            },
        };
        let target = (pointer, combined);
        if let Some(number) = self.numbers.get(&target) {
            return Ok(*number);
        }
        if !matches!(self.root.pointer(&target.0), Some(Value::Object(_) | Value::Bool(_))) {
            return refuse(at, format!("$ref names {shown}, and there is no schema"));
        }
        if self.targets.len() >= TARGETS {
            return refuse(at, format!("$ref names more than {TARGETS} schemas"));
        }
        self.targets.push(target.clone());
        self.numbers.insert(target, self.targets.len() - 1);
        Ok(self.targets.len() - 1)
    }
}

/// Whether references inside this schema are relative to it.
pub(super) fn is_resource(schema: &Value) -> bool {
    schema.get("$id").and_then(Value::as_str).is_some_and(|id| !id.starts_with('#'))
}

/// A key as a segment of a JSON pointer.
pub(super) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Decodes percent escapes; `None` if they are malformed.
fn decoded(fragment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| (b as char).to_digit(16));
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}
