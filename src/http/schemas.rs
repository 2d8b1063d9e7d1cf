//! The bodies of requests and errors as OpenAPI describes them. Only describes: `request` reads the bodies.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use super::kinds::{Choice, Count, Documents, Parts, PromptOf, Prompts, Strings};

macro_rules! schemas {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            #[derive(ToSchema)]
            $(#[$doc])*
            #[allow(dead_code)]
            pub(super) struct $name { $($(#[$field_doc])* $field: $type,)* }
        )*
    };
}
pub(super) use schemas;

schemas! {
    /// A chat; fields of the OpenAI API that are not named here are ignored.
    ChatRequest {
        messages: Vec<ChatMessageBody>,
        model: Option<String>,
        /// The configured length if unset.
        #[schema(minimum = 1)]
        max_tokens: Option<u32>,
        /// The newer name of `max_tokens`.
        #[schema(minimum = 1)]
        max_completion_tokens: Option<u32>,
        temperature: Option<f32>,
        top_k: Option<u32>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repeat_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        presence_penalty: Option<f32>,
        /// From a token's number to the number that is added to its logit.
        logit_bias: Option<BTreeMap<String, f32>>,
        /// `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": ...}}`. An object that the
        /// schema lists `properties` of has no others, unless it says something of them (`additionalProperties`,
        /// `patternProperties`); there a model may write one twice, which JSON's readers take for the last.
        #[schema(value_type = Option<Object>)]
        response_format: Option<Value>,
        /// A GBNF grammar, whose first symbol is `root`.
        grammar: Option<String>,
        logprobs: Option<bool>,
        top_logprobs: Option<u32>,
        /// Whether the answer goes on to its limit: what ends answers is never sampled.
        ignore_eos: Option<bool>,
        /// `none` leaves reasoning (`<think>`) in the content; else (`auto`, `deepseek`) it is `reasoning_content`.
        reasoning_format: Option<String>,
        /// Any 64-bit integer: the same dice again. A fresh, idle daemon then repeats its answer; on a busy one what
        /// is decoded beside it, and where its cache lies, change how sums are rounded, and so at times a token.
        seed: Option<i64>,
        /// A string or several.
        #[schema(value_type = Option<Strings>, inline)]
        stop: Option<Value>,
        user: Option<String>,
        n: Option<u32>,
        stream: Option<bool>,
        /// `{"include_usage": true}`.
        #[schema(value_type = Option<Object>)]
        stream_options: Option<Value>,
        /// `{"type": "function", "function": {"name", "description", "parameters"}}`. Where the model's template knows
        /// no tools, they are told in a system message, and the answer is held to a call or a text. Arguments that are
        /// held to `parameters` follow the rules of `response_format`.
        #[schema(value_type = Option<Vec<Object>>)]
        tools: Option<Value>,
        /// `none`, `auto`, `required`, or an object that names a function, or those that are allowed.
        #[schema(value_type = Option<Choice>, inline)]
        tool_choice: Option<Value>,
        /// Accepted; the model decides between one call and several.
        parallel_tool_calls: Option<bool>,
        /// Whether messages and tools may name control tokens, such as `<|im_end|>`. Without it they are text like any.
        parse_special: Option<bool>,
        /// `false` ends the prompt with the last message.
        add_generation_prompt: Option<bool>,
        /// Whether the answer goes on with the last message, which is then a part of the prompt. If unset, it does with
        /// one of the assistant that calls no tools, unless `add_generation_prompt` is set or a call is demanded.
        continue_final_message: Option<bool>,
        /// llama-server's name: `false` answers a last message of the assistant in place of going on with it.
        prefill_assistant: Option<bool>,
    }

    ChatMessageBody {
        /// system, developer, user, assistant, tool, or another that the model's template names.
        role: String,
        /// A text, or parts of text.
        #[schema(value_type = Option<Parts>, inline)]
        content: Option<Value>,
        /// Of the author, where the template has it.
        name: Option<String>,
        /// Of a tool's result: the call.
        tool_call_id: Option<String>,
        /// What an assistant thought before it answered.
        reasoning_content: Option<String>,
        /// The calls that an assistant made.
        #[schema(value_type = Option<Vec<Object>>)]
        tool_calls: Option<Value>,
        /// The older form of one call.
        #[schema(value_type = Option<Object>)]
        function_call: Option<Value>,
        /// What an assistant said instead of content.
        refusal: Option<String>,
        /// Accepted and left out.
        #[schema(value_type = Option<Vec<Object>>)]
        annotations: Option<Value>,
        /// Accepted and left out.
        #[schema(value_type = Option<Object>)]
        audio: Option<Value>,
    }

    /// A text to continue; fields of the OpenAI API that are not named here are ignored.
    CompletionRequest {
        /// A text, an array of tokens, or an array of either.
        #[schema(value_type = Prompts, inline)]
        prompt: Value,
        /// Whether the text may name control tokens, as one does that a chat template has written.
        parse_special: Option<bool>,
        /// Begin each answer's text with its prompt.
        echo: Option<bool>,
        model: Option<String>,
        /// The configured length if unset.
        #[schema(minimum = 1)]
        max_tokens: Option<u32>,
        /// The newer name of `max_tokens`.
        #[schema(minimum = 1)]
        max_completion_tokens: Option<u32>,
        temperature: Option<f32>,
        top_k: Option<u32>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repeat_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        presence_penalty: Option<f32>,
        /// From a token's number to the number that is added to its logit.
        logit_bias: Option<BTreeMap<String, f32>>,
        /// `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": ...}}`. An object that the
        /// schema lists `properties` of has no others, unless it says something of them (`additionalProperties`,
        /// `patternProperties`); there a model may write one twice, which JSON's readers take for the last.
        #[schema(value_type = Option<Object>)]
        response_format: Option<Value>,
        /// A GBNF grammar, whose first symbol is `root`.
        grammar: Option<String>,
        /// Of how many alternatives beside each token, 0 to 5; `true` is 0.
        #[schema(value_type = Option<Count>, inline)]
        logprobs: Option<Value>,
        /// Whether the answer goes on to its limit: what ends answers is never sampled.
        ignore_eos: Option<bool>,
        /// Any 64-bit integer: the same dice again. A fresh, idle daemon then repeats its answer; on a busy one what
        /// is decoded beside it, and where its cache lies, change how sums are rounded, and so at times a token.
        seed: Option<i64>,
        /// A string or several.
        #[schema(value_type = Option<Strings>, inline)]
        stop: Option<Value>,
        user: Option<String>,
        n: Option<u32>,
        stream: Option<bool>,
        /// `{"include_usage": true}`.
        #[schema(value_type = Option<Object>)]
        stream_options: Option<Value>,
    }

    /// A conversation in the form of Anthropic's Messages API; fields that are not named here are ignored.
    MessagesRequest {
        /// Of `user`, `assistant` and `system`; content is a text, or blocks of `text`, `thinking`, `tool_use` and
        /// `tool_result`. A last message of the assistant is continued.
        #[schema(value_type = Vec<Object>)]
        messages: Value,
        model: Option<String>,
        /// The configured length if unset.
        #[schema(minimum = 1)]
        max_tokens: Option<u32>,
        /// A text, or blocks of text.
        #[schema(value_type = Option<Parts>, inline)]
        system: Option<Value>,
        stop_sequences: Option<Vec<String>>,
        stream: Option<bool>,
        temperature: Option<f32>,
        top_k: Option<u32>,
        top_p: Option<f32>,
        /// `{"name", "description", "input_schema"}`.
        #[schema(value_type = Option<Vec<Object>>)]
        tools: Option<Value>,
        /// `{"type": "auto"}`, `any`, `none`, or `tool` with a `name`.
        #[schema(value_type = Option<Object>)]
        tool_choice: Option<Value>,
        /// `user_id` is the user.
        #[schema(value_type = Option<Object>)]
        metadata: Option<Value>,
        /// `{"format": {"type": "json_schema", "schema": ...}}`.
        #[schema(value_type = Option<Object>)]
        output_config: Option<Value>,
    }

    /// A request in the form of OpenAI's Responses API; fields that are not named here are ignored.
    ResponsesRequest {
        /// A text, or items: messages, `function_call`, `function_call_output` and `reasoning`.
        #[schema(value_type = Parts, inline)]
        input: Value,
        model: Option<String>,
        /// Told to the model before everything else; not carried over to the next response.
        instructions: Option<String>,
        /// The response that this one goes on from. The newest 4096 are kept, of at most 64 KiB each.
        previous_response_id: Option<String>,
        /// Whether the response is kept, so that another can go on from it. Unset: yes.
        store: Option<bool>,
        #[schema(minimum = 1)]
        max_output_tokens: Option<u32>,
        temperature: Option<f32>,
        top_p: Option<f32>,
        /// `{"format": ...}`: `text`, `json_object`, or `json_schema` with a `schema`.
        #[schema(value_type = Option<Object>)]
        text: Option<Value>,
        /// `{"type": "function", "name", "description", "parameters"}`.
        #[schema(value_type = Option<Vec<Object>>)]
        tools: Option<Value>,
        /// `none`, `auto`, `required`, or an object that names a function.
        #[schema(value_type = Option<Choice>, inline)]
        tool_choice: Option<Value>,
        parallel_tool_calls: Option<bool>,
        stream: Option<bool>,
        /// Unset: that of the response that it goes on from.
        user: Option<String>,
        /// The newer name of `user`.
        safety_identifier: Option<String>,
        /// Repeated in the response.
        #[schema(value_type = Option<Object>)]
        metadata: Option<Value>,
    }

    EmbeddingsRequest {
        /// A text or several, each a string or tokens.
        #[schema(value_type = Prompts, inline)]
        input: Value,
        model: Option<String>,
        /// `float` or `base64`.
        encoding_format: Option<String>,
        /// The model's width, if anything.
        dimensions: Option<u32>,
        user: Option<String>,
        /// Whether the texts may name control tokens.
        parse_special: Option<bool>,
    }

    ScoreRequest {
        /// The conversation that the answers end; or `prompt`.
        #[schema(value_type = Option<Vec<Object>>)]
        messages: Option<Value>,
        /// A text or tokens.
        #[schema(value_type = Option<PromptOf>, inline)]
        prompt: Option<Value>,
        /// Texts, or `{"text": ...}`.
        #[schema(value_type = Documents, inline)]
        completions: Value,
        model: Option<String>,
        /// Whether messages or prompt may name control tokens.
        parse_special: Option<bool>,
    }

    RerankRequest {
        /// What a user asks.
        query: String,
        /// Texts, or `{"text": ...}`: answers to the query.
        #[schema(value_type = Documents, inline)]
        documents: Value,
        /// How many of them are wanted, the best ones; all if unset.
        top_n: Option<u32>,
        /// Whether their texts are wanted, too.
        return_documents: Option<bool>,
        model: Option<String>,
    }

    TokenizeRequest {
        content: String,
        /// Begin with what the model begins with.
        add_special: Option<bool>,
        /// Whether the text may name control tokens.
        parse_special: Option<bool>,
    }

    DetokenizeRequest {
        tokens: Vec<u32>,
    }

    /// One of `rating`, `thumbs`, `correction` and `signal`, or a comment alone.
    FeedbackRequest {
        generation_id: String,
        rating: Option<f64>,
        /// `up` or `down`.
        thumbs: Option<String>,
        /// What the answer should have been.
        correction: Option<String>,
        /// What happened to the answer: `copied`, `regenerated`, `abandoned`, or a name of your own.
        signal: Option<String>,
        user: Option<String>,
        comment: Option<String>,
    }

    PreferenceRequest {
        chosen_id: String,
        rejected_id: String,
        user: Option<String>,
    }

    /// An answer that was made elsewhere.
    SampleRequest {
        /// The conversation that it answers; or `prompt`.
        #[schema(value_type = Option<Vec<Object>>)]
        messages: Option<Value>,
        /// A text or tokens.
        #[schema(value_type = Option<PromptOf>, inline)]
        prompt: Option<Value>,
        /// A text or tokens.
        #[schema(value_type = PromptOf, inline)]
        completion: Value,
        /// Without one it waits to be rated.
        reward: Option<f64>,
        /// The temperature at which it is trained; 1 if unset.
        temperature: Option<f32>,
        user: Option<String>,
        /// Whether messages or prompt may name control tokens.
        parse_special: Option<bool>,
    }

    ForgetRequest {
        user: String,
        /// Also replace the versions that learned from the user; for operators.
        unlearn: Option<bool>,
        /// Only tell what `unlearn` takes.
        dry_run: Option<bool>,
    }

    ReviewRequest {
        user: String,
        /// `trust`, `hold` or `reject`.
        verdict: String,
    }

    ActivateRequest {
        version: u64,
        /// Serve it by weights of its own rather than by its adapter.
        whole: Option<bool>,
    }

    AdoptRequest {
        /// Of one that was set aside; without it all are adopted.
        name: Option<String>,
    }

    ErrorBody {
        /// `error`.
        r#type: String,
        error: ErrorDetail,
    }

    ErrorDetail {
        message: String,
        r#type: String,
        param: Option<String>,
        code: String,
    }
}
