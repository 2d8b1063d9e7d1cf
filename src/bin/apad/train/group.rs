//! The records of an experiment, read back from its folder. Changes nothing.

use std::path::Path;

use anyhow::{Context, Result, bail};
use apa::experiment::{METRICS_FILE, Plan, StepRecord, seed_folder};

/// An experiment: its seeds' records.
pub struct Group {
    /// The name of its folder.
    pub name: String,
    /// The plan of the runs.
    pub plan: Plan,
    /// Each with its steps, in order.
    pub seeds: Vec<(u64, Vec<StepRecord>)>,
}

impl Group {
    /// The records of the experiment in `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let plan = Plan::read(dir)?;
        let mut seeds = Vec::new();
        for &seed in &plan.seeds {
            let path = seed_folder(dir, seed).join(METRICS_FILE);
            let text = match std::fs::read_to_string(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                text => text.with_context(|| format!("reading {}", path.display()))?,
            };
            let mut records = Vec::new();
            // A running experiment may still be writing its last line.
            for (index, line) in text.split_inclusive('\n').enumerate().filter(|(_, l)| l.ends_with('\n')) {
                let record = serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), index + 1))?;
                records.push(record);
            }
            if !records.is_empty() {
                seeds.push((seed, records));
            }
        }
        if seeds.is_empty() {
            bail!("{} has no step to show", dir.display());
        }
        let full = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let name = full.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned());
        Ok(Self { name, plan, seeds })
    }
}
