//! The key file: who may ask, and as what. Keeps hashes of keys rather than keys, and judges no request.
//!
//! A line is `NAME client|operator sha256:HEX`, perhaps with ` user=USER` behind it. The hash is a fast one: the keys
//! are 256 random bits, which nobody guesses, where a slow hash protects passwords that people think up; the file takes
//! none of those. A line of one word is a key itself, an operator's, as earlier builds had them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files;
use crate::files::private_file;
use crate::overwrite::{Form, check_target};

/// Size limit of a key file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Longest name of a key, in characters.
const MAX_NAME: usize = 64;
/// Fewest bytes of a key that the file holds itself: a shorter one is a password, at which anyone on the network may
/// guess.
pub(super) const LEAST_PLAIN: usize = 16;
/// What keys begin with, so that a leaked one is recognized.
const PREFIX: &str = "apad-";

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Generating; rating, seeing and forgetting what was made with the key, or for the user that it names.
    Client,
    /// Everything.
    Operator,
}

impl std::str::FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "client" => Ok(Scope::Client),
            "operator" => Ok(Scope::Operator),
            other => Err(Error::arg(format!("the scope is {other:?}, expected client or operator"))),
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Scope::Client => "client",
            Scope::Operator => "operator",
        })
    }
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Its name, which no other key has.
    pub name: String,
    /// What it allows.
    pub scope: Scope,
    /// The user that a client key stands for, if it is one person's.
    pub user: Option<String>,
    /// Whether the file holds the key itself, as those of earlier builds do.
    pub plain: bool,
    /// Whether it is the key itself and so short that it could be guessed.
    #[serde(skip)]
    pub(super) short: bool,
    /// SHA-256 of the key.
    #[serde(skip)]
    pub(super) hash: [u8; 32],
}

/// The keys of a file, in its order.
///
/// # Errors
/// `Arg` for a line that is none, which is named, or for a name that stands there twice; `Io` if the file can't be
/// read.
pub fn read_keys(path: &Path) -> Result<Vec<Key>> {
    let at = |e: std::io::Error| Error::from(e).context(format!("key file {}", path.display()));
    parse(path, &text_of(&mut files::open(path).map_err(at)?).map_err(at)?)
}

/// Adds a key to the file, which is made if it is missing, and returns it: nobody can tell it later.
///
/// # Errors
/// `Arg` for a name that is taken or is none, or a user for an operator; else as [`read_keys`].
pub fn add_key(path: &Path, name: &str, scope: Scope, user: Option<&str>) -> Result<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(word) {
        let expected = format!("1 to {MAX_NAME} of the characters a-z, A-Z, 0-9, '.', '_' and '-'");
        return Err(Error::arg(format!("the name is {name:?}, expected {expected}")));
    }
    if user.is_some() && scope == Scope::Operator {
        return Err(Error::arg("an operator's key speaks for any user, expected scope client beside a user"));
    }
    if let Some(user) = user.filter(|user| user.is_empty() || user.trim() != *user || user.contains(char::is_control)) {
        return Err(Error::arg(format!(
            "the user is {user:?}, expected a name without control characters or outer spaces"
        )));
    }
    let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
    let user = user.map(|user| format!(" user={user}")).unwrap_or_default();
    change(path, |keys, mut text| {
        if keys.iter().any(|key| key.name == name) {
            return Err(Error::arg(format!(
                "there is a key {name:?} already, expected another name or `revoke` first"
            )));
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(format!("{text}{name} {scope} sha256:{}{user}\n", hex(&hash(&key))))
    })?;
    Ok(key)
}

/// Takes the key of that name out of the file. A daemon that reads the file refuses it from then on.
///
/// # Errors
/// `Arg` if there is no such key; else as [`read_keys`].
pub fn revoke_key(path: &Path, name: &str) -> Result<()> {
    change(path, |keys, text| {
        if !keys.iter().any(|key| key.name == name) {
            let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
            return Err(Error::arg(format!("there is no key {name:?}, expected one of {}", names.join(", "))));
        }
        let kept = text
            .lines()
            .enumerate()
            .filter(|(n, line)| !key_of(*n, line).is_ok_and(|key| key.is_some_and(|key| key.name == name)));
        Ok(kept.map(|(_, line)| format!("{line}\n")).collect())
    })
}

/// The hash that the file keeps of a key.
pub(super) fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn parse(path: &Path, text: &str) -> Result<Vec<Key>> {
    let mut keys: Vec<Key> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let at = |e: Error| e.context(format!("{}:{}", path.display(), n + 1));
        let Some(key) = key_of(n, line).map_err(at)? else { continue };
        if keys.iter().any(|other| other.name == key.name) {
            return Err(at(Error::arg(format!("the name {:?} stands there twice, expected each once", key.name))));
        }
        keys.push(key);
    }
    Ok(keys)
}

/// The key of a line, if it holds one.
fn key_of(line_number: usize, line: &str) -> Result<Option<Key>> {
    let expected =
        || Error::arg("the line is no key, expected NAME client|operator sha256:HEX, perhaps with user=USER");
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    // No key, but a line of JSON: such a file is something else.
    if line.contains(['"', '{', '}', '[', ']', ',']) && !line.contains("sha256:") {
        return Err(expected());
    }
    let Some((name, rest)) = line.split_once(char::is_whitespace) else {
        let name = format!("line-{}", line_number + 1);
        let short = line.len() < LEAST_PLAIN;
        return Ok(Some(Key { name, scope: Scope::Operator, user: None, plain: true, short, hash: hash(line) }));
    };
    let (scope, rest) = rest.trim_start().split_once(char::is_whitespace).ok_or_else(expected)?;
    let (digest, user) = match rest.trim_start().split_once(char::is_whitespace) {
        Some((digest, user)) => (digest, Some(user.trim().strip_prefix("user=").ok_or_else(expected)?.to_owned())),
        None => (rest.trim_start(), None),
    };
    let hash = digest.strip_prefix("sha256:").and_then(unhex).ok_or_else(expected)?;
    Ok(Some(Key { name: name.to_owned(), scope: scope.parse()?, user, plain: false, short: false, hash }))
}

/// Writes the file anew, whole or not at all; others who change it wait meanwhile.
fn change(path: &Path, edit: impl FnOnce(&[Key], String) -> Result<String>) -> Result<()> {
    let at = |e: std::io::Error| Error::from(e).context(format!("key file {}", path.display()));
    let path = &check_target(path, Form::Keys, &[])?;
    let mut file = locked(path).map_err(at)?;
    let text = text_of(&mut file).map_err(at)?;
    let text = edit(&parse(path, &text)?, text)?;
    let beside = PathBuf::from(format!("{}.partial", path.display()));
    let write = || {
        let mut new = private_file().open(&beside)?;
        new.set_len(0)?;
        as_before(&new, &file.metadata()?)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(at)
}

/// The file, locked; it is still the one of that name.
fn locked(path: &Path) -> std::io::Result<File> {
    loop {
        let file = private_file().open(path)?;
        file.lock()?;
        if same_file(&file.metadata()?, &fs::metadata(path)?) {
            return Ok(file);
        }
    }
}

/// Gives the new file the old one's owner and mode: whoever changes the keys is often not who serves.
#[cfg(unix)]
fn as_before(new: &File, old: &fs::Metadata) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let is = new.metadata()?;
    if (is.uid(), is.gid()) != (old.uid(), old.gid()) {
        fchown(new, Some(old.uid()), Some(old.gid()))?;
    }
    new.set_permissions(old.permissions())
}

#[cfg(not(unix))]
fn as_before(_: &File, _: &fs::Metadata) -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}

fn text_of(file: &mut File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_added_told_once_and_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, "# staff\n\n  old-one").unwrap();
        let key = add_key(&path, "app", Scope::Client, Some("ann of kent")).unwrap();
        add_key(&path, "boss", Scope::Operator, None).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains(&key));
        let keys = read_keys(&path).unwrap();
        let told: Vec<_> = keys.iter().map(|k| (k.name.as_str(), k.scope, k.user.as_deref(), k.plain)).collect();
        let expected = [
            ("line-3", Scope::Operator, None, true),
            ("app", Scope::Client, Some("ann of kent"), false),
            ("boss", Scope::Operator, None, false),
        ];
        assert_eq!(told, expected);
        assert_eq!((keys[0].hash, keys[1].hash), (hash("old-one"), hash(&key)));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        }
        revoke_key(&path, "app").unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# staff\n\n  old-one\nboss operator sha256:"), "{text}");
        assert!(!dir.path().join("keys.partial").exists());
    }

    #[test]
    fn what_cannot_be_a_key_is_refused_and_leaves_the_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        add_key(&path, "app", Scope::Client, None).unwrap();
        let before = fs::read(&path).unwrap();
        for (name, scope, user, part) in [
            ("app", Scope::Client, None, "already"),
            ("a b", Scope::Client, None, "the name is \"a b\""),
            ("", Scope::Client, None, "the name is \"\""),
            ("boss", Scope::Operator, Some("ann"), "speaks for any user"),
            ("b", Scope::Client, Some("ann\nboss operator"), "control characters"),
        ] {
            let error = add_key(&path, name, scope, user).unwrap_err();
            assert!(error.message().contains(part), "{error}");
        }
        assert!(revoke_key(&path, "nobody").unwrap_err().message().contains("expected one of app"));
        assert_eq!(fs::read(&path).unwrap(), before);
        for other in ["{\"prompt\":\"p\"}\n", "[1]\n", "a,b\n1,2\n", "\"word\"\n"] {
            let pairs = dir.path().join("pairs.jsonl");
            fs::write(&pairs, other).unwrap();
            let error = add_key(&pairs, "k", Scope::Client, None).unwrap_err();
            assert!(error.message().contains("pairs.jsonl:1: the line is no key"), "{error}");
            assert_eq!(fs::read_to_string(&pairs).unwrap(), other);
        }
        for (line, part) in [
            ("app everything sha256:00", "the scope is \"everything\""),
            ("app client md5:00", "the line is no key"),
            ("app client sha256:0g", "the line is no key"),
            ("app client", "the line is no key"),
        ] {
            let digits = "0".repeat(64);
            fs::write(&path, format!("x client sha256:{digits}\n{}\n", line.replace(":00", &format!(":{digits}"))))
                .unwrap();
            let error = read_keys(&path).unwrap_err();
            assert!(error.message().contains("keys:2: ") && error.message().contains(part), "{error}");
        }
    }
}
