//! What is on disk of versions, as text and JSON. Reads nothing.

use apa::engine::{AsideVersion, VersionRecord};
use serde_json::json;

/// What is on disk of a version, in words.
pub fn state(record: &VersionRecord) -> String {
    let mark = if record.info.active { '*' } else { ' ' };
    let said = match (&record.damage, record.removed) {
        (Some(damage), _) => format!("damaged: {damage}"),
        (None, true) => "removed (publish.keep, or a user was forgotten)".to_owned(),
        (None, false) if record.has_state() => "whole".to_owned(),
        (None, false) => "whole, without the state that only training on needs (publish.keep_states)".to_owned(),
    };
    format!("{mark} {:>7}  {said}", record.info.version.0)
}

pub fn states(records: &[VersionRecord]) -> serde_json::Value {
    let of = |r: &VersionRecord| {
        let (version, state) = (r.info.version, r.has_state());
        json!({"version": version, "removed": r.removed, "state": state, "damage": r.damage})
    };
    records.iter().map(of).collect()
}

pub fn aside_table(aside: &[AsideVersion]) -> String {
    let line = |one: &AsideVersion| {
        let damage = one.damage.as_deref().map(|damage| {
            let damage = damage.strip_prefix(&format!("{} (set aside): ", one.name)).unwrap_or(damage);
            format!(" ({damage})")
        });
        let damage = damage.unwrap_or_default();
        format!("  set aside: {}{damage}\n", one.name)
    };
    let lines: String = aside.iter().map(line).collect();
    let damaged = aside.iter().filter(|one| one.damage.is_some()).count();
    lines
        + match damaged {
            _ if aside.is_empty() => "",
            0 => "  `apad versions adopt` takes them in\n",
            all if all == aside.len() => "  what is damaged or no version stays aside\n",
            _ => "  `apad versions adopt NAME` takes in one that is whole\n",
        }
}

/// The files of a version, and their damage.
pub fn files(record: &VersionRecord) -> String {
    let mut rows = Vec::new();
    if record.removed {
        return "files           were removed (publish.keep, or a user was forgotten); this record stays\n".to_owned();
    }
    let bytes: u64 = record.files.values().sum();
    if bytes == 0 && record.damage.is_none() {
        return String::new();
    }
    rows.push(("files", format!("{} of {bytes} bytes", record.files.len())));
    rows.extend(record.files.iter().map(|(name, size)| ("", format!("{name} {size}"))));
    if let Some(damage) = &record.damage {
        rows.push(("damaged", damage.clone()));
    }
    rows.iter().map(|(name, value)| format!("{name:15} {value}\n")).collect()
}
