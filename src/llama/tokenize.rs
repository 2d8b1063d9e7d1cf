//! Tokenizes text of any length with any vocabulary. Never renders a template.

use std::ffi::CStr;
use std::sync::Mutex;

use llama_cpp_sys_2 as sys;

use super::control::{Part, Special, Specials};
use super::guard::{self, guarded};
use super::model::Model;
use super::pieces::pieces;
use super::stack::with_stack;
use super::template::Rendered;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::types::TokenId;

/// Longest text that is tokenized, in bytes.
pub(super) const TEXT_BYTES: usize = 16 << 20;
/// Stack per byte of text: where llama.cpp splits words with `std::regex`, each character of a word takes a frame of
/// 320 bytes (measured with GCC 12 at -O2 and -O3 on x86-64).
const STACK_A_BYTE: usize = 512;
/// Stack for an empty text.
const STACK_AT_LEAST: usize = 1 << 20;
/// Longest text that is tokenized on the caller's own thread, in bytes.
const SHALLOW: usize = 1024;
/// Texts of this length or more are tokenized one at a time, since a word may take half a gigabyte of stack.
const ALONE: usize = 1 << 19;
/// Held while such a text is tokenized.
static LONG_TEXT: Mutex<()> = Mutex::new(());

impl Model {
    /// Records the special tokens and the longest one.
    pub(super) fn read_vocabulary(&mut self) {
        let mut specials = Vec::new();
        let mut bytes = Vec::new();
        for token in 0..self.n_vocab as TokenId {
            bytes.clear();
            self.piece(token, true, &mut bytes);
            self.longest_token = self.longest_token.max(bytes.len());
            // SAFETY: the token is in the vocabulary, whose texts live as long as it does.
            let (kind, text) = unsafe {
                let kind = sys::llama_vocab_get_attr(self.vocab, token as i32) as u32;
                (kind, CStr::from_ptr(sys::llama_vocab_get_text(self.vocab, token as i32)))
            };
            let is = |wanted: i64| kind & wanted as u32 != 0;
            let control = is(sys::LLAMA_TOKEN_ATTR_CONTROL as i64) || is(sys::LLAMA_TOKEN_ATTR_UNKNOWN as i64);
            if control || is(sys::LLAMA_TOKEN_ATTR_USER_DEFINED as i64) {
                let strips = (is(sys::LLAMA_TOKEN_ATTR_LSTRIP as i64), is(sys::LLAMA_TOKEN_ATTR_RSTRIP as i64));
                // A token that isn't text can't occur in text.
                let Ok(text) = text.to_str() else { continue };
                specials.push(Special { id: token, text: text.to_owned(), control, strips });
            }
        }
        self.specials = Specials::new(specials);
    }

    /// The least number of tokens in a text of so many bytes.
    pub fn fewest_tokens(&self, bytes: usize) -> usize {
        bytes / self.longest_token
    }

    /// Tokenizes. With `special`, control tokens in the text count, as in a rendered chat template; never use it for
    /// users' text. A single word may be as long as the text.
    ///
    /// # Errors
    /// `Arg` if the text is too long, `NoMem` if there is no stack for it.
    pub fn tokenize(&self, text: &str, add_bos: bool, special: bool) -> Result<Vec<TokenId>> {
        if text.len() > TEXT_BYTES {
            let bytes = text.len();
            return Err(Error::arg(format!("the text has {bytes} bytes, expected at most {TEXT_BYTES}")));
        }
        let pieces = pieces(self.pre.as_deref(), text);
        let [text] = pieces[..] else { return self.tokenize_pieces(&pieces, add_bos, special) };
        if text.len() <= SHALLOW {
            return self.tokenize_here(text, add_bos, special);
        }
        let _alone = (text.len() >= ALONE).then(|| lock(&LONG_TEXT));
        with_stack(STACK_AT_LEAST + STACK_A_BYTE * text.len(), || self.tokenize_here(text, add_bos, special))?
    }

    fn tokenize_pieces(&self, pieces: &[&str], add_bos: bool, special: bool) -> Result<Vec<TokenId>> {
        let mut tokens = if add_bos { self.tokenize_here("", true, false)? } else { Vec::new() };
        let end = self.drop_added_end(&mut tokens);
        for piece in pieces {
            tokens.extend(self.tokenize(piece, false, special)?);
        }
        tokens.extend(end);
        Ok(tokens)
    }

    pub(super) fn tokenize_here(&self, text: &str, add_bos: bool, special: bool) -> Result<Vec<TokenId>> {
        let too_long = || Error::arg(format!("the text of {} bytes is too long to tokenize", text.len()));
        let length = i32::try_from(text.len()).map_err(|_| too_long())?;
        // A token covers at least one byte, except for the few that are added.
        let mut tokens: Vec<i32> = vec![0; text.len() + 8];
        let capacity = i32::try_from(tokens.len()).map_err(|_| too_long())?;
        let call = |tokens: &mut Vec<i32>, capacity| {
            // SAFETY: text and buffer are as long as said; the vocabulary lives in `self`.
            guarded("tokenizing", || unsafe {
                guard::llama_tokenize(
                    self.vocab,
                    text.as_ptr().cast(),
                    length,
                    tokens.as_mut_ptr(),
                    capacity,
                    add_bos,
                    special,
                )
            })
        };
        let mut n = call(&mut tokens, capacity)?;
        if n < 0 {
            let needed = n.checked_neg().ok_or_else(too_long)?;
            tokens.resize(needed as usize, 0);
            n = call(&mut tokens, needed)?;
        }
        tokens.truncate(usize::try_from(n).map_err(|_| Error::model("the model's tokenizer failed"))?);
        Ok(tokens.into_iter().map(|t| t as TokenId).collect())
    }

    /// Tokenizes a template's output: its own control tokens count, those in its input do not. No end token is added.
    /// # Errors
    /// As [`Model::tokenize`].
    pub(super) fn tokenize_rendered(&self, rendered: &Rendered) -> Result<Vec<TokenId>> {
        let Rendered { text, marks } = rendered;
        if !self.specials.named_by(text, marks) {
            let mut tokens = self.tokenize(text, true, true)?;
            self.drop_added_end(&mut tokens);
            return Ok(tokens);
        }
        self.tokenize_parts(text, marks)
    }

    /// The same, part by part.
    pub(super) fn tokenize_parts(&self, text: &str, marks: &[usize]) -> Result<Vec<TokenId>> {
        let mut tokens = self.tokenize("", true, false)?;
        self.drop_added_end(&mut tokens);
        for part in self.specials.part(text, marks) {
            match part {
                Part::Token(token) => tokens.push(token),
                Part::Text(range) => tokens.extend(self.tokenize(&text[range], false, false)?),
            }
        }
        Ok(tokens)
    }

    /// Removes the end of sequence that some vocabularies add to every text, since a prompt is to be continued.
    fn drop_added_end(&self, tokens: &mut Vec<TokenId>) -> Option<TokenId> {
        // SAFETY: reads the live vocabulary.
        let added = unsafe { sys::llama_vocab_get_add_eos(self.vocab) };
        let end = tokens.last().copied().filter(|end| added && Some(*end) == self.eos())?;
        tokens.pop();
        Some(end)
    }
}
