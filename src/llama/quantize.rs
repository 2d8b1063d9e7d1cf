//! Rewrites a model file in another number format. Never touches the input, and writes the output whole or not at all.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::str::FromStr;

use llama_cpp_sys_2 as sys;

use super::guard::{self, guarded};
use super::model::backend;
use super::validate;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorType};

/// The number format of a file, by llama.cpp's name; `q4_k_m` is a mixture of formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType(usize);

/// llama.cpp's name and number (llama.h). Those that need an importance matrix are not here.
const TYPES: [(&str, sys::llama_ftype); 19] = [
    ("f32", sys::LLAMA_FTYPE_ALL_F32),
    ("f16", sys::LLAMA_FTYPE_MOSTLY_F16),
    ("bf16", sys::LLAMA_FTYPE_MOSTLY_BF16),
    ("q8_0", sys::LLAMA_FTYPE_MOSTLY_Q8_0),
    ("q6_k", sys::LLAMA_FTYPE_MOSTLY_Q6_K),
    ("q5_k_m", sys::LLAMA_FTYPE_MOSTLY_Q5_K_M),
    ("q5_k_s", sys::LLAMA_FTYPE_MOSTLY_Q5_K_S),
    ("q5_1", sys::LLAMA_FTYPE_MOSTLY_Q5_1),
    ("q5_0", sys::LLAMA_FTYPE_MOSTLY_Q5_0),
    ("q4_k_m", sys::LLAMA_FTYPE_MOSTLY_Q4_K_M),
    ("q4_k_s", sys::LLAMA_FTYPE_MOSTLY_Q4_K_S),
    ("q4_1", sys::LLAMA_FTYPE_MOSTLY_Q4_1),
    ("q4_0", sys::LLAMA_FTYPE_MOSTLY_Q4_0),
    ("iq4_nl", sys::LLAMA_FTYPE_MOSTLY_IQ4_NL),
    ("iq4_xs", sys::LLAMA_FTYPE_MOSTLY_IQ4_XS),
    ("q3_k_l", sys::LLAMA_FTYPE_MOSTLY_Q3_K_L),
    ("q3_k_m", sys::LLAMA_FTYPE_MOSTLY_Q3_K_M),
    ("q3_k_s", sys::LLAMA_FTYPE_MOSTLY_Q3_K_S),
    ("q2_k", sys::LLAMA_FTYPE_MOSTLY_Q2_K),
];

impl FileType {
    /// The names of all formats, the finest first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TYPES.iter().map(|(name, _)| *name)
    }

    /// llama.cpp's name, in lower case.
    pub fn name(self) -> &'static str {
        TYPES[self.0].0
    }
}

impl FromStr for FileType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let place = TYPES.iter().position(|(known, _)| known.eq_ignore_ascii_case(name));
        place.map(Self).ok_or_else(|| {
            let known: Vec<&str> = Self::names().collect();
            Error::arg(format!("the type {name:.40} is not known, expected one of {}", known.join(", ")))
        })
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Writes the model `from` to `to` with its matrices in `kind`; rows that don't fit a format get a finer one. Rounded
/// values are rounded again, so precision that `from` lost stays lost. 0 threads: all cores.
///
/// # Errors
/// `Model` if `from` is not a whole model or has non-finite numbers, `Arg` if `to` is `from`, `Io` if writing fails.
pub fn quantize(from: &Path, to: &Path, kind: FileType, threads: u32) -> Result<()> {
    let doing = format!("writing {} as {kind}", to.display());
    write(from, to, kind, threads, &doing).map_err(|e| e.context(doing))
}

fn write(from: &Path, to: &Path, kind: FileType, threads: u32, doing: &str) -> Result<()> {
    backend();
    check(&Gguf::open(from)?)?;
    let to = &crate::overwrite::check_output(to, &[from])?;
    let mut beside = to.as_os_str().to_owned();
    beside.push(format!(".{}.partial", std::process::id()));
    let beside = Path::new(&beside);
    // llama.cpp doesn't say why it can't open a file.
    let made = File::create(beside).map_err(Error::from).and_then(|_| {
        run(from, beside, kind, threads, doing)?;
        // llama.cpp misses some failed writes; a file that opens is as long as its table says.
        Gguf::open(beside)?;
        File::open(beside)?.sync_all()?;
        fs::rename(beside, to)?;
        crate::gguf::sync_folder(to)
    });
    if made.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(beside);
    }
    made
}

fn run(from: &Path, to: &Path, kind: FileType, threads: u32, doing: &str) -> Result<()> {
    let (input, output) = (terminated(from)?, terminated(to)?);
    // SAFETY: only reads a default structure.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.nthread = i32::try_from(threads).unwrap_or(i32::MAX).min(512);
    params.ftype = TYPES[kind.0].1;
    params.allow_requantize = true;
    // SAFETY: paths and parameters outlive the call; the file was checked for what llama.cpp would assert.
    let status =
        guarded(doing, || unsafe { guard::llama_model_quantize(input.as_ptr(), output.as_ptr(), &raw const params) })?;
    match status {
        0 => Ok(()),
        _ => Err(Error::model("llama.cpp refused; its log says why (numbers that are not finite, or a full disk?)")),
    }
}

fn terminated(path: &Path) -> Result<CString> {
    let text = path.to_str().and_then(|p| CString::new(p).ok());
    text.ok_or_else(|| Error::arg(format!("{}: the path is not valid UTF-8", path.display())))
}

fn check(file: &Gguf) -> Result<()> {
    validate::model(file)?;
    // llama.cpp pads to 32 bytes, whatever the metadata that it copies says.
    match file.opt_u32("general.alignment")? {
        None | Some(32) => {}
        Some(n) => {
            return Err(Error::unsupported(format!("{}: its alignment is {n}, expected 32", file.path().display())));
        }
    }
    // llama.cpp throws late on types without a decoder; F64 and integers are never weights.
    let odd = |kind: TensorType| matches!(kind.name(), "I8" | "I16" | "I32" | "I64" | "F64");
    match file.tensors().iter().find(|t| t.shape().len() > 1 && odd(t.kind())) {
        Some(t) => Err(Error::unsupported(format!("tensor {} is {}, expected a weight", t.name(), t.kind().name()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_by_name_in_any_case_and_others_are_named() {
        for name in FileType::names() {
            assert_eq!(name.to_uppercase().parse::<FileType>().unwrap().to_string(), name);
        }
        let message = "q4_k".parse::<FileType>().unwrap_err().message().to_owned();
        assert!(message.contains("q4_k is not known") && message.contains("q4_k_m"), "{message}");
    }
}
