//! The versions of a data folder, without a model: lists, shows and adopts them, and sets the one that the next start
//! serves. Never serves or trains.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::weights::weights_of;
use crate::error::{Error, Result};
use crate::ledger::{Decides, Ledger, Place};
use crate::publish::{Aside, Manifest, VersionStore};
use crate::trainer::OPTIMIZER_FILES;
use crate::types::{PolicyVersion, Ruling, StoredVerdict, UnixMillis, VersionInfo};

/// A data folder that no engine holds.
pub struct Archive {
    ledger: Ledger,
    store: VersionStore,
}

/// What is known of a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct VersionRecord {
    /// Its row: parent, time, measurements.
    #[serde(flatten)]
    pub info: VersionInfo,
    /// Its ancestors, the nearest first.
    pub lineage: Vec<PolicyVersion>,
    /// The verdict on it; none on a version that no gate has judged, such as the initial model.
    pub verdict: Option<StoredVerdict>,
    /// Versions that were trained from it.
    pub children: Vec<PolicyVersion>,
    /// Bytes of its files, by name; empty for the initial model, which has none.
    pub files: BTreeMap<String, u64>,
    /// Whether its files were removed on purpose: by `publish.keep`, or since it learned from a user who was forgotten.
    #[serde(default)]
    pub removed: bool,
    /// What is wrong with its files, if anything.
    pub damage: Option<String>,
}

impl VersionRecord {
    /// Whether its training state is on disk, without which training goes on from it with fresh moments.
    pub fn has_state(&self) -> bool {
        OPTIMIZER_FILES.iter().all(|name| self.files.contains_key(*name))
    }
}

/// A version that was set aside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct AsideVersion {
    /// The folder's name, which `adopt` takes.
    pub name: String,
    /// When it was made.
    pub created: Option<UnixMillis>,
    /// Samples and mean reward of the batch that it was trained on.
    pub samples: Option<usize>,
    /// What is wrong with its files, if anything.
    pub damage: Option<String>,
}

/// A version that was adopted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Adopted {
    /// The folder's name.
    pub name: String,
    /// Its number from now on.
    pub version: PolicyVersion,
}

impl Archive {
    /// Opens a data folder.
    ///
    /// # Errors
    /// `Arg` if it isn't one, `Busy` if an engine holds it (named with its process id), `Io` for the disk.
    pub fn open<'a>(place: impl Into<Place<'a>>) -> Result<Self> {
        let place = place.into();
        let dir = place.dir();
        if !Ledger::exists(place) {
            return Err(Error::arg(format!("{} is no data folder, expected one with a ledger", dir.display())));
        }
        Ok(Self { ledger: Ledger::open(place)?, store: VersionStore::open(dir)? })
    }

    /// All versions, oldest first.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn versions(&self) -> Result<Vec<VersionInfo>> {
        self.ledger.versions()
    }

    /// The record of a version.
    ///
    /// # Errors
    /// `Arg` for an unknown version, `Io` if the ledger can't be read.
    pub fn version(&self, version: PolicyVersion) -> Result<VersionRecord> {
        record(&self.store, &self.ledger, version)
    }

    /// Makes a version the one that the next start serves. The one that is so already refuses what is proposed.
    ///
    /// # Errors
    /// `Arg` for an unknown version, `Io` if its adapter is gone or damaged.
    pub fn activate(&self, version: PolicyVersion) -> Result<()> {
        info_of(&self.ledger.versions()?, version)?;
        weights_of(&self.store, version)?;
        self.ledger.set_active_as(version, Decides::Person)
    }

    /// Makes the active version's parent the one that the next start serves, and returns it.
    ///
    /// # Errors
    /// `Arg` if the initial model is active; else as [`Archive::activate`].
    pub fn rollback(&self) -> Result<PolicyVersion> {
        let parent = parent_of_active(&self.ledger.versions()?)?;
        self.activate(parent)?;
        Ok(parent)
    }

    /// The versions that were set aside.
    ///
    /// # Errors
    /// `Io` if the folder can't be read.
    pub fn set_aside(&self) -> Result<Vec<AsideVersion>> {
        aside(&self.store)
    }

    /// Adopts the version that was set aside under that name, or all of them. None is activated.
    ///
    /// # Errors
    /// `Arg` for an unknown name; where none could be adopted, why not the first: `Model` for a version of another
    /// base, `Io` if it is damaged or the disk fails.
    pub fn adopt(&self, name: Option<&str>) -> Result<Vec<Adopted>> {
        // A start moves aside what isn't on record; since the record was lost there may have been none.
        let known: Vec<PolicyVersion> = self.ledger.versions()?.iter().map(|v| v.version).collect();
        self.store.set_aside(&known)?;
        adopt(&self.store, &self.ledger, name)
    }
}

pub(super) fn info_of(versions: &[VersionInfo], version: PolicyVersion) -> Result<&VersionInfo> {
    let found = versions.iter().find(|v| v.version == version);
    found.ok_or_else(|| Error::unknown_id(format!("there is no policy version {version}")))
}

pub(super) fn parent_of_active(versions: &[VersionInfo]) -> Result<PolicyVersion> {
    let parent = versions.iter().find(|v| v.active).and_then(|v| v.parent);
    parent.ok_or_else(|| Error::arg("the initial model is active, there is nothing to roll back to"))
}

/// A version and its ancestors, the nearest first.
pub(super) fn lineage(versions: &[VersionInfo], version: PolicyVersion) -> Vec<PolicyVersion> {
    let (mut lineage, mut last) = (vec![version], version);
    let parent = |version| info_of(versions, version).ok().and_then(|v| v.parent);
    while let Some(next) = parent(last).filter(|next| *next < last) {
        lineage.push(next);
        last = next;
    }
    lineage
}

pub(super) fn record(store: &VersionStore, ledger: &Ledger, version: PolicyVersion) -> Result<VersionRecord> {
    let versions = ledger.versions()?;
    let info = info_of(&versions, version)?.clone();
    let lineage = lineage(&versions, version).split_off(1);
    let children = versions.iter().filter(|v| v.parent == Some(version)).map(|v| v.version).collect();
    let verdict = ledger.verdict_of(version)?;
    let unlearned = verdict.as_ref().is_some_and(|verdict| verdict.ruling == Ruling::Unlearned);
    let removed = !store.path(version).exists() && (unlearned || ledger.removed()?.contains(&version));
    let mut files = BTreeMap::new();
    let mut damage = None;
    if version != PolicyVersion::INITIAL && !removed {
        if let Ok(manifest) = Manifest::read(&store.path(version)) {
            files = manifest.files.into_iter().map(|(name, sum)| (name, sum.size)).collect();
        }
        damage = store.verify(version).err().map(|e| e.message().to_owned());
    }
    Ok(VersionRecord { info, lineage, verdict, children, files, removed, damage })
}

pub(super) fn aside(store: &VersionStore) -> Result<Vec<AsideVersion>> {
    let of = |aside: Aside| {
        let about = Manifest::read(&aside.path).ok().map(|manifest| manifest.about);
        AsideVersion {
            created: about.as_ref().map(|about| about.created),
            samples: about.as_ref().map(|about| about.metrics.samples),
            damage: aside.verify().err().map(|e| e.message().to_owned()),
            name: aside.name,
        }
    };
    Ok(store.aside()?.into_iter().map(of).collect())
}

/// Adopts versions, each under its own number if that is above all on record, else under the next one. The parent
/// becomes the number under which it was adopted before, or the initial model if it isn't on record.
pub(super) fn adopt(store: &VersionStore, ledger: &Ledger, name: Option<&str>) -> Result<Vec<Adopted>> {
    let mut chosen = store.aside()?;
    if let Some(name) = name {
        chosen.retain(|aside| aside.name == name);
        if chosen.is_empty() {
            return Err(Error::unknown_id(format!("{name:?} was not set aside, expected a name of versions/aside")));
        }
    }
    let base = ledger.model_fingerprint()?;
    let mut now: BTreeMap<PolicyVersion, PolicyVersion> = BTreeMap::new();
    let mut adopted = Vec::new();
    let mut failed = None;
    for aside in chosen {
        match adopt_one(store, ledger, base.as_deref(), &aside, &now) {
            Ok(version) => {
                now.insert(aside.version(), version);
                tracing::info!(
                    name = aside.name,
                    version = version.0,
                    "a version that was set aside is on record again"
                );
                adopted.push(Adopted { name: aside.name, version });
            }
            // One that is damaged keeps no other out.
            Err(error) => {
                tracing::warn!(%error, name = aside.name, "a version that was set aside stays there");
                failed = failed.or(Some(error));
            }
        }
    }
    match failed {
        Some(error) if adopted.is_empty() => Err(error),
        _ => Ok(adopted),
    }
}

/// Adopts a version; `now` are the numbers that others adopted before have now.
fn adopt_one(
    store: &VersionStore,
    ledger: &Ledger,
    base: Option<&str>,
    aside: &Aside,
    now: &BTreeMap<PolicyVersion, PolicyVersion>,
) -> Result<PolicyVersion> {
    let (known, was) = (ledger.versions()?, aside.version());
    let next = ledger.next_version()?;
    let version = if was > next { was } else { next };
    let stage = store.stage(version)?;
    let mut about = stage.copy_from(aside)?.about;
    if base.is_some_and(|base| base != about.base_sha256) {
        return Err(Error::model(format!(
            "{} (set aside) is for another base model (sha256 {:.12})",
            aside.name, about.base_sha256
        )));
    }
    let parent = about.parent.unwrap_or_default();
    let on_record = known.iter().any(|v| v.version == parent);
    let parent = now.get(&parent).copied().unwrap_or(if on_record { parent } else { PolicyVersion::INITIAL });
    about.parent = Some(parent);
    let metrics = about.metrics.clone();
    let info =
        VersionInfo { version, parent: Some(parent), active: false, created: about.created, metrics, ruling: None };
    stage.commit(about)?;
    if let Err(error) = ledger.record_version(&info) {
        store.withdraw(version)?;
        return Err(error);
    }
    store.drop_aside(aside)?;
    Ok(version)
}
