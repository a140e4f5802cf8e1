//! safetensors, one file.
//!
//! ```text
//! length N u64 | header, N bytes of JSON, padded with spaces | data
//!
//! {"__metadata__": {"format": "pt"},
//!  "model.norm.weight": {"dtype": "BF16", "shape": [512], "data_offsets": [0, 1024]}, ...}
//! ```
//! Offsets count from the start of the data; they tile it exactly. Shapes are outermost first.
//! Nothing but the header's own padding aligns the data. Source: the README of the safetensors
//! project, and the checks of its Rust reference.
//!
//! A tensor of more than four dimensions (the patch embedding of a vision model) is listed with the
//! outermost ones folded into one: the same bytes in the same order.

use super::json::{Reader, Text};
use super::{Directory, Kind, Meta, Quoted, Tensor, Texts, Value};
use crate::error::{Error, Result, fail};
use crate::limits::{DIMS_MAX, JSON_MAX, METADATA_MAX, NAME_MAX, STRING_MAX, TENSORS_MAX};
use crate::memory::reserve;
use crate::order;
use crate::types::Type;

/// Bytes of the header's length.
const LENGTH: usize = 8;
const HEADER: &str = "safetensors header";

/// Whether the bytes may begin a safetensors file: an object at byte 8, behind a length that no text
/// could be.
pub(super) fn is(bytes: &[u8]) -> bool {
    bytes.get(LENGTH) == Some(&b'{') && !(bytes[0] == b'{' && bytes[4..LENGTH].iter().all(|&b| b >= 9))
}

/// A type of element: ours, and its bits.
fn element(dtype: Text<'_>) -> Option<(Type, u64)> {
    const ELEMENTS: &[(&str, Type, u64)] = &[
        ("F32", Type::F32, 32),
        ("F16", Type::F16, 16),
        ("BF16", Type::Bf16, 16),
        ("U8", Type::U8, 8),
        ("I8", Type::I8, 8),
        ("I32", Type::I32, 32),
        ("I64", Type::I64, 64),
        ("U32", Type::U32, 32),
        ("I16", Type::I16, 16),
        ("U16", Type::U16, 16),
        ("U64", Type::U64, 64),
        ("F64", Type::F64, 64),
        ("BOOL", Type::Bool, 8),
        ("F8_E4M3", Type::F8E4M3, 8),
        ("F8_E5M2", Type::F8E5M2, 8),
        ("F8_E8M0", Type::Other, 8),
        ("F8_E4M3FNUZ", Type::Other, 8),
        ("F8_E5M2FNUZ", Type::Other, 8),
        ("F6_E2M3", Type::Other, 6),
        ("F6_E3M2", Type::Other, 6),
        ("F4", Type::Other, 4),
        ("C64", Type::Other, 64),
    ];
    ELEMENTS.iter().find(|(name, ..)| dtype.is(name)).map(|&(_, ty, bits)| (ty, bits))
}

/// Reads a safetensors file.
pub fn read(bytes: &[u8]) -> Result<Directory> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        let found = bytes.len();
        return Err(fail!(BadFile, "safetensors file: a length of 8 bytes expected, found {found} bytes"));
    };
    let length = u64::from_le_bytes(*length);
    if length > JSON_MAX {
        return Err(fail!(BadFile, "{HEADER}: at most {JSON_MAX} bytes expected, found {length}"));
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        let found = rest.len();
        return Err(fail!(BadFile, "{HEADER}: {length} bytes expected, found a file with {found} more"));
    };
    if header.first() != Some(&b'{') {
        return Err(fail!(BadFile, "{HEADER}: '{{' expected at byte {LENGTH}"));
    }
    let mut parser = Parser {
        json: Reader::new(header, HEADER, LENGTH)?,
        room: Vec::new(),
        texts: Texts::new(),
        data: LENGTH as u64 + length,
        data_len: data.len() as u64,
    };
    let mut tensors = Vec::new();
    let mut metadata = None;
    parser.json.open_object()?;
    while let Some(key) = parser.json.next_key()? {
        if key.is("__metadata__") {
            if metadata.is_some() {
                return Err(fail!(BadFile, "{HEADER}: __metadata__ is there twice"));
            }
            metadata = Some(parser.metadata()?);
            continue;
        }
        if tensors.len() as u64 == TENSORS_MAX {
            return Err(fail!(BadFile, "{HEADER}: at most {TENSORS_MAX} tensors expected, found more"));
        }
        let tensor = parser.tensor(key)?;
        reserve(&mut tensors, 1, "tensors")?;
        tensors.push(tensor);
    }
    parser.json.end()?;
    tiles(&tensors, &parser)?;
    Directory::new(Kind::Safetensors, tensors, metadata.unwrap_or_default(), parser.texts)
}

struct Parser<'a> {
    json: Reader<'a>,
    /// Where strings with escapes are decoded.
    room: Vec<u8>,
    texts: Texts,
    /// Where the data starts in the file.
    data: u64,
    data_len: u64,
}

impl<'a> Parser<'a> {
    fn metadata(&mut self) -> Result<Vec<Meta>> {
        let mut metadata = Vec::new();
        self.json.open_object()?;
        while let Some(key) = self.json.next_key()? {
            if metadata.len() as u64 == METADATA_MAX {
                return Err(fail!(BadFile, "{HEADER}: at most {METADATA_MAX} entries expected, found more"));
            }
            let key = self.texts.push(name(key.decode(&mut self.room)?, "metadata key")?)?;
            let value = self.json.string()?;
            let value = value.decode(&mut self.room)?;
            if value.len() as u64 > STRING_MAX {
                return Err(fail!(BadFile, "{HEADER}: a string of {} bytes", value.len()));
            }
            let value = Value::String(self.texts.push(value)?);
            reserve(&mut metadata, 1, "metadata entries")?;
            metadata.push(Meta { key, value });
        }
        Ok(metadata)
    }

    fn tensor(&mut self, key: Text<'a>) -> Result<Tensor> {
        let mut tensor = Tensor {
            name: self.texts.push(name(key.decode(&mut self.room)?, "tensor name")?)?,
            ty: Type::Other,
            dims: 0,
            shape: [1; DIMS_MAX],
            source: 0,
            offset: 0,
            bytes: 0,
        };
        self.fields(&mut tensor).map_err(|e| blame(e, &self.texts, &tensor))?;
        Ok(tensor)
    }

    /// The three fields of a tensor, in any order; others are passed over.
    fn fields(&mut self, tensor: &mut Tensor) -> Result<()> {
        let (mut bits, mut elements, mut range) = (None, None, None);
        let json = &mut self.json;
        json.open_object()?;
        while let Some(key) = json.next_key()? {
            let twice = if key.is("dtype") {
                let dtype = json.string()?;
                let Some((ty, width)) = element(dtype) else {
                    let dtype = Quoted(dtype.decode(&mut self.room)?);
                    return Err(fail!(Unsupported, "dtype {dtype} is not known"));
                };
                tensor.ty = ty;
                bits.replace(width).is_some()
            } else if key.is("shape") {
                elements.replace(shape(json, tensor)?).is_some()
            } else if key.is("data_offsets") {
                range.replace(pair(json)?).is_some()
            } else {
                json.skip()?;
                false
            };
            if twice {
                return Err(fail!(BadFile, "one of dtype, shape and data_offsets is there twice"));
            }
        }
        let (Some(bits), Some(elements), Some((begin, end))) = (bits, elements, range) else {
            return Err(fail!(
                BadFile,
                "dtype, shape and data_offsets expected, found {}",
                found(bits, elements, range)
            ));
        };
        if begin > end {
            return Err(fail!(BadFile, "data_offsets {begin} to {end} are reversed"));
        }
        let bytes = elements.checked_mul(bits).filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
        let Some(bytes) = bytes else {
            return Err(fail!(BadFile, "{elements} elements of {bits} bits are no number of bytes"));
        };
        if bytes != end - begin {
            return Err(fail!(
                BadFile,
                "data_offsets {begin} to {end}: {bytes} bytes expected, found {}",
                end - begin
            ));
        }
        if end > self.data_len {
            return Err(fail!(
                BadFile,
                "data_offsets {begin} to {end}, found {} bytes of data",
                self.data_len
            ));
        }
        tensor.offset = self.data + begin; // no overflow: both are inside the file
        tensor.bytes = bytes;
        Ok(())
    }
}

/// Which of the three fields are there.
fn found(bits: Option<u64>, elements: Option<u64>, range: Option<(u64, u64)>) -> &'static str {
    match (bits.is_some(), elements.is_some(), range.is_some()) {
        (false, false, false) => "none",
        (false, ..) => "no dtype",
        (_, false, _) => "no shape",
        _ => "no data_offsets",
    }
}

/// Reads a shape into `tensor` and returns its number of elements.
fn shape(json: &mut Reader<'_>, tensor: &mut Tensor) -> Result<u64> {
    let mut elements = Some(1u64);
    json.open_array()?;
    while json.next_item()? {
        let size = json.u64()?;
        elements = elements.and_then(|n| n.checked_mul(size)).filter(|&n| n <= i64::MAX as u64);
        if let Some(slot) = tensor.shape.get_mut(tensor.dims as usize) {
            *slot = size;
            tensor.dims += 1;
        } else {
            // Fold the two outermost. Where this overflows, so do the elements, or one is 0.
            tensor.shape[0] = tensor.shape[0].saturating_mul(tensor.shape[1]);
            tensor.shape.copy_within(2.., 1);
            tensor.shape[DIMS_MAX - 1] = size;
        }
    }
    // Beside a 0 any number leaves no elements; callers get dimensions as signed ones.
    if let Some(size) = tensor.shape.iter().find(|&&size| size > i64::MAX as u64) {
        return Err(fail!(BadFile, "shape: a dimension of at most 2^63 - 1 expected, found {size}"));
    }
    elements.ok_or_else(|| fail!(BadFile, "shape: more elements than 64 bits count"))
}

/// Reads two whole numbers.
fn pair(json: &mut Reader<'_>) -> Result<(u64, u64)> {
    let mut pair = [0; 2];
    json.open_array()?;
    for (i, slot) in pair.iter_mut().enumerate() {
        if !json.next_item()? {
            return Err(fail!(BadFile, "data_offsets: two numbers expected, found {i}"));
        }
        *slot = json.u64()?;
    }
    if json.next_item()? {
        return Err(fail!(BadFile, "data_offsets: two numbers expected, found more"));
    }
    Ok(pair.into())
}

/// A tensor's name or a key: it must survive as a C string.
fn name<'a>(name: &'a [u8], what: &str) -> Result<&'a [u8]> {
    if name.len() as u64 > NAME_MAX {
        return Err(fail!(BadFile, "{HEADER}: {what} of {} bytes, at most {NAME_MAX} expected", name.len()));
    }
    if name.contains(&0) {
        return Err(fail!(BadFile, "{HEADER}: {what} {} holds a NUL", Quoted(name)));
    }
    Ok(name)
}

#[cold]
fn blame(error: Error, texts: &Texts, tensor: &Tensor) -> Error {
    error.within(format_args!("safetensors tensor {}", Quoted(texts.get(tensor.name))))
}

/// Refuses gaps, overlaps and bytes that are no tensor's.
fn tiles(tensors: &[Tensor], parser: &Parser<'_>) -> Result<()> {
    let mut order = Vec::new();
    reserve(&mut order, tensors.len(), "tensors by offset")?;
    order.extend(0..tensors.len() as u32);
    // Empty tensors come before the one that starts at the same place.
    let place = |i: u32| (tensors[i as usize].offset, tensors[i as usize].bytes, i);
    order::sort(&mut order, &|a, b| place(a).cmp(&place(b)));
    let mut end = parser.data;
    for &i in &order {
        let tensor = &tensors[i as usize];
        if tensor.offset != end {
            let what = if tensor.offset < end { "overlaps the tensor before" } else { "leaves a gap" };
            let error = fail!(
                BadFile,
                "data_offsets: {} expected, found {}, which {what}",
                end - parser.data,
                tensor.offset - parser.data
            );
            return Err(blame(error, &parser.texts, tensor));
        }
        end += tensor.bytes; // no overflow: the sum stays inside the file
    }
    let (expected, found) = (end - parser.data, parser.data_len);
    if expected != found {
        return Err(fail!(BadFile, "safetensors file: {expected} bytes of data expected, found {found}"));
    }
    Ok(())
}
