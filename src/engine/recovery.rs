//! Handles versions that are damaged, missing or not on record at a start: moves them aside or falls back, with an
//! alert. Never removes one.

use super::alerts::{AlertKind, Alerts};
use super::weights::weights_of;
use crate::error::{Code, Result};
use crate::ledger::Ledger;
use crate::publish::{Aside, VersionStore};
use crate::scheduler::Weights;
use crate::types::{PolicyVersion, VersionInfo};

/// Moves version folders aside that the ledger doesn't know, and tells of all that are there.
pub(super) fn set_aside(store: &VersionStore, ledger: &Ledger, alerts: &Alerts) -> Result<()> {
    store.remove_leftovers()?;
    let known: Vec<PolicyVersion> = ledger.versions()?.iter().map(|v| v.version).collect();
    store.set_aside(&known)?;
    let aside = store.aside()?;
    if !aside.is_empty() {
        tell_aside(&aside, alerts);
    }
    Ok(())
}

/// Raises the alert about versions that are set aside.
pub(super) fn tell_aside(aside: &[Aside], alerts: &Alerts) {
    let names: Vec<&str> = aside.iter().map(|one| one.name.as_str()).collect();
    let (count, names) = (names.len(), names.join(", "));
    let damaged = aside.iter().filter(|one| one.verify().is_err()).count();
    let then = match damaged {
        0 => "`apad versions adopt` takes them in again".to_owned(),
        all if all == count => "they are damaged or no versions, so that they can't be taken in".to_owned(),
        some => format!("`apad versions adopt` takes in those that are whole, but {some} are damaged or no versions"),
    };
    alerts.raise(
        AlertKind::VersionsAside,
        format!(
            "{count} version folder(s) in the data folder are not on record and were moved to versions/aside: \
             {names}; {then}"
        ),
    );
}

/// The weights to start with: those of the active version, or of its nearest ancestor with an intact adapter, which
/// then becomes the active version where this server decides (`serve.role`).
pub(super) fn first_weights(store: &VersionStore, ledger: &Ledger, alerts: &Alerts, decides: bool) -> Result<Weights> {
    let active = ledger.active()?;
    let (weights, damage) = whole(store, &ledger.versions()?, active)?;
    if let Some(damage) = damage.filter(|_| decides) {
        let version = weights.version;
        ledger.set_active(version)?;
        alerts.raise(
            AlertKind::FellBack,
            format!(
                "version {active} was served last and can't be any more ({damage}); version {version} serves in its \
                 place, and learning goes on from there. Once its files are restored, `apad versions activate \
                 {active}` serves it again"
            ),
        );
    }
    Ok(weights)
}

/// The weights of `version` or of its nearest ancestor with an intact adapter, and the damage to `version`.
fn whole(store: &VersionStore, versions: &[VersionInfo], version: PolicyVersion) -> Result<(Weights, Option<String>)> {
    let (mut candidate, mut damage) = (version, None);
    loop {
        match weights_of(store, candidate) {
            Ok(weights) => return Ok((weights, damage)),
            // An unreadable disk is not damage, nor is a manifest from a newer build.
            Err(error) if !matches!(error.code(), Code::Io | Code::Arg) => return Err(error),
            Err(error) => {
                tracing::error!(version = candidate.0, %error, "a version can't be served");
                damage.get_or_insert(error.message().to_owned());
            }
        }
        let parent = versions.iter().find(|v| v.version == candidate).and_then(|v| v.parent);
        // Parents are older; a record that says otherwise must not cause an endless loop.
        candidate = parent.filter(|parent| *parent < candidate).unwrap_or(PolicyVersion::INITIAL);
    }
}
