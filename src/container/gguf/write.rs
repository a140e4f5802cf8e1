//! The header of a GGUF file to be written, version 3: metadata, tensors, and where their bytes belong.

use super::types::id_bytes;
use super::{ALIGNMENT_DEFAULT, MAGIC};
use crate::error::{Result, fail};
use crate::limits::{DIMS_MAX, METADATA_MAX, TENSORS_MAX};
use crate::memory::reserve;
use crate::types::Type;

/// A metadata value.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'a> {
    /// Kind and value as another file has them.
    Raw(&'a [u8]),
    /// A number.
    U32(u32),
    /// A text.
    String(&'a str),
    /// Texts.
    Strings(&'a [String]),
    /// Numbers.
    I32s(&'a [i32]),
}

/// ggml's number of a type, if it has one.
pub fn id_of(ty: Type) -> Option<u32> {
    Some(match ty {
        Type::F32 => 0,
        Type::F16 => 1,
        Type::I8 => 24,
        Type::I16 => 25,
        Type::I32 => 26,
        Type::I64 => 27,
        Type::F64 => 28,
        Type::Bf16 => 30,
        Type::Q2_0Legacy => 42,
        Type::Tl2 => 39,
        _ if ty as u32 >= 100 => ty as u32 - 100,
        _ => return None,
    })
}

/// A header that grows.
pub struct Header {
    bytes: Vec<u8>,
    entries: u64,
    tensors: Vec<u8>,
    count: u64,
    end: u64,
}

const ENTRIES_AT: usize = 16;

impl Header {
    /// Neither metadata nor tensors yet.
    pub fn new() -> Result<Header> {
        let mut header = Header { bytes: Vec::new(), entries: 0, tensors: Vec::new(), count: 0, end: 0 };
        put(&mut header.bytes, MAGIC)?;
        put(&mut header.bytes, &3u32.to_le_bytes())?;
        put(&mut header.bytes, &[0; 16])?; // how many tensors and entries: `finish`
        Ok(header)
    }

    /// Adds an entry.
    pub fn entry(&mut self, key: &[u8], value: Entry<'_>) -> Result<()> {
        let out = &mut self.bytes;
        string(out, key)?;
        match value {
            Entry::Raw(bytes) => put(out, bytes)?,
            Entry::U32(v) => {
                put(out, &4u32.to_le_bytes())?;
                put(out, &v.to_le_bytes())?;
            }
            Entry::String(text) => {
                put(out, &8u32.to_le_bytes())?;
                string(out, text.as_bytes())?;
            }
            Entry::Strings(texts) => {
                put(out, &9u32.to_le_bytes())?;
                put(out, &8u32.to_le_bytes())?;
                put(out, &(texts.len() as u64).to_le_bytes())?;
                texts.iter().try_for_each(|text| string(out, text.as_bytes()))?;
            }
            Entry::I32s(values) => {
                put(out, &9u32.to_le_bytes())?;
                put(out, &5u32.to_le_bytes())?;
                put(out, &(values.len() as u64).to_le_bytes())?;
                values.iter().try_for_each(|v| put(out, &v.to_le_bytes()))?;
            }
        }
        self.entries += 1;
        Ok(())
    }

    /// Adds a tensor of that shape, outermost dimension first, and gives its place in the data and its
    /// bytes.
    pub fn tensor(&mut self, name: &[u8], ty: Type, shape: &[u64]) -> Result<(u64, u64)> {
        let id = id_of(ty).ok_or_else(|| fail!(Unsupported, "{} is no type of GGUF files", ty.name()))?;
        if shape.len() > DIMS_MAX {
            return Err(fail!(Unsupported, "a tensor of {} dimensions", shape.len()));
        }
        if shape.contains(&0) {
            return Err(fail!(
                Unsupported,
                "GGUF files hold no empty tensors, and this one has the shape {shape:?}: write safetensors"
            ));
        }
        let bytes = id_bytes(ty, shape)?;
        let out = &mut self.tensors;
        string(out, name)?;
        put(out, &(shape.len() as u32).to_le_bytes())?;
        for d in shape.iter().rev() {
            put(out, &d.to_le_bytes())?;
        }
        put(out, &id.to_le_bytes())?;
        put(out, &self.end.to_le_bytes())?;
        self.count += 1;
        let start = self.end;
        let end = start.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT_DEFAULT));
        self.end = end.ok_or_else(|| fail!(InvalidArgument, "more tensors than a file holds"))?;
        Ok((start, bytes))
    }

    /// The header with its padding: the data follows.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        if self.entries > METADATA_MAX || self.count > TENSORS_MAX {
            let (entries, tensors) = (self.entries, self.count);
            return Err(fail!(Unsupported, "{entries} metadata entries and {tensors} tensors in one file"));
        }
        self.bytes[8..16].copy_from_slice(&self.count.to_le_bytes());
        self.bytes[ENTRIES_AT..ENTRIES_AT + 8].copy_from_slice(&self.entries.to_le_bytes());
        put(&mut self.bytes, &self.tensors)?;
        let pad = self.bytes.len().next_multiple_of(ALIGNMENT_DEFAULT as usize) - self.bytes.len();
        put(&mut self.bytes, &[0; ALIGNMENT_DEFAULT as usize][..pad])?;
        Ok(self.bytes)
    }

    /// Bytes of the data section, the last tensor's padding with it.
    pub fn data(&self) -> u64 {
        self.end
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    reserve(out, bytes.len(), "the header of a GGUF file")?;
    out.extend_from_slice(bytes);
    Ok(())
}

fn string(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    put(out, &(text.len() as u64).to_le_bytes())?;
    put(out, text)
}
