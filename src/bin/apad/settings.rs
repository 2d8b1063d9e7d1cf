//! From flags to the library's settings: `apad.toml`, then `APAD_*` variables, then flags. Checks nothing itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;
use apa::config::{Builder, Config};
use apa::ledger::Ledger;
use clap::Args;

use crate::WrongUse;

/// Variables of the command line itself, which are no settings of the engine.
const OWN_VARIABLES: [&str; 6] = ["APAD_CACHE", "APAD_KEY", "APAD_LOG", "APAD_LOG_JSON", "APAD_SOURCES", "APAD_URL"];

/// A settings file and overrides of any key.
#[derive(Args, Clone, Debug, Default)]
pub struct Overrides {
    /// Settings file (default: apad.toml of this folder, if there is one)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets any key, like --set train.lambda=0.2 (may be given often)
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_override)]
    overrides: Vec<(String, String)>,
}

impl Overrides {
    /// The settings; `flags` are the command's own, and win over everything but `--set`.
    pub fn build(&self, flags: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Result<Config> {
        checked(self.builder(flags)?)
    }

    /// The settings before they are checked as a whole.
    pub fn builder(&self, flags: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Result<Builder> {
        self.layers(flags).map_err(wrong_use)
    }

    fn layers(&self, flags: impl IntoIterator<Item = (&'static str, Option<String>)>) -> apa::Result<Builder> {
        let mut builder = Config::builder();
        let default = Path::new("apad.toml");
        if let Some(file) = self.config.as_deref().or_else(|| default.exists().then_some(default)) {
            builder = builder.file(file)?;
        }
        builder = builder.env(variables())?;
        for (key, text) in flags {
            if let Some(text) = text {
                builder = builder.set_text(key, &text)?;
            }
        }
        for (key, text) in &self.overrides {
            builder = builder.set_text(key, text)?;
        }
        Ok(builder)
    }
}

/// The database that the settings name for the ledger, unless a data folder has one of its own.
pub fn ledger_url(data: &Path) -> Result<Option<String>> {
    if Ledger::exists(data) {
        return Ok(None);
    }
    Ok(Overrides::default().build([])?.ledger.url)
}

/// The finished settings, if they are valid together.
pub fn checked(builder: Builder) -> Result<Config> {
    builder.build().map_err(wrong_use)
}

/// An invalid setting is wrong use of the command.
pub fn wrong_use(error: apa::Error) -> anyhow::Error {
    match error.code() {
        apa::Code::Arg => WrongUse(error.to_string()).into(),
        _ => error.into(),
    }
}

fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !OWN_VARIABLES.iter().any(|own| name == own))
}

fn parse_override(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, like train.lambda=0.2")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}
