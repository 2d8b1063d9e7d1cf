//! The bodies that the dialects write, as OpenAPI describes them. Only describes: shape.rs, anthropic.rs and
//! responses.rs write them.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use super::schemas::{ErrorDetail, schemas};
use crate::types::{GenerationId, PolicyVersion, TokenLogprob};

schemas! {
    ChatCompletion {
        /// The first answer's id.
        id: String,
        /// `chat.completion`.
        object: String,
        /// Seconds since the Unix epoch.
        created: u64,
        model: String,
        choices: Vec<ChatChoice>,
        /// The weights of the first answer.
        policy_version: PolicyVersion,
        usage: Usage,
    }

    ChatChoice {
        index: usize,
        message: AnswerMessage,
        logprobs: Option<ChatLogprobs>,
        /// `stop`, `length` or `tool_calls`.
        finish_reason: String,
        /// What `POST /v1/feedback` takes.
        generation_id: GenerationId,
        /// The weights that made every token of it.
        policy_version: PolicyVersion,
        /// `false` where the answer could not be recorded, so that it can't be rated; else left out.
        #[schema(required = false)]
        recorded: bool,
    }

    AnswerMessage {
        /// `assistant`.
        role: String,
        /// Null beside calls without a text.
        content: Option<String>,
        /// What the model thought before, where it did.
        #[schema(required = false)]
        reasoning_content: String,
        #[schema(required = false)]
        tool_calls: Vec<ToolCall>,
    }

    ToolCall {
        id: String,
        /// `function`.
        r#type: String,
        function: CalledFunction,
    }

    CalledFunction {
        name: String,
        /// JSON.
        arguments: String,
    }

    ChatLogprobs {
        content: Vec<TokenLogprob>,
        /// Always null.
        refusal: Option<String>,
    }

    Usage {
        prompt_tokens: usize,
        completion_tokens: usize,
        total_tokens: usize,
    }

    /// An event of a stream, which ends with `[DONE]`.
    ChatCompletionChunk {
        id: String,
        /// `chat.completion.chunk`.
        object: String,
        created: u64,
        model: String,
        /// Empty in the last event before the end, if `stream_options.include_usage` asks for the usage.
        choices: Vec<ChatChunkChoice>,
        /// In the last event of an answer.
        #[schema(required = false)]
        policy_version: PolicyVersion,
        /// If `stream_options.include_usage` asks for it: null but in the last event.
        usage: Option<Usage>,
        /// Why the answer broke off; else left out.
        #[schema(required = false, value_type = ErrorDetail)]
        error: Value,
    }

    ChatChunkChoice {
        index: usize,
        delta: ChatDelta,
        logprobs: Option<ChatLogprobs>,
        /// Null but in the last event of the answer.
        finish_reason: Option<String>,
        generation_id: GenerationId,
        #[schema(required = false)]
        recorded: bool,
    }

    ChatDelta {
        #[schema(required = false)]
        role: String,
        #[schema(required = false)]
        content: String,
        #[schema(required = false)]
        reasoning_content: String,
        /// With `index`; the arguments arrive in pieces.
        #[schema(required = false, value_type = Vec<Object>)]
        tool_calls: Value,
    }

    Completion {
        /// The first answer's id.
        id: String,
        /// `text_completion`.
        object: String,
        created: u64,
        model: String,
        choices: Vec<TextChoice>,
        policy_version: PolicyVersion,
        usage: Usage,
    }

    TextChoice {
        index: usize,
        text: String,
        logprobs: Option<TextLogprobs>,
        /// `stop` or `length`.
        finish_reason: String,
        generation_id: GenerationId,
        policy_version: PolicyVersion,
        /// `false` where the answer could not be recorded, so that it can't be rated; else left out.
        #[schema(required = false)]
        recorded: bool,
    }

    /// An event of a stream, which ends with `[DONE]`.
    CompletionChunk {
        id: String,
        /// `text_completion`.
        object: String,
        created: u64,
        model: String,
        /// Empty in the last event before the end, if `stream_options.include_usage` asks for the usage.
        choices: Vec<TextChunkChoice>,
        /// In the last event of an answer.
        #[schema(required = false)]
        policy_version: PolicyVersion,
        /// If `stream_options.include_usage` asks for it: null but in the last event.
        usage: Option<Usage>,
        /// Why the answer broke off; else left out.
        #[schema(required = false, value_type = ErrorDetail)]
        error: Value,
    }

    TextChunkChoice {
        index: usize,
        text: String,
        logprobs: Option<TextLogprobs>,
        /// Null but in the last event of the answer.
        finish_reason: Option<String>,
        generation_id: GenerationId,
        #[schema(required = false)]
        recorded: bool,
    }

    /// Each with an entry a token.
    TextLogprobs {
        /// Of each its text; of bytes that are no text by themselves, `bytes:\xe2\x80`.
        tokens: Vec<String>,
        token_logprobs: Vec<f32>,
        top_logprobs: Vec<BTreeMap<String, f32>>,
        /// In characters.
        text_offset: Vec<usize>,
    }

    Message {
        /// What `POST /v1/feedback` takes.
        id: GenerationId,
        /// `message`.
        r#type: String,
        /// `assistant`.
        role: String,
        model: String,
        /// Blocks of `thinking`, `text` and `tool_use`.
        #[schema(value_type = Vec<Object>)]
        content: Value,
        /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
        stop_reason: String,
        /// The one that ended it.
        stop_sequence: Option<String>,
        usage: MessageUsage,
        policy_version: PolicyVersion,
        /// `false` where the answer could not be recorded, so that it can't be rated; else left out.
        #[schema(required = false)]
        recorded: bool,
    }

    MessageUsage {
        input_tokens: usize,
        output_tokens: usize,
    }

    /// A response; what it does not name of OpenAI's object repeats the request.
    ResponseBody {
        /// What `POST /v1/feedback` and `previous_response_id` take.
        id: GenerationId,
        /// `response`.
        object: String,
        created_at: u64,
        /// `completed` or `incomplete`.
        status: String,
        /// Always null.
        #[schema(value_type = Option<Object>)]
        error: Value,
        /// `{"reason": "max_output_tokens"}` where it was cut off.
        #[schema(value_type = Option<Object>)]
        incomplete_details: Value,
        instructions: Option<String>,
        max_output_tokens: Option<u32>,
        #[schema(value_type = Option<Object>)]
        metadata: Value,
        model: String,
        /// Items: `reasoning`, `message` and `function_call`.
        #[schema(value_type = Vec<Object>)]
        output: Value,
        parallel_tool_calls: bool,
        previous_response_id: Option<GenerationId>,
        /// Whether it is kept.
        store: bool,
        temperature: Option<f64>,
        #[schema(value_type = Object)]
        text: Value,
        /// A string or an object.
        tool_choice: Value,
        #[schema(value_type = Vec<Object>)]
        tools: Value,
        top_p: Option<f64>,
        /// `disabled`.
        truncation: String,
        #[schema(value_type = Object)]
        usage: Value,
        policy_version: PolicyVersion,
        /// `false` where the answer could not be recorded, so that it can't be rated; else left out.
        #[schema(required = false)]
        recorded: bool,
    }
}
