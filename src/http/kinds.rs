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
        Texts(Vec<String>),
        Several(Vec<Vec<u32>>),
    }

    Document {
        Text(String),
        #[schema(value_type = Object)]
        Named(Value),
    }
}
