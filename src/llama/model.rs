//! A loaded GGUF: vocabulary, metadata, tokenization. Never decodes.

use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use super::control::Specials;
use super::guard::{self, guarded};
use super::log;
use super::name::plain_name;
use super::validate;
use crate::durations::Durations;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::guide::{Guide, Guides};
use crate::types::{Format, TokenId};

/// llama.cpp's process-wide state, initialised once and never torn down.
pub(super) fn backend() {
    static BACKEND: OnceLock<Option<LlamaBackend>> = OnceLock::new();
    BACKEND.get_or_init(|| {
        log::send_to_tracing();
        guard::install();
        // `None` if the application initialised it already: the state is shared either way.
        LlamaBackend::init().ok()
    });
}

/// A model in memory, shared by contexts and adapters.
pub struct Model {
    pub(super) raw: *mut sys::llama_model,
    pub(super) vocab: *const sys::llama_vocab,
    path: PathBuf,
    architecture: String,
    name: String,
    template: Option<String>,
    /// The pre-tokenizer that splits text into words, if the file names one.
    pub(super) pre: Option<String>,
    pub(super) n_vocab: usize,
    placement: Placement,
    pub(super) specials: Specials,
    /// Most bytes that one token stands for.
    pub(super) longest_token: usize,
    /// Made for the first constrained answer, which takes some tenths of a second.
    guides: OnceLock<Result<Guides>>,
    /// The token with which the template ends a turn, found on first use.
    pub(super) turn_end: OnceLock<Option<TokenId>>,
}

/// Where the weights of a model lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Layers on the GPU; -1 is all.
    pub gpu_layers: i32,
    /// Whether weights may be laid out anew in memory for faster products. Otherwise they stay in the mapped file,
    /// which the trainer reads too.
    pub repack: bool,
}

// SAFETY: the model is read-only after loading. The calls that mutate it (creating contexts and adapters) go through
// `Context` and `Adapter`, whose constructors hold `MODEL_WRITES`.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

/// Held while llama.cpp mutates a model that others may read: creating contexts, creating and freeing adapters.
pub(super) static MODEL_WRITES: std::sync::Mutex<()> = std::sync::Mutex::new(());

impl Model {
    /// Loads a GGUF, memory-mapped, with weights laid out for the fastest products. The file must not be rewritten
    /// while it is loaded.
    ///
    /// # Errors
    /// `Model` if it is missing, truncated, not a GGUF, holds an adapter, or is of an architecture that llama.cpp
    /// doesn't know.
    pub fn load(path: &Path, gpu_layers: i32) -> Result<Arc<Model>> {
        Self::load_as(path, Placement { gpu_layers, repack: true })
    }

    /// The same with weights where they are wanted.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_as(path: &Path, placement: Placement) -> Result<Arc<Model>> {
        backend();
        let file = Gguf::open(path)?;
        validate::model(&file)?;
        let architecture = file.str("general.architecture")?.to_string();
        let stem = || path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let name = file.opt_str("general.name")?.map(plain_name).filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| plain_name(&stem()));
        let template = file.opt_str("tokenizer.chat_template")?.map(str::to_string);
        let pre = file.opt_str("tokenizer.ggml.pre")?.map(str::to_string);
        let c_path = path
            .to_str()
            .and_then(|p| CString::new(p).ok())
            .ok_or_else(|| Error::arg(format!("{}: the path is not valid UTF-8", path.display())))?;
        // SAFETY: only reads a default structure.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = placement.gpu_layers;
        params.use_extra_bufts = placement.repack;
        let doing = format!("loading {}", path.display());
        // SAFETY: the path is terminated and outlives the call; the file was validated.
        let raw = guarded(&doing, || unsafe { guard::llama_model_load_from_file(c_path.as_ptr(), params) })?;
        if raw.is_null() {
            return Err(Error::model(format!(
                "{}: llama.cpp can't load it (architecture \"{architecture}\"); its log says why",
                path.display()
            )));
        }
        // SAFETY: the model was just loaded; its vocabulary lives as long as it does.
        let (vocab, n_vocab) = unsafe {
            let vocab = sys::llama_model_get_vocab(raw);
            (vocab, sys::llama_vocab_n_tokens(vocab))
        };
        let mut model = Model {
            raw,
            vocab,
            path: path.into(),
            architecture,
            name,
            template,
            pre,
            n_vocab: n_vocab as usize,
            placement,
            specials: Specials::default(),
            longest_token: 1,
            guides: OnceLock::new(),
            turn_end: OnceLock::new(),
        };
        if n_vocab <= 0 {
            return Err(Error::model(format!("{}: it has no vocabulary", path.display())));
        }
        model.read_vocabulary();
        guard::give_back_freed();
        Ok(Arc::new(model))
    }

    /// Width of its hidden states, which is that of embeddings.
    pub fn width(&self) -> usize {
        // SAFETY: reads the live model.
        unsafe { sys::llama_model_n_embd(self.raw) }.max(0) as usize
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its weights were wanted.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// In whose name kernels of our own pack weights: nobody's if they stay as they are.
    pub(super) fn packs_for(&self) -> *const c_void {
        if self.placement.repack { self.raw.cast_const().cast() } else { std::ptr::null() }
    }

    /// Whether it has the same architecture and the same vocabulary.
    pub fn speaks_like(&self, other: &Model) -> bool {
        let same = |token: TokenId| {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            self.piece(token, true, &mut a);
            other.piece(token, true, &mut b);
            a == b
        };
        self.architecture == other.architecture
            && self.n_vocab == other.n_vocab
            && (0..TokenId::try_from(self.n_vocab).unwrap_or(0)).all(same)
    }

    /// `general.architecture` of the file.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `general.name` of the file, or the file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The chat template that the file carries.
    pub fn chat_template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// Number of tokens of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Context length it was trained with, in tokens.
    pub fn n_ctx_train(&self) -> u32 {
        // SAFETY: reads the live model.
        unsafe { sys::llama_model_n_ctx_train(self.raw) }.max(0) as u32
    }

    /// The vocabulary's special tokens.
    pub(super) fn specials(&self) -> &Specials {
        &self.specials
    }

    /// Appends the bytes of a token. Control tokens append nothing unless `special`.
    pub fn piece(&self, token: TokenId, special: bool, out: &mut Vec<u8>) {
        if token as usize >= self.n_vocab {
            return;
        }
        let mut buffer = [0u8; 256];
        // SAFETY: the token is in the vocabulary; the buffer is as long as said.
        let n = unsafe {
            sys::llama_token_to_piece(
                self.vocab,
                token as i32,
                buffer.as_mut_ptr().cast(),
                buffer.len() as i32,
                0,
                special,
            )
        };
        if n >= 0 {
            out.extend_from_slice(&buffer[..n as usize]);
            return;
        }
        let mut long = vec![0u8; n.unsigned_abs() as usize];
        // SAFETY: as above, with the length that llama.cpp asked for.
        let n = unsafe {
            sys::llama_token_to_piece(self.vocab, token as i32, long.as_mut_ptr().cast(), long.len() as i32, 0, special)
        };
        long.truncate(n.max(0) as usize);
        out.extend_from_slice(&long);
    }

    /// The text of tokens; bytes that are not UTF-8 are replaced.
    pub fn text(&self, tokens: &[TokenId], special: bool) -> String {
        let mut bytes = Vec::new();
        for &token in tokens {
            self.piece(token, special, &mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Constrains a new answer of this model to a format. Not for a thread that others wait for.
    ///
    /// # Errors
    /// As [`Guides::guide`].
    pub fn guide(&self, format: &Format) -> Result<Guide> {
        let guides = self.guides.get_or_init(|| {
            let tokens = 0..TokenId::try_from(self.n_vocab).unwrap_or(0);
            let ends: Vec<TokenId> = self.end_tokens().collect();
            Guides::new(tokens.map(|token| self.guided_piece(token)).collect(), &ends)
        });
        let one = |text: &str| match self.tokenize(text, false, true).ok()?.as_slice() {
            [token] => Some(*token),
            _ => None,
        };
        guides.as_ref().map_err(Clone::clone)?.guide(format, &one)
    }

    /// The times that masks of its answers took so far.
    pub fn mask_times(&self) -> Durations {
        match self.guides.get() {
            Some(Ok(guides)) => guides.mask_times(),
            _ => Durations::default(),
        }
    }

    /// A token's bytes in the form that [`Guides`] expects.
    fn guided_piece(&self, token: TokenId) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.piece(token, false, &mut bytes);
        // A leading 0xff byte, which text never contains, would mark it as a control token.
        if bytes.first() == Some(&0xff) {
            return Vec::new();
        }
        if bytes.is_empty() || self.ends(token) {
            bytes = vec![0xff];
            self.piece(token, true, &mut bytes);
        }
        bytes
    }

    /// The tokens that end a generation, in order.
    pub(super) fn end_tokens(&self) -> impl Iterator<Item = TokenId> {
        (0..TokenId::try_from(self.n_vocab).unwrap_or(0)).filter(|token| self.ends(*token))
    }

    /// Whether the token ends a generation.
    pub fn ends(&self, token: TokenId) -> bool {
        // SAFETY: the token is in the vocabulary.
        (token as usize) < self.n_vocab && unsafe { sys::llama_vocab_is_eog(self.vocab, token as i32) }
    }

    /// Beginning-of-sequence token, if there is one.
    pub fn bos(&self) -> Option<TokenId> {
        // SAFETY: reads the live vocabulary.
        TokenId::try_from(unsafe { sys::llama_vocab_bos(self.vocab) }).ok()
    }

    /// End-of-sequence token, if there is one.
    pub fn eos(&self) -> Option<TokenId> {
        // SAFETY: reads the live vocabulary.
        TokenId::try_from(unsafe { sys::llama_vocab_eos(self.vocab) }).ok()
    }

    /// The vocabulary's end-of-turn token; otherwise its end of sequence.
    pub(super) fn named_turn_end(&self) -> Option<TokenId> {
        // SAFETY: reads the live vocabulary.
        TokenId::try_from(unsafe { sys::llama_vocab_eot(self.vocab) }).ok().or_else(|| self.eos())
    }

    /// Whether llama.cpp can decode it token by token.
    pub fn is_decoder(&self) -> bool {
        // SAFETY: reads the live model.
        unsafe { sys::llama_model_has_decoder(self.raw) && !sys::llama_model_has_encoder(self.raw) }
    }

    pub(super) fn token(&self, token: TokenId) -> Result<LlamaToken> {
        if (token as usize) < self.n_vocab {
            Ok(LlamaToken::new(token as i32))
        } else {
            Err(Error::arg(format!("token {token} is outside the vocabulary of {}", self.n_vocab)))
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: contexts and adapters hold an `Arc` of the model, so none of them is left.
        unsafe {
            guard::apa_kernels_forget(self.raw.cast());
            sys::llama_model_free(self.raw);
        }
    }
}

/// Joins the bytes of successive tokens into whole codepoints.
#[derive(Default)]
pub struct TextDecoder {
    held: Vec<u8>,
}

impl TextDecoder {
    /// Adds bytes and returns the completed text. Bytes that can't become UTF-8 are replaced.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.held.clear();
                    return text;
                }
                Err(e) => {
                    let (valid, rest) = self.held.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let skip = match e.error_len() {
                        // An unfinished codepoint waits for the next token.
                        None => {
                            self.held = rest.to_vec();
                            return text;
                        }
                        Some(n) => n,
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.held = rest[skip..].to_vec();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_in_whole_codepoints() {
        let mut decoder = TextDecoder::default();
        let bytes = "aé🙂".as_bytes();
        let texts: Vec<String> = bytes.iter().map(|b| decoder.push(&[*b])).collect();
        assert_eq!(texts, ["a", "", "é", "", "", "", "🙂"]);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_and_an_unfinished_codepoint_waits() {
        let mut decoder = TextDecoder::default();
        assert_eq!(decoder.push(&[b'a', 0xff, b'b', 0xf0]), "a\u{fffd}b");
        assert_eq!(decoder.push(b"c"), "\u{fffd}c");
        assert_eq!(decoder.push(&[0xf0, 0x9f]), "");
    }
}
