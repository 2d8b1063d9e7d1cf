//! The bodies of requests and errors as OpenAPI describes them. Only describes: `request` reads the bodies.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

macro_rules! schemas {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Serialize, ToSchema)]
            #[allow(dead_code)]
            pub(super) struct $name { $($(#[$field_doc])* $field: $type,)* }
        )*
    };
}

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
        /// `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": ...}}`.
        #[schema(value_type = Option<Object>)]
        response_format: Option<Value>,
        /// A GBNF grammar, whose first symbol is `root`.
        grammar: Option<String>,
        logprobs: Option<bool>,
        top_logprobs: Option<u32>,
        seed: Option<i64>,
        /// A string or several.
        #[schema(value_type = Option<Vec<String>>)]
        stop: Option<Value>,
        user: Option<String>,
        n: Option<u32>,
        stream: Option<bool>,
        /// `{"include_usage": true}`.
        #[schema(value_type = Option<Object>)]
        stream_options: Option<Value>,
        /// `{"type": "function", "function": {"name", "description", "parameters"}}`, where the model's template knows
        /// tools.
        #[schema(value_type = Option<Vec<Object>>)]
        tools: Option<Value>,
        /// `none`, `auto`, `required`, or an object that names a function, or those that are allowed.
        #[schema(value_type = Option<String>)]
        tool_choice: Option<Value>,
        /// Whether messages and tools may name control tokens, such as `<|im_end|>`. Without it they are text like any.
        parse_special: Option<bool>,
        /// `false` ends the prompt with the last message.
        add_generation_prompt: Option<bool>,
        /// The answer goes on with the last message.
        continue_final_message: Option<bool>,
    }

    ChatMessageBody {
        /// system, developer, user, assistant, tool, or another that the model's template names.
        role: String,
        content: Option<String>,
    }

    /// A text to continue; takes what a chat takes, but for tools.
    CompletionRequest {
        /// A text, an array of tokens, or an array of either.
        #[schema(value_type = String)]
        prompt: Value,
        /// Whether the text may name control tokens, as one does that a chat template has written.
        parse_special: Option<bool>,
        /// Begin each answer's text with its prompt.
        echo: Option<bool>,
        model: Option<String>,
        #[schema(minimum = 1)]
        max_tokens: Option<u32>,
        temperature: Option<f32>,
        top_p: Option<f32>,
        logprobs: Option<u32>,
        seed: Option<i64>,
        #[schema(value_type = Option<Vec<String>>)]
        stop: Option<Value>,
        user: Option<String>,
        n: Option<u32>,
        stream: Option<bool>,
    }

    EmbeddingsRequest {
        /// A text or several, each a string or tokens.
        #[schema(value_type = Vec<String>)]
        input: Value,
        model: Option<String>,
        /// `float` or `base64`.
        encoding_format: Option<String>,
        /// The model's width, if anything.
        dimensions: Option<u32>,
        user: Option<String>,
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

    /// One of `rating`, `thumbs` and `correction`.
    FeedbackRequest {
        generation_id: String,
        rating: Option<f64>,
        /// `up` or `down`.
        thumbs: Option<String>,
        correction: Option<String>,
        user: Option<String>,
        comment: Option<String>,
    }

    PreferenceRequest {
        chosen_id: String,
        rejected_id: String,
        user: Option<String>,
    }

    ForgetRequest {
        user: String,
        unlearn: Option<bool>,
        dry_run: Option<bool>,
    }

    ActivateRequest {
        version: u64,
        whole: Option<bool>,
    }

    ErrorBody {
        error: ErrorDetail,
    }

    ErrorDetail {
        message: String,
        r#type: String,
        param: Option<String>,
        code: String,
    }
}
