//! Limits the work of holding one string to several patterns, which multiply each other. Never rewrites a schema.
//!
//! The compiler follows patterns that meet (by `allOf`, `$ref`, `anyOf` and `oneOf`) through all combinations of the
//! places that each can be at, and has no limit of its own within one step: twenty short patterns took minutes and
//! gigabytes. So the combinations are counted before, place by place, as the compiler will combine them.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value};

use super::parsed::overlap;
use super::values::refuse;
use crate::error::Result;

/// Most combinations of places in patterns that meet.
const COMBINATIONS: u64 = 2000;
/// Most steps of counting.
const STEPS: usize = 400_000;
/// Keywords that ask something of a string, or of a part in which a string can be.
const ASKING: [&str; 7] =
    ["pattern", "format", "properties", "patternProperties", "additionalProperties", "prefixItems", "items"];
/// [`overlap`] of the formats that the compiler knows itself.
const FORMAT: u64 = 12;

/// Counts in a prepared schema.
///
/// # Errors
/// `Arg` naming the place where too many patterns meet.
pub(super) fn check(schema: &Value) -> Result<()> {
    let mut count = Count { schema, overlaps: HashMap::new(), seen: HashSet::new(), left: STEPS };
    count.each(schema, "")
}

/// What holds one value: all of these.
type Place<'a> = Vec<Term<'a>>;

#[derive(Clone)]
enum Term<'a> {
    One(&'a Map<String, Value>),
    Any(Vec<Place<'a>>),
}

/// The part of a value that a schema is for.
#[derive(Clone, Copy)]
enum Part<'a> {
    Property(&'a str),
    OtherProperty,
    Item(usize),
    OtherItem,
}

struct Count<'a> {
    schema: &'a Value,
    overlaps: HashMap<&'a str, u64>,
    /// The places that were checked, by [`key`]: references lead to some again and again.
    seen: HashSet<Vec<usize>>,
    left: usize,
}

impl<'a> Count<'a> {
    /// Checks each schema inside of this one as a place of its own.
    fn each(&mut self, value: &'a Value, at: &str) -> Result<()> {
        match value {
            Value::Object(map) => {
                let mut place = Vec::new();
                self.expand(value, at, 0, &mut place)?;
                self.place(&place, at)?;
                for (key, value) in map {
                    let at = format!("{at}/{key}");
                    match (key.as_str(), value) {
                        ("const" | "enum" | "x-guidance", _) => {}
                        ("properties" | "patternProperties" | "$defs", Value::Object(members)) => {
                            members.iter().try_for_each(|(name, value)| self.each(value, &format!("{at}/{name}")))?;
                        }
                        _ => self.each(value, &at)?,
                    }
                }
                Ok(())
            }
            Value::Array(items) => {
                items.iter().enumerate().try_for_each(|(i, item)| self.each(item, &format!("{at}/{i}")))
            }
            _ => Ok(()),
        }
    }

    fn step(&mut self, at: &str) -> Result<()> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return refuse(at, "allOf, anyOf, oneOf and $ref combine too many schemas"),
        }
        Ok(())
    }

    /// Adds a schema and all that hold together with it.
    fn expand(&mut self, schema: &'a Value, at: &str, depth: usize, place: &mut Place<'a>) -> Result<()> {
        self.step(at)?;
        let Value::Object(map) = schema else { return Ok(()) };
        let there = |term: &Term| matches!(term, Term::One(other) if std::ptr::eq(*other, map));
        if ASKING.iter().any(|key| map.contains_key(*key)) && !place.iter().any(there) {
            place.push(Term::One(map));
        }
        // A reference to itself, which the compiler refuses.
        if depth > 100 {
            return Ok(());
        }
        let root = self.schema;
        if let Some(target) = map.get("$ref").and_then(Value::as_str).and_then(|text| root.pointer(&text[1..])) {
            self.expand(target, at, depth + 1, place)?;
        }
        for schema in list(map, "allOf") {
            self.expand(schema, at, depth + 1, place)?;
        }
        for key in ["anyOf", "oneOf"] {
            let mut choices = Vec::new();
            for schema in list(map, key) {
                let mut choice = Vec::new();
                self.expand(schema, at, depth + 1, &mut choice)?;
                choices.push(choice);
            }
            add(choices, place);
        }
        Ok(())
    }

    /// Checks a place, and the parts of it that several schemas are for.
    fn place(&mut self, place: &Place<'a>, at: &str) -> Result<()> {
        self.step(at)?;
        if self.combinations(place) > COMBINATIONS {
            return refuse(
                at,
                "pattern and format are too complex together: simplify what must hold for one string (by allOf, $ref, \
                 anyOf or oneOf)",
            );
        }
        let alone = match place.as_slice() {
            [] => true,
            [Term::Any(choices)] => return choices.iter().try_for_each(|choice| self.place(choice, at)),
            [Term::One(map)] => !(map.contains_key("patternProperties") && map.contains_key("properties")),
            _ => false,
        };
        let mut own = Vec::new();
        key(place, &mut own);
        if alone || !self.seen.insert(own) {
            return Ok(());
        }
        let mut names = BTreeSet::new();
        let mut items = 0;
        parts(place, &mut names, &mut items);
        let named = names.into_iter().map(Part::Property);
        for part in named.chain((0..items).map(Part::Item)).chain([Part::OtherProperty, Part::OtherItem]) {
            let inner = self.inner(place, part, at)?;
            self.place(&inner, at)?;
        }
        Ok(())
    }

    fn combinations(&mut self, place: &Place<'a>) -> u64 {
        place.iter().fold(1, |product: u64, term| {
            product.saturating_mul(match term {
                Term::One(map) => {
                    let pattern = map
                        .get("pattern")
                        .and_then(Value::as_str)
                        .map_or(1, |text| *self.overlaps.entry(text).or_insert_with(|| overlap(text)));
                    pattern * if map.contains_key("format") { FORMAT } else { 1 }
                }
                Term::Any(choices) => choices.iter().map(|choice| self.combinations(choice)).max().unwrap_or(1),
            })
        })
    }

    /// What holds for a part of the value.
    fn inner(&mut self, place: &Place<'a>, part: Part<'a>, at: &str) -> Result<Place<'a>> {
        let mut inner = Vec::new();
        for term in place {
            self.step(at)?;
            match term {
                Term::One(map) => {
                    let own = match part {
                        Part::Property(name) => map.get("properties").and_then(|members| members.get(name)),
                        Part::Item(i) => list(map, "prefixItems").get(i).or(map.get("items")),
                        Part::OtherItem => map.get("items"),
                        Part::OtherProperty => None,
                    };
                    if let Some(schema) = own {
                        self.expand(schema, at, 0, &mut inner)?;
                    }
                    let patterns =
                        map.get("patternProperties").and_then(Value::as_object).filter(|_| part.is_property());
                    let others = map.get("additionalProperties").filter(|_| part.is_property() && own.is_none());
                    let mut choices = Vec::new();
                    for schema in patterns.into_iter().flat_map(Map::values).chain(others) {
                        let mut choice = Vec::new();
                        self.expand(schema, at, 0, &mut choice)?;
                        choices.push(choice);
                    }
                    add(choices, &mut inner);
                }
                Term::Any(choices) => {
                    let inside =
                        choices.iter().map(|choice| self.inner(choice, part, at)).collect::<Result<Vec<_>>>()?;
                    add(inside, &mut inner);
                }
            }
        }
        Ok(inner)
    }
}

impl Part<'_> {
    fn is_property(self) -> bool {
        matches!(self, Part::Property(_) | Part::OtherProperty)
    }
}

fn list<'a>(map: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    map.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The properties and the number of items that the schemas of a place tell apart.
fn parts<'a>(place: &Place<'a>, names: &mut BTreeSet<&'a str>, items: &mut usize) {
    for term in place {
        match term {
            Term::One(map) => {
                let members = map.get("properties").and_then(Value::as_object);
                names.extend(members.into_iter().flat_map(Map::keys).map(String::as_str));
                *items = (*items).max(list(map, "prefixItems").len());
            }
            Term::Any(choices) => choices.iter().for_each(|choice| parts(choice, names, items)),
        }
    }
}

/// Adds a choice to a place in its simplest form, so that recursion leads to places that were seen before.
fn add<'a>(choices: Vec<Place<'a>>, place: &mut Place<'a>) {
    let mut seen = HashSet::new();
    let mut simple: Vec<Place> = Vec::new();
    let mut left: Vec<Place> = choices.into_iter().rev().collect();
    while let Some(mut choice) = left.pop() {
        if let [Term::Any(inner)] = choice.as_mut_slice() {
            left.extend(std::mem::take(inner).into_iter().rev());
            continue;
        }
        let mut own = Vec::new();
        key(&choice, &mut own);
        if !choice.is_empty() && seen.insert(own) {
            simple.push(choice);
        }
    }
    match simple.len() {
        0 => {}
        1 => place.append(&mut simple[0]),
        _ => place.push(Term::Any(simple)),
    }
}

/// The schemas of a place, by where they lie.
fn key(place: &Place, key: &mut Vec<usize>) {
    for term in place {
        match term {
            Term::One(map) => key.push(std::ptr::from_ref(*map).addr()),
            Term::Any(choices) => {
                key.push(choices.len());
                for choice in choices {
                    self::key(choice, key);
                    key.push(0);
                }
            }
        }
    }
}
