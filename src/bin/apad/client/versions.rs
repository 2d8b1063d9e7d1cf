//! Calls of the daemon about versions. Decides nothing.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use apa::engine::{Adopted, AsideVersion, VersionRecord};
use apa::overwrite::{Form, check_target};
use apa::types::{PolicyVersion, VersionInfo};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::Client;

impl Client {
    /// All versions, oldest first.
    pub async fn versions(&self) -> Result<Vec<VersionInfo>> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<VersionInfo>,
        }
        Ok(self.call::<List>(Method::GET, "/v1/policy/versions", None).await?.data)
    }

    /// A version with the verdict over it.
    pub async fn version(&self, version: PolicyVersion) -> Result<VersionRecord> {
        self.call(Method::GET, &format!("/v1/policy/versions/{version}"), None).await
    }

    /// Versions that were set aside.
    pub async fn set_aside(&self) -> Result<Vec<AsideVersion>> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<AsideVersion>,
        }
        Ok(self.call::<List>(Method::GET, "/v1/policy/aside", None).await?.data)
    }

    /// Adopts the version that was set aside under that name, or all of them.
    pub async fn adopt(&self, name: Option<&str>) -> Result<Vec<Adopted>> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Adopted>,
        }
        Ok(self.call::<List>(Method::POST, "/v1/policy/adopt", Some(json!({"name": name}))).await?.data)
    }

    /// Serves `version` from now on, as adapter or as `whole` merged weights.
    pub async fn activate(&self, version: PolicyVersion, whole: bool) -> Result<PolicyVersion> {
        let body = json!({"version": version, "whole": whole});
        Ok(self.call::<Activated>(Method::POST, "/v1/policy/activate", Some(body)).await?.policy_version)
    }

    /// Serves the active version's parent from now on.
    pub async fn rollback(&self) -> Result<PolicyVersion> {
        Ok(self.call::<Activated>(Method::POST, "/v1/policy/rollback", None).await?.policy_version)
    }

    /// Writes a version's files into one file, and returns its length in bytes. It is written beside its place first,
    /// so that a broken one never has its name.
    pub async fn snapshot(&self, version: PolicyVersion, file: &Path) -> Result<u64> {
        let file = &check_target(file, Form::Snapshot, &[])?;
        let mut response = self.send(Method::GET, &format!("/v1/policy/versions/{version}/snapshot"), None).await?;
        let mut aside = file.to_path_buf().into_os_string();
        aside.push(".part");
        let aside = Path::new(&aside);
        let written = async {
            // One that an earlier try left may be open to others.
            let _ = std::fs::remove_file(aside);
            let mut out = File::create_new(aside)?;
            let mut bytes = 0;
            while let Some(chunk) = response.chunk().await? {
                out.write_all(&chunk)?;
                bytes += chunk.len() as u64;
            }
            out.sync_all()?;
            std::fs::rename(aside, file)?;
            anyhow::Ok(bytes)
        };
        let written = written.await.with_context(|| format!("writing {}", file.display()));
        if written.is_err() {
            // It may not be there yet.
            let _ = std::fs::remove_file(aside);
        }
        written
    }

    /// Makes a new version of a snapshot's file, and serves it.
    pub async fn restore(&self, file: &Path) -> Result<PolicyVersion> {
        let reading = || format!("reading {}", file.display());
        if !std::fs::metadata(file).with_context(reading)?.is_file() {
            bail!("{} is no regular file, expected what `apad versions snapshot` wrote", file.display());
        }
        let content = std::fs::read(file).with_context(reading)?;
        let request = self.http.post(format!("{}/v1/policy/restore", self.base)).body(content);
        let response = self.answered(request, "/v1/policy/restore").await;
        let response = response.with_context(|| file.display().to_string())?;
        Ok(response.json::<Activated>().await?.policy_version)
    }
}

#[derive(Deserialize)]
struct Activated {
    policy_version: PolicyVersion,
}
