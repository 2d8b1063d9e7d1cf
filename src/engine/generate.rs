//! Tokenizes prompts and generates answers. Never records an answer or judges it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::open::report_panic;
use super::routes::Met;
use super::{Engine, Inner};
use crate::config::Role;
use crate::error::{Error, Result};
use crate::ids::GenerationKind;
use crate::llama::{Conversation, rendered_tokens};
use crate::scheduler::GenerationStream;
use crate::types::*;

impl Engine {
    /// Applies the model's own chat template and tokenizes, ready for [`GenerateRequest::prompt`]. Control tokens in
    /// the messages are treated as plain text.
    ///
    /// # Errors
    /// As [`Engine::conversation_prompt`].
    pub fn chat_prompt(&self, messages: &[ChatMessage]) -> Result<Vec<TokenId>> {
        self.conversation_prompt(&messages.into())
    }

    /// The same for a conversation with tools, another ending, or control tokens.
    ///
    /// # Errors
    /// `Unsupported` without a template, or with one that can't do what is asked; `Arg` if the template refuses the
    /// messages, or for a text that is surely too long for the context.
    pub fn conversation_prompt(&self, conversation: &Conversation) -> Result<Vec<TokenId>> {
        let template = self.inner.template.as_ref().map_err(Clone::clone)?;
        let rendered = template.render(conversation)?;
        self.check_length(rendered.text.len())?;
        rendered_tokens(&self.inner.model, &rendered)
    }

    /// The text that the model's own chat template makes of a conversation.
    ///
    /// # Errors
    /// As [`Engine::conversation_prompt`], whatever its length.
    pub fn rendered(&self, conversation: &Conversation) -> Result<String> {
        let template = self.inner.template.as_ref().map_err(Clone::clone)?;
        Ok(template.render(conversation)?.text)
    }

    /// Whether the model's own chat template knows tools; no, if it has none.
    pub fn template_knows_tools(&self) -> bool {
        self.inner.template.as_ref().is_ok_and(|template| template.knows_tools())
    }

    /// Tokenizes the text of a prompt; if `special`, control tokens in it are recognized.
    ///
    /// # Errors
    /// `Arg` for a text that is surely too long for the context.
    pub fn text_prompt(&self, text: &str, special: bool) -> Result<Vec<TokenId>> {
        self.check_length(text.len())?;
        self.inner.model.tokenize(text, true, special)
    }

    /// Avoids tokenizing a text that can't fit.
    fn check_length(&self, bytes: usize) -> Result<()> {
        let (context, fewest) = (self.inner.config.serve.context as usize, self.inner.model.fewest_tokens(bytes));
        if fewest < context {
            return Ok(());
        }
        Err(Error::context_length(format!(
            "the prompt has {bytes} bytes, at least {fewest} tokens; the context of {context} leaves no room for an \
             answer"
        )))
    }

    /// Whether the model has this name, without a version behind it: its own, or `serve.alias`.
    pub fn is_named(&self, name: &str) -> bool {
        name == self.inner.model.name() || self.inner.config.serve.alias.as_deref() == Some(name)
    }

    /// The model's own chat template, if it has one.
    pub fn template_text(&self) -> Option<&str> {
        self.inner.model.chat_template()
    }

    /// Width of an embedding.
    pub fn embedding_width(&self) -> usize {
        self.inner.model.width()
    }

    /// Tokenizes text; the flags say whether to add the model's beginning-of-sequence token and whether to recognize
    /// control tokens in the text.
    ///
    /// # Errors
    /// `Arg` if the text is too long to be tokenized.
    pub fn tokenize_as(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>> {
        self.inner.model.tokenize(text, add_special, parse_special)
    }

    /// Tokenizes plain text, with the model's beginning-of-sequence token where it wants one.
    ///
    /// # Errors
    /// `Arg` if the text is too long to be tokenized.
    pub fn tokenize(&self, text: &str) -> Result<Vec<TokenId>> {
        self.inner.model.tokenize(text, true, false)
    }

    /// Tokenizes plain text as it is, without a beginning-of-sequence token.
    ///
    /// # Errors
    /// As [`Engine::tokenize`].
    pub fn tokenize_bare(&self, text: &str) -> Result<Vec<TokenId>> {
        self.inner.model.tokenize(text, false, false)
    }

    /// Number of tokens of the model's vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.inner.model.n_vocab()
    }

    /// The text of tokens; invalid UTF-8 is replaced.
    pub fn detokenize(&self, tokens: &[TokenId]) -> String {
        self.inner.model.text(tokens, true)
    }

    /// Embeddings of tokenized texts: the mean of the base model's last hidden states, normalized to length 1. They
    /// don't depend on the policy's adapter, so embeddings stay comparable over time. Blocks until they are done.
    /// # Errors
    /// `Arg` for a text without tokens or longer than 2048 tokens or the context; `Busy` if too many wait; `Closed`.
    pub fn embed(&self, texts: Vec<Vec<TokenId>>) -> Result<Vec<Vec<f32>>> {
        self.embed_unless(texts, Arc::default())
    }

    /// The same, ended with `Closed` between two texts once it is `abandoned`.
    ///
    /// # Errors
    /// As [`Engine::embed`].
    pub fn embed_unless(&self, texts: Vec<Vec<TokenId>>, abandoned: Arc<AtomicBool>) -> Result<Vec<Vec<f32>>> {
        self.check_open()?;
        self.inner.embeddings.embed(&self.inner.model, self.inner.config.serve.context, texts, abandoned)
    }

    /// Queues a generation. With [`GenerateRequest::exact_version`] it first loads that version's weights, unless they
    /// are those that serve.
    ///
    /// # Errors
    /// `Arg` for an empty prompt, one longer than the context, or settings out of range or a format that can't be used,
    /// or a version that is not on record; `Unsupported` of a server that only trains (`serve.role`); `Busy` if the
    /// queue is full, or another version is being asked for; `Io` or `Model` if that version's files are gone or
    /// damaged; `Closed` after [`Engine::shutdown`].
    pub fn generate(&self, mut request: GenerateRequest) -> Result<GenerationStream> {
        self.check_open()?;
        if self.inner.config.serve.role == Role::Trainer {
            return Err(Error::unsupported("this server only trains (serve.role): ask another one"));
        }
        let kind = if request.version.is_some() { GenerationKind::Named } else { GenerationKind::Request };
        self.recall_route(&request);
        if let Some(Met { candidate, conversation, theirs }) = self.inner.routes.choose(&mut request) {
            self.inner.ledger.keep_route(candidate, conversation, theirs)?;
        }
        let kept = self.named_version(&request)?;
        let id = GenerationId::new(kind);
        let stream = self.inner.in_flight.submit(id, request, |id, request| self.inner.scheduler.submit(id, request));
        let stream = stream.inspect_err(|error| report_panic(error, &self.inner.alerts))?;
        Ok(stream.keep(kept))
    }

    /// Keeps a conversation that another server began with the version that it has there, or with everyone's if it
    /// began before the trial.
    fn recall_route(&self, request: &GenerateRequest) {
        let Inner { routes, ledger, .. } = &*self.inner;
        let Some((candidate, conversation)) = routes.stranger(request).filter(|_| ledger.is_shared()) else { return };
        match ledger.route_of(candidate, conversation) {
            Ok(theirs) => routes.recall(candidate, conversation, theirs.unwrap_or(false)),
            Err(error) => tracing::warn!(%error, "which version a conversation has is not known"),
        }
    }

    /// Brings the one version that may answer into serving, if it isn't.
    fn named_version(&self, request: &GenerateRequest) -> Result<Option<Arc<dyn Send + Sync>>> {
        let Some(version) = request.version.filter(|_| request.exact_version) else { return Ok(None) };
        if version == self.status().policy_version {
            return Ok(None);
        }
        self.check_version(version)?;
        self.inner.named.hold(version).map(Some)
    }

    /// A generation from the ledger.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn generation(&self, id: &GenerationId) -> Result<Option<Generation>> {
        self.inner.ledger.generation(id)
    }
}
