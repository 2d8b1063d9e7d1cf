//! GGUF metadata values: the types a file can hold and their names. No file access.

macro_rules! kinds {
    ($($id:literal $variant:ident $ty:ty, $word:literal;)*) => {
        /// One metadata value.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $(#[doc = concat!("A ", $word, ".")] $variant($ty),)*
            /// Several values of one scalar type.
            Array(Array),
        }

        /// An array of one scalar type. The format's nested arrays are refused, as in llama.cpp.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $(#[doc = concat!("Values of type ", $word, ".")] $variant(Vec<$ty>),)*
        }

        impl Value {
            /// The name of the type, for messages: `u32`, `string`, `array of f32`.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Value::$variant(_) => $word,)*
                    Value::Array(array) => match array {
                        $(Array::$variant(_) => concat!("array of ", $word),)*
                    },
                }
            }

            pub(super) fn type_id(&self) -> u32 {
                match self {
                    $(Value::$variant(_) => $id,)*
                    Value::Array(_) => ARRAY,
                }
            }

            pub(super) fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(Value::$variant(v) => v.encode(out),)*
                    Value::Array(array) => match array {
                        $(Array::$variant(items) => {
                            out.extend_from_slice(&u32::to_le_bytes($id));
                            out.extend_from_slice(&(items.len() as u64).to_le_bytes());
                            items.iter().for_each(|item| item.encode(out));
                        })*
                    },
                }
            }

            pub(super) fn decode<R: std::io::Read>(id: u32, from: &mut Source<R>) -> Result<Value> {
                Ok(match id {
                    $($id => Value::$variant(<$ty>::decode(from)?),)*
                    ARRAY => {
                        let (item, count) = (u32::decode(from)?, u64::decode(from)?);
                        Value::Array(match item {
                            $($id => Array::$variant(from.many(count)?),)*
                            ARRAY => return Err(Error::model("it is an array of arrays, which is not supported")),
                            other => return Err(Error::model(format!("its array has unknown item type {other}"))),
                        })
                    }
                    other => return Err(Error::model(format!("it has unknown type {other}"))),
                })
            }
        }

        $(impl From<$ty> for Value {
            fn from(value: $ty) -> Self {
                Value::$variant(value)
            }
        }

        impl From<Vec<$ty>> for Value {
            fn from(items: Vec<$ty>) -> Self {
                Value::Array(Array::$variant(items))
            }
        })*
    };
}

use super::source::{Scalar, Source};
use crate::error::{Error, Result};

const ARRAY: u32 = 9;

kinds! {
    0 U8 u8, "u8";
    1 I8 i8, "i8";
    2 U16 u16, "u16";
    3 I16 i16, "i16";
    4 U32 u32, "u32";
    5 I32 i32, "i32";
    6 F32 f32, "f32";
    7 Bool bool, "bool";
    8 String String, "string";
    10 U64 u64, "u64";
    11 I64 i64, "i64";
    12 F64 f64, "f64";
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_owned())
    }
}
