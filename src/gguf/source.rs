//! Bounded little-endian reading. Never trusts a length in a file before it is checked against the file's size.

use std::io::Read;

use crate::error::{Error, Result};

/// A reader that knows how many bytes are left.
pub(super) struct Source<R> {
    inner: R,
    position: u64,
    left: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(inner: R, length: u64) -> Self {
        Self { inner, position: 0, left: length }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    fn spend(&mut self, count: u64) -> Result<()> {
        if count > self.left {
            let (left, at) = (self.left, self.position);
            return Err(Error::model(format!(
                "the file is truncated or corrupt: {count} bytes expected at offset {at}, {left} are left"
            )));
        }
        self.position += count;
        self.left -= count;
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.spend(N as u64)?;
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// `count` values; refused before anything is allocated if the file can't hold them.
    pub(super) fn many<T: Scalar>(&mut self, count: u64) -> Result<Vec<T>> {
        if count > self.left / T::LEAST_BYTES {
            let (left, at) = (self.left, self.position);
            return Err(Error::model(format!(
                "the file is truncated or corrupt: {count} values expected at offset {at}, {left} bytes are left"
            )));
        }
        (0..count).map(|_| T::decode(self)).collect()
    }
}

/// A value with a fixed encoding.
pub(super) trait Scalar: Sized {
    /// The fewest bytes that a value takes in a file.
    const LEAST_BYTES: u64;
    fn decode<R: Read>(from: &mut Source<R>) -> Result<Self>;
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($ty:ty)*) => {
        $(impl Scalar for $ty {
            const LEAST_BYTES: u64 = size_of::<$ty>() as u64;

            fn decode<R: Read>(from: &mut Source<R>) -> Result<Self> {
                Ok(<$ty>::from_le_bytes(from.array()?))
            }

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        })*
    };
}

numbers! { u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 }

impl Scalar for bool {
    const LEAST_BYTES: u64 = 1;

    fn decode<R: Read>(from: &mut Source<R>) -> Result<Self> {
        Ok(u8::decode(from)? != 0)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Scalar for String {
    const LEAST_BYTES: u64 = 8;

    fn decode<R: Read>(from: &mut Source<R>) -> Result<Self> {
        let length = u64::decode(from)?;
        from.spend(length)?;
        let mut bytes = Vec::new();
        (&mut from.inner).take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length {
            return Err(Error::model("the file shrank while it was read"));
        }
        String::from_utf8(bytes).map_err(|_| Error::model("a string in it is not UTF-8"))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        out.extend_from_slice(self.as_bytes());
    }
}
