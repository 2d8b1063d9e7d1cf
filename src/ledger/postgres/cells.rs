//! Values and cells as Postgres takes and gives them. Text may hold any character, which Postgres's may not: NUL is
//! written as two others. Never knows a table.

use std::borrow::Cow;
use std::error::Error as StdError;

use bytes::BytesMut;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::error::{Error, Result};
use crate::ledger::db::{Cells, Value};

type Any = Box<dyn StdError + Sync + Send>;

/// Begins two characters that stand for one.
const ESCAPE: char = '\u{1a}';

/// Text without NUL.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(ESCAPE, "\u{1a}1").replace('\0', "\u{1a}0"))
}

fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains(ESCAPE) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\u{1a}0", "\0").replace("\u{1a}1", "\u{1a}"))
}

impl ToSql for Value<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Any> {
        match *self {
            Value::Null => Ok(IsNull::Yes),
            Value::Int(value) => match *ty {
                Type::INT2 => i16::try_from(value)?.to_sql(ty, out),
                Type::INT4 => i32::try_from(value)?.to_sql(ty, out),
                Type::FLOAT8 => (value as f64).to_sql(ty, out),
                _ => value.to_sql(ty, out),
            },
            Value::Real(value) => value.to_sql(ty, out),
            Value::Text(value) => escaped(value).to_sql(ty, out),
            Value::Blob(value) => value.to_sql(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A cell as it comes over the wire.
enum Raw<'a> {
    Int(i64),
    Real(f64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Any> {
        Ok(match *ty {
            Type::BOOL => Raw::Int(bool::from_sql(ty, raw)?.into()),
            Type::INT2 => Raw::Int(i16::from_sql(ty, raw)?.into()),
            Type::INT4 => Raw::Int(i32::from_sql(ty, raw)?.into()),
            Type::INT8 => Raw::Int(i64::from_sql(ty, raw)?),
            Type::FLOAT8 => Raw::Real(f64::from_sql(ty, raw)?),
            Type::BYTEA => Raw::Blob(raw),
            _ => Raw::Text(<&str>::from_sql(ty, raw)?),
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn cell<'a>(row: &'a Row, column: usize) -> Result<Option<Raw<'a>>> {
    row.try_get(column).map_err(|e| Error::io(format!("the ledger: {e}")))
}

fn wrong<T>(row: &Row, column: usize) -> Result<T> {
    let found = row.columns().get(column).map_or("nothing", |column| column.type_().name());
    Err(Error::io(format!("the ledger: column {column} of a row is {found}")))
}

impl Cells for Row {
    fn int(&self, column: usize) -> Result<Option<i64>> {
        match cell(self, column)? {
            None => Ok(None),
            Some(Raw::Int(value)) => Ok(Some(value)),
            Some(_) => wrong(self, column),
        }
    }

    fn real(&self, column: usize) -> Result<Option<f64>> {
        match cell(self, column)? {
            None => Ok(None),
            Some(Raw::Real(value)) => Ok(Some(value)),
            Some(Raw::Int(value)) => Ok(Some(value as f64)),
            Some(_) => wrong(self, column),
        }
    }

    fn text(&self, column: usize) -> Result<Option<Cow<'_, str>>> {
        match cell(self, column)? {
            None => Ok(None),
            Some(Raw::Text(value)) => Ok(Some(unescaped(value))),
            Some(_) => wrong(self, column),
        }
    }

    fn blob(&self, column: usize) -> Result<Option<&[u8]>> {
        match cell(self, column)? {
            None => Ok(None),
            Some(Raw::Blob(value)) => Ok(Some(value)),
            Some(_) => wrong(self, column),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back_and_none_has_a_nul_on_the_way() {
        for text in ["", "Grüße 🦀", "\0", "a\0b\0", "\u{1a}", "\u{1a}0", "\u{1a}1\0\u{1a}", "0\u{1a}\u{0}1"] {
            let sent = escaped(text);
            assert!(!sent.contains('\0'));
            assert_eq!(unescaped(&sent), text);
        }
    }
}
