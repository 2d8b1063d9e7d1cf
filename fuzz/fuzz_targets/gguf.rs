//! A model or adapter file that is none, cut or damaged.
#![no_main]

use std::io::Write;

use apa::gguf::Gguf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("writing it");
    let Ok(gguf) = Gguf::open(file.path()) else { return };
    let _ = gguf.str("general.architecture");
    let _ = gguf.opt_strings("tokenizer.ggml.tokens");
    let _ = gguf.opt_i32s("tokenizer.ggml.token_type");
    for tensor in gguf.tensors() {
        let _ = (tensor.name().len(), tensor.shape().len());
    }
});
