//! The header of a safetensors file to be written (`safetensors` draws it): texts, tensors, and where
//! their bytes belong.

use super::json_text::{Escaped, JsonText};
use crate::error::{Result, fail};
use crate::limits::{JSON_MAX, METADATA_MAX, NAME_MAX, TENSORS_MAX};
use crate::types::Type;

/// The data begins at a multiple of this: what one reads in place is aligned.
const ALIGNMENT: usize = 64;

/// A header that grows: texts first, then tensors.
pub struct SafetensorsHeader {
    json: JsonText,
    texts: usize,
    tensors: usize,
    end: u64,
}

/// The format's name and bytes of an element.
fn element(ty: Type) -> Option<(&'static str, u64)> {
    Some(match ty {
        Type::F32 => ("F32", 4),
        Type::F16 => ("F16", 2),
        Type::Bf16 => ("BF16", 2),
        Type::U8 => ("U8", 1),
        Type::I8 => ("I8", 1),
        Type::I16 => ("I16", 2),
        Type::U16 => ("U16", 2),
        Type::I32 => ("I32", 4),
        Type::U32 => ("U32", 4),
        Type::I64 => ("I64", 8),
        Type::U64 => ("U64", 8),
        Type::F64 => ("F64", 8),
        Type::Bool => ("BOOL", 1),
        Type::F8E4M3 => ("F8_E4M3", 1),
        Type::F8E5M2 => ("F8_E5M2", 1),
        _ => return None,
    })
}

impl SafetensorsHeader {
    /// Nothing yet.
    pub fn new() -> Result<SafetensorsHeader> {
        let mut json = JsonText::default();
        json.put(format_args!("\0\0\0\0\0\0\0\0{{\"__metadata__\":{{"))?;
        Ok(SafetensorsHeader { json, texts: 0, tensors: 0, end: 0 })
    }

    /// Adds a text; before the first tensor.
    pub fn text(&mut self, key: &str, value: &str) -> Result<()> {
        if self.tensors > 0 {
            return Err(fail!(Internal, "a text behind tensors"));
        }
        let comma = if self.texts == 0 { "" } else { "," };
        self.texts += 1;
        self.json.put(format_args!("{comma}\"{}\":\"{}\"", Escaped(key), Escaped(value)))
    }

    /// Adds a tensor and gives its place in the data and its bytes.
    pub fn tensor(&mut self, name: &str, ty: Type, shape: &[u64]) -> Result<(u64, u64)> {
        let (dtype, size) =
            element(ty).ok_or_else(|| fail!(Unsupported, "{} is no type of safetensors files", ty.name()))?;
        if name.len() as u64 > NAME_MAX {
            return Err(fail!(Unsupported, "a tensor's name of {} bytes, at most {NAME_MAX}", name.len()));
        }
        let overflow = || fail!(InvalidArgument, "{name}: more than a file holds");
        let bytes = shape.iter().try_fold(size, |n, d| n.checked_mul(*d)).ok_or_else(overflow)?;
        let (start, end) = (self.end, self.end.checked_add(bytes).ok_or_else(overflow)?);
        let before = if self.tensors == 0 { "}," } else { "," };
        self.tensors += 1;
        self.json.put(format_args!("{before}\"{}\":{{\"dtype\":\"{dtype}\",\"shape\":[", Escaped(name)))?;
        for (i, d) in shape.iter().enumerate() {
            self.json.put(format_args!("{}{d}", if i == 0 { "" } else { "," }))?;
        }
        self.json.put(format_args!("],\"data_offsets\":[{start},{end}]}}"))?;
        self.end = end;
        Ok((start, bytes))
    }

    /// Bytes of the data.
    pub fn data(&self) -> u64 {
        self.end
    }

    /// Length and header, padded: the data follows.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        if self.texts as u64 > METADATA_MAX || self.tensors as u64 > TENSORS_MAX {
            return Err(fail!(Unsupported, "{} texts and {} tensors in one file", self.texts, self.tensors));
        }
        self.json.put(format_args!("{}", if self.tensors == 0 { "}}" } else { "}" }))?;
        let pad = self.json.bytes.len().next_multiple_of(ALIGNMENT) - self.json.bytes.len();
        self.json.put(format_args!("{:pad$}", ""))?;
        let mut bytes = self.json.bytes;
        let length = bytes.len() as u64 - 8;
        if length > JSON_MAX {
            return Err(fail!(Unsupported, "a header of {length} bytes; the format has at most {JSON_MAX}"));
        }
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        Ok(bytes)
    }
}
