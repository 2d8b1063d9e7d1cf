//! Changes a good GGUF file as the fuzzer says: a value of its metadata, or bytes of its header. Never its weights' own
//! bytes, which are only numbers.

use std::fs;
use std::path::{Path, PathBuf};

use apa::gguf::{Gguf, Value, Writer};

/// What the fuzzer's bytes are read by.
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?).min(self.0.len());
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// A folder in memory where there is one: files are written a hundred times a second.
pub fn folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let at = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    at.join(format!("apa-fuzz-{}", std::process::id()))
}

/// Writes `from` to `to`, changed. `None` if there is nothing to be changed.
pub fn change(from: &Path, to: &Path, bytes: &[u8]) -> Option<()> {
    let good = Gguf::open(from).expect("a good file");
    let keys: Vec<&String> = good.metadata().keys().collect();
    let mut file = Writer::new();
    file.copy_metadata(&good);
    let (mut input, mut patches) = (Bytes(bytes), Vec::new());
    let mut step = || -> Option<()> {
        let kind = input.byte()?;
        let key = keys[usize::from(input.byte()?) % keys.len()];
        match kind % 8 {
            0 => set(&mut file, key, u32::from_le_bytes(input.number()?)),
            1 => set(&mut file, key, f32::from_le_bytes(input.number()?)),
            2 => set(&mut file, key, input.text()?),
            3 => set(&mut file, &input.text()?, u32::from_le_bytes(input.number()?)),
            4 => {
                // An entry of an array, or its length.
                let (at, value) =
                    (usize::from(u16::from_le_bytes(input.number()?)), i32::from_le_bytes(input.number()?));
                if let Some(value) = array(good.get(key)?, at, value) {
                    set(&mut file, key, value);
                }
            }
            5 => set(&mut file, key, vec![i32::from_le_bytes(input.number()?); usize::from(input.byte()?)]),
            _ => patches.push((u32::from_le_bytes(input.number()?), input.number::<2>()?, kind)),
        }
        Some(())
    };
    while step().is_some() {}
    for tensor in good.tensors() {
        file.copy_tensor(&good, tensor.name()).expect("its own tensor");
    }
    file.write(to).ok()?;
    if !patches.is_empty() {
        let mut written = fs::read(to).expect("just written");
        // What comes before the weights.
        let weights: usize = good.tensors().iter().map(|t| t.shape().iter().product::<usize>() * 4).sum();
        let header = written.len().saturating_sub(weights).max(1);
        for (at, value, kind) in patches {
            let at = at as usize % header;
            let width = if kind & 8 == 0 { 1 } else { 2 };
            for (place, byte) in written[at..].iter_mut().zip(value).take(width) {
                *place = byte;
            }
        }
        fs::write(to, written).expect("writing it");
    }
    Some(())
}

fn set(file: &mut Writer<'_>, key: &str, value: impl Into<Value>) {
    file.set(key, value);
}

fn array(value: &Value, at: usize, new: i32) -> Option<Value> {
    use apa::gguf::Array;
    let Value::Array(array) = value else { return None };
    Some(match array {
        Array::String(items) => {
            let mut items = items.clone();
            match new {
                0.. => {
                    let other = items.get(new as usize % items.len().max(1))?.clone();
                    *items.get_mut(at)? = other;
                }
                _ => items.truncate(at),
            }
            Value::from(items)
        }
        Array::I32(items) => {
            let mut items = items.clone();
            if new == i32::MIN {
                items.truncate(at)
            } else {
                *items.get_mut(at)? = new
            }
            Value::from(items)
        }
        _ => return None,
    })
}
