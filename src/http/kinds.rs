//! What a field of a request may be where that is of several kinds, as OpenAPI describes it. Reads no body.

use serde_json::Value;
use utoipa::ToSchema;

macro_rules! kinds {
    ($($name:ident { $($(#[$meta:meta])* $kind:ident($type:ty),)* })*) => {
        $(
            #[derive(ToSchema)]
            #[serde(untagged)]
            #[allow(dead_code)]
            pub(super) enum $name { $($(#[$meta])* $kind($type),)* }
        )*
    };
}

/// Those that items of others are, which the document says where they stand.
pub(super) const OF_ITEMS: [&str; 2] = ["PromptOf", "TextOf"];

kinds! {
    Strings {
        One(String),
        Several(Vec<String>),
    }

    Parts {
        Text(String),
        #[schema(value_type = Vec<Object>)]
        Parts(Value),
    }

    Choice {
        Word(String),
        #[schema(value_type = Object)]
        More(Value),
    }

    PromptOf {
        Text(String),
        Tokens(Vec<u32>),
    }

    Prompts {
        Text(String),
        Tokens(Vec<u32>),
        Several(Vec<PromptOf>),
    }

    Count {
        Number(u32),
        Flag(bool),
    }

    Documents {
        One(String),
        Several(Vec<TextOf>),
    }

    TextOf {
        Text(String),
        #[schema(value_type = Object)]
        Named(Value),
    }
}
