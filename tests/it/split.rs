//! Models that are split over several files, as `llama-gguf-split` writes them: all of them are read, and together they
//! are the base. A tiny model.

use std::fs;
use std::path::{Path, PathBuf};

use apa::Engine;
use apa::config::Config;
use apa::gguf::{Gguf, Writer};
use apa::llama::{FileType, quantize};

use crate::support::engine::{answer, open_with, published, rate_some};
use crate::support::tiny::{TinySpec, tiny_model};

/// Splits a model into two files, each with its part of the tensors; the first has the metadata.
fn split(model: &Path) -> [PathBuf; 2] {
    let file = Gguf::open(model).unwrap();
    let all = file.tensors().len();
    [0u16, 1].map(|number| {
        let path = model.with_file_name(format!("split-0000{}-of-00002.gguf", number + 1));
        let mut part = Writer::new();
        if number == 0 {
            part.copy_metadata(&file);
        }
        part.set("split.no", number).set("split.count", 2u16).set("split.tensors.count", all as i32);
        let (first, second) = file.tensors().split_at(all / 2);
        for info in if number == 0 { first } else { second } {
            part.copy_tensor(&file, info.name()).unwrap();
        }
        part.write(&path).unwrap();
        path
    })
}

fn parts() -> (tempfile::TempDir, [PathBuf; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("tiny.gguf");
    tiny_model(&whole, &TinySpec::new("llama")).unwrap();
    let parts = split(&whole);
    (dir, parts)
}

fn open(dir: &Path, change: impl FnOnce(&mut Config)) -> apa::Result<Engine> {
    open_with(dir, |c| {
        c.model = dir.join("split-00001-of-00002.gguf");
        change(c);
    })
}

#[test]
fn a_split_model_is_served_and_trained_like_the_whole_one() {
    let (dir, parts) = parts();
    let learn = |engine: &Engine| {
        let before = answer(engine, "the", 1).text.clone();
        rate_some(engine, 16);
        let (_, metrics) = published(engine.train_step().unwrap());
        engine.shutdown();
        (before, metrics.policy_loss, metrics.candidate_kl_per_response)
    };
    let whole = learn(&open_with(dir.path(), |c| c.data = dir.path().join("whole")).unwrap());
    assert_eq!(learn(&open(dir.path(), |c| c.data = dir.path().join("split")).unwrap()), whole);

    // Written anew it is one file, which says nothing of parts.
    let out = dir.path().join("out.gguf");
    quantize(&parts[0], &out, "q8_0".parse::<FileType>().unwrap(), 1).unwrap();
    let file = Gguf::open(&out).unwrap();
    assert_eq!((file.paths().count(), file.opt_u16("split.count").unwrap().unwrap_or(0)), (1, 0));
    assert_eq!(file.tensors().len(), Gguf::open(&dir.path().join("tiny.gguf")).unwrap().tensors().len());
    let error = quantize(&parts[0], &parts[1], "q8_0".parse::<FileType>().unwrap(), 1).unwrap_err();
    assert!(error.message().contains("would be written over"), "{error}");
}

#[test]
fn a_change_in_any_part_is_another_base() {
    let (dir, parts) = parts();
    open(dir.path(), |_| ()).unwrap().shutdown();
    let mut bytes = fs::read(&parts[1]).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&parts[1], bytes).unwrap();
    let error = open(dir.path(), |_| ()).err().unwrap();
    assert!(error.message().contains("belongs to the base model"), "{error}");
}

#[test]
fn a_part_that_is_missing_or_of_another_model_is_named() {
    let (dir, parts) = parts();
    let said = |path: &Path| Gguf::open(path).unwrap_err().message().to_owned();
    assert!(said(&parts[1]).contains("it is part 2 of a model split into 2 files, expected the first of them"));
    let renamed = dir.path().join("renamed.gguf");
    fs::copy(&parts[0], &renamed).unwrap();
    assert!(said(&renamed).contains("ends with -00001-of-00002.gguf"), "{}", said(&renamed));

    let second = fs::read(&parts[1]).unwrap();
    fs::copy(&parts[0], &parts[1]).unwrap();
    assert!(said(&parts[0]).contains("split-00002-of-00002.gguf is not part 2 of 2"), "{}", said(&parts[0]));
    fs::write(&parts[1], &second[..second.len() - 100]).unwrap();
    assert!(said(&parts[0]).contains("the file is truncated"), "{}", said(&parts[0]));
    fs::remove_file(&parts[1]).unwrap();
    let error = said(&parts[0]);
    assert!(error.contains("split-00002-of-00002.gguf") && error.contains("there is no such file"), "{error}");
    assert!(open(dir.path(), |_| ()).is_err());
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_part_is_refused_at_once() {
    let (dir, parts) = parts();
    fs::remove_file(&parts[1]).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&parts[1]).status().unwrap().success());
    let error = open(dir.path(), |_| ()).map(drop).unwrap_err();
    assert!(error.message().contains("00002-of-00002.gguf: it is not a regular file"), "{error}");
}
