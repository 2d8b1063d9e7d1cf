//! Values of statements, and cells of rows. Never knows an engine.

use std::borrow::Cow;

use crate::error::{Error, Result};

/// A value that a statement is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Int(i64),
    Real(f64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Text(text)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Value::Text(text)
    }
}

impl From<f64> for Value<'_> {
    fn from(value: f64) -> Self {
        Value::Real(value)
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// A row of a result, while it is looked at.
pub(super) type Row<'a> = dyn Cells + 'a;

/// The cells of a row; `None` is NULL. A cell of another type is an error.
pub(super) trait Cells {
    /// A truth counts as 0 or 1.
    fn int(&self, column: usize) -> Result<Option<i64>>;
    fn real(&self, column: usize) -> Result<Option<f64>>;
    fn text(&self, column: usize) -> Result<Option<Cow<'_, str>>>;
    fn blob(&self, column: usize) -> Result<Option<&[u8]>>;
}

/// What can be a value of a statement.
pub(super) trait AsValue {
    fn value(&self) -> Value<'_>;
}

impl AsValue for str {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl AsValue for f64 {
    fn value(&self) -> Value<'_> {
        Value::Real(*self)
    }
}

impl AsValue for Vec<u8> {
    fn value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl AsValue for String {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

macro_rules! integers {
    ($($integer:ty),*) => {
        $(impl AsValue for $integer {
            fn value(&self) -> Value<'_> {
                (*self).into()
            }
        }

        impl From<$integer> for Value<'_> {
            fn from(value: $integer) -> Self {
                Value::Int(i64::from(value))
            }
        })*
    };
}
integers!(i64, i32, u32, bool);

impl<T: AsValue + ?Sized> AsValue for &T {
    fn value(&self) -> Value<'_> {
        (**self).value()
    }
}

impl<T: AsValue> AsValue for Option<T> {
    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, AsValue::value)
    }
}

/// The values of a statement: a tuple or an array.
pub(super) trait Values {
    fn with<R>(self, run: impl FnOnce(&[Value<'_>]) -> R) -> R;
}

impl<T: AsValue, const N: usize> Values for [T; N] {
    fn with<R>(self, run: impl FnOnce(&[Value<'_>]) -> R) -> R {
        run(&self.each_ref().map(AsValue::value))
    }
}

impl Values for () {
    fn with<R>(self, run: impl FnOnce(&[Value<'_>]) -> R) -> R {
        run(&[])
    }
}

macro_rules! tuples {
    ($($($name:ident)*;)*) => {
        $(impl<$($name: AsValue),*> Values for ($($name,)*) {
            #[allow(non_snake_case)]
            fn with<R>(self, run: impl FnOnce(&[Value<'_>]) -> R) -> R {
                let ($($name,)*) = &self;
                run(&[$($name.value()),*])
            }
        })*
    };
}
tuples! {
    A B; A B C; A B C D; A B C D E; A B C D E F; A B C D E F G; A B C D E F G H; A B C D E F G H I;
    A B C D E F G H I J; A B C D E F G H I J K;
}

/// What a cell can be read as.
pub(super) trait Read: Sized {
    fn read(row: &Row<'_>, column: usize) -> Result<Option<Self>>;
}

impl Read for i64 {
    fn read(row: &Row<'_>, column: usize) -> Result<Option<Self>> {
        row.int(column)
    }
}

impl Read for bool {
    fn read(row: &Row<'_>, column: usize) -> Result<Option<Self>> {
        Ok(row.int(column)?.map(|value| value != 0))
    }
}

impl Read for f64 {
    fn read(row: &Row<'_>, column: usize) -> Result<Option<Self>> {
        row.real(column)
    }
}

impl Read for String {
    fn read(row: &Row<'_>, column: usize) -> Result<Option<Self>> {
        Ok(row.text(column)?.map(Cow::into_owned))
    }
}

impl dyn Cells + '_ {
    /// A cell that may be NULL.
    pub(super) fn maybe<T: Read>(&self, column: usize) -> Result<Option<T>> {
        T::read(self, column)
    }

    pub(super) fn get<T: Read>(&self, column: usize) -> Result<T> {
        self.maybe(column)?.ok_or_else(|| null(column))
    }

    /// The bytes of a cell.
    pub(super) fn bytes(&self, column: usize) -> Result<&[u8]> {
        self.blob(column)?.ok_or_else(|| null(column))
    }
}

fn null(column: usize) -> Error {
    Error::io(format!("the ledger is damaged: column {column} of a row is NULL"))
}

/// Numbers of rows as one value, which `json_each` takes apart.
pub(super) fn list(numbers: &[i64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
    format!("[{}]", numbers.join(","))
}
