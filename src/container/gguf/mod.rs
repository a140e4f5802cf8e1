//! GGUF, versions 2 and 3.
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | entries u64
//! entry   key string | kind u32 | value                              ... entries times
//! tensor  name string | dims u32 | dims x u64 | type u32 | offset u64 ... tensors times
//! padding to the alignment
//! data    offset 0: a tensor | padding | a tensor | padding ...
//!
//! string  length u64 | bytes         array value  kind u32 | count u64 | values
//! ```
//! All little endian. Dimensions are innermost first here and outermost first in a `Tensor`.
//! Offsets count from the start of the data. Source: the GGUF specification in ggml's `docs/gguf.md`.
//!
//! A number of the file is compared with the bytes that are left before anything is allocated for it.

mod split;
mod types;
mod write;

pub use split::{Split, split};
pub use write::{Entry, Header, id_of};

use super::{Array, Directory, Item, Kind, Meta, Quoted, Str, Texts, Value};
use crate::error::{Result, fail};
use crate::limits::{ARRAY_MAX, DIMS_MAX, METADATA_MAX, NAME_MAX, NESTING_MAX, STRING_MAX, TENSORS_MAX};
use crate::memory::reserve;

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT_DEFAULT: u64 = 32;
/// Bytes that an entry takes at least: an empty key, a kind, one byte.
const ENTRY_MIN: u64 = 8 + 4 + 1;
/// Bytes that a tensor takes at least: an empty name, no dimensions, a type, an offset.
const TENSOR_MIN: u64 = 8 + 4 + 4 + 8;

/// Whether the bytes begin as a GGUF file does.
pub(super) fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// What the tensors' types and ranges depend on.
struct Facts {
    alignment: u64,
    /// `general.architecture`.
    architecture: Option<Str>,
    /// `craftsman.bitnet.weight_encoding`.
    encoding: Option<Str>,
    /// Where the data starts.
    data: u64,
    /// The file's length.
    end: u64,
}

/// A tensor as the header has it: type and range are not settled yet.
struct Info {
    name: Str,
    id: u32,
    dims: u32,
    /// Outermost first.
    shape: [u64; DIMS_MAX],
    /// From the start of the data.
    offset: u64,
}

/// Reads a GGUF file.
pub fn read(bytes: &[u8]) -> Result<Directory> {
    let mut header = Cursor { bytes, at: 0 };
    if !is(bytes) {
        let found = &bytes[..bytes.len().min(4)];
        return Err(fail!(BadFile, "GGUF file: \"GGUF\" expected at byte 0, found {}", Quoted(found)));
    }
    header.at = MAGIC.len();
    let version = header.u32("version")?;
    match version {
        2 | 3 => {}
        1 => return Err(fail!(Unsupported, "GGUF version 1 (32-bit counts): convert the file to version 3")),
        _ if (2..=3).contains(&version.swap_bytes()) => {
            return Err(fail!(Unsupported, "big-endian GGUF file (version {version:#010x} at byte 4)"));
        }
        _ => return Err(fail!(Unsupported, "GGUF version 2 or 3 expected at byte 4, found {version}")),
    }
    let tensor_count = header.count("tensor", TENSORS_MAX)?;
    let entry_count = header.count("metadata entry", METADATA_MAX)?;
    header.room("metadata entries", entry_count, ENTRY_MIN)?;
    header.room("tensors", tensor_count, TENSOR_MIN)?;

    let mut texts = Texts::new();
    let mut metadata = Vec::new();
    let mut facts = Facts {
        alignment: ALIGNMENT_DEFAULT,
        architecture: None,
        encoding: None,
        data: 0,
        end: bytes.len() as u64,
    };
    reserve(&mut metadata, entry_count as usize, "metadata entries")?;
    for index in 0..entry_count {
        let meta = header
            .entry(&mut texts)
            .map_err(|e| e.within(format_args!("GGUF metadata entry {index} of {entry_count}")))?;
        facts.note(&meta, &texts)?;
        metadata.push(meta);
    }
    let mut infos = Vec::new();
    reserve(&mut infos, tensor_count as usize, "tensors")?;
    for index in 0..tensor_count {
        let info = header
            .info(&mut texts)
            .map_err(|e| e.within(format_args!("GGUF tensor {index} of {tensor_count}")))?;
        infos.push(info);
    }
    facts.data = (header.at as u64)
        .checked_next_multiple_of(facts.alignment)
        .ok_or_else(|| fail!(BadFile, "GGUF alignment {} overflows", facts.alignment))?;
    let tensors = types::settle(&infos, &facts, &texts)?;
    Directory::new(Kind::Gguf, tensors, metadata, texts)
}

/// The bytes of each metadata entry after its key, which are its kind and its value, with the key: what
/// a writer takes over as it is.
pub fn entries(bytes: &[u8]) -> Result<Vec<(&[u8], &[u8])>> {
    let mut header = Cursor { bytes, at: MAGIC.len() };
    header.u32("version")?;
    header.count("tensor", TENSORS_MAX)?;
    let count = header.count("metadata entry", METADATA_MAX)?;
    header.room("metadata entries", count, ENTRY_MIN)?;
    let mut found = Vec::new();
    reserve(&mut found, count as usize, "metadata entries")?;
    for _ in 0..count {
        let key = header.name("key")?;
        let start = header.at;
        header.value(&mut Texts::new())?;
        found.push((key, &bytes[start..header.at]));
    }
    Ok(found)
}

impl Facts {
    /// Takes from an entry what the tensors depend on.
    fn note(&mut self, meta: &Meta, texts: &Texts) -> Result<()> {
        match (texts.get(meta.key), meta.value) {
            (b"general.alignment", Value::U64(n)) if n.is_power_of_two() => self.alignment = n,
            (b"general.alignment", Value::U64(n)) => {
                return Err(fail!(BadFile, "general.alignment: a power of two expected, found {n}"));
            }
            (b"general.alignment", _) => {
                return Err(fail!(
                    BadFile,
                    "general.alignment: an unsigned integer expected, found another kind"
                ));
            }
            (b"general.architecture", Value::String(s)) => self.architecture = Some(s),
            (b"craftsman.bitnet.weight_encoding", Value::String(s)) => self.encoding = Some(s),
            _ => {}
        }
        Ok(())
    }
}

/// Width in bytes and meaning of the numbers among the kinds of values.
fn number(kind: u32) -> Option<(Item, u64)> {
    Some(match kind {
        0 => (Item::Unsigned(1), 1),
        1 => (Item::Signed(1), 1),
        2 => (Item::Unsigned(2), 2),
        3 => (Item::Signed(2), 2),
        4 => (Item::Unsigned(4), 4),
        5 => (Item::Signed(4), 4),
        6 => (Item::Float(4), 4),
        7 => (Item::Bool, 1),
        10 => (Item::Unsigned(8), 8),
        11 => (Item::Signed(8), 8),
        12 => (Item::Float(8), 8),
        _ => return None,
    })
}
const KIND_STRING: u32 = 8;
const KIND_ARRAY: u32 = 9;

/// A place in the header. It never passes the end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        if len > self.left() {
            return Err(fail!(
                BadFile,
                "GGUF header ends early: {what} at byte {} takes {len} bytes, found {}",
                self.at,
                self.left()
            ));
        }
        let taken = &self.bytes[self.at..][..len as usize];
        self.at += len as usize;
        Ok(taken)
    }

    fn word<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut word = [0; N];
        word.copy_from_slice(self.take(N as u64, what)?);
        Ok(word)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.word(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.word(what).map(u64::from_le_bytes)
    }

    /// One of the two counts of the header.
    fn count(&mut self, what: &str, most: u64) -> Result<u64> {
        let at = self.at;
        let count = self.u64(what)?;
        if count > most {
            return Err(fail!(
                BadFile,
                "GGUF {what} count at byte {at}: at most {most} expected, found {count}"
            ));
        }
        Ok(count)
    }

    /// Refuses a count of things that the rest of the file cannot hold.
    fn room(&self, what: &str, count: u64, bytes_each: u64) -> Result<()> {
        if count > self.left() / bytes_each {
            return Err(fail!(
                BadFile,
                "{count} {what} of at least {bytes_each} bytes expected from byte {} on, found {} bytes",
                self.at,
                self.left()
            ));
        }
        Ok(())
    }

    fn string(&mut self, what: &str, most: u64) -> Result<&'a [u8]> {
        let at = self.at;
        let len = self.u64(what)?;
        if len > most {
            return Err(fail!(BadFile, "{what} at byte {at}: at most {most} bytes expected, found {len}"));
        }
        self.take(len, what)
    }

    /// A tensor's name or a key: it must survive as a C string.
    fn name(&mut self, what: &str) -> Result<&'a [u8]> {
        let at = self.at;
        let name = self.string(what, NAME_MAX)?;
        if name.contains(&0) {
            return Err(fail!(BadFile, "{what} {} at byte {at} holds a NUL", Quoted(name)));
        }
        Ok(name)
    }

    /// One metadata entry.
    fn entry(&mut self, texts: &mut Texts) -> Result<Meta> {
        let name = self.name("key")?;
        let key = texts.push(name)?;
        let value = self.value(texts).map_err(|e| e.within(format_args!("{}", Quoted(name))))?;
        Ok(Meta { key, value })
    }

    fn value(&mut self, texts: &mut Texts) -> Result<Value> {
        let kind_at = self.at;
        let kind = self.u32("kind")?;
        match kind {
            KIND_STRING => Ok(Value::String(texts.push(self.string("string", STRING_MAX)?)?)),
            KIND_ARRAY => self.array(texts).map(Value::Array),
            _ => {
                let Some((item, width)) = number(kind) else {
                    return Err(fail!(
                        BadFile,
                        "kind of value at byte {kind_at}: 0 to 12 expected, found {kind}"
                    ));
                };
                let mut word = [0; 8];
                word[..width as usize].copy_from_slice(self.take(width, "value")?);
                let bits = u64::from_le_bytes(word);
                let shift = 64 - 8 * width as u32;
                Ok(match item {
                    Item::Signed(_) => Value::I64((bits << shift) as i64 >> shift),
                    Item::Float(4) => Value::F64(f32::from_bits(bits as u32) as f64),
                    Item::Float(_) => Value::F64(f64::from_bits(bits)),
                    Item::Bool => Value::Bool(bits != 0),
                    _ => Value::U64(bits),
                })
            }
        }
    }

    /// Kind and count of an array, the count checked against what is left.
    fn array_header(&mut self) -> Result<(u32, u64)> {
        let at = self.at;
        let kind = self.u32("kind of array items")?;
        let each = match (kind, number(kind)) {
            (_, Some((_, width))) => width,
            (KIND_STRING, _) => 8,
            (KIND_ARRAY, _) => 12,
            _ => {
                return Err(fail!(
                    BadFile,
                    "kind of array items at byte {at}: 0 to 12 expected, found {kind}"
                ));
            }
        };
        let count = self.u64("count of array items")?;
        if count > ARRAY_MAX {
            return Err(fail!(
                BadFile,
                "array at byte {at}: at most {ARRAY_MAX} items expected, found {count}"
            ));
        }
        self.room("array items", count, each)?;
        Ok((kind, count))
    }

    fn array(&mut self, texts: &mut Texts) -> Result<Array> {
        let (kind, count) = self.array_header()?;
        if let Some((item, width)) = number(kind) {
            let first = self.at as u64;
            self.take(count * width, "array")?; // no overflow: `array_header` compared with the rest
            return Ok(Array { item, count, first });
        }
        if kind == KIND_STRING {
            let first = texts.item_count();
            for _ in 0..count {
                texts.push_item(self.string("string of an array", STRING_MAX)?)?;
            }
            return Ok(Array { item: Item::String, count, first });
        }
        self.skip_nested(count)?;
        Ok(Array { item: Item::Array, count, first: 0 })
    }

    /// Passes over `count` arrays, which may hold arrays in turn. The stack is ours, and small: a
    /// file must not choose how deep the machine's grows.
    fn skip_nested(&mut self, count: u64) -> Result<()> {
        let mut open = [0u64; NESTING_MAX as usize];
        open[0] = count;
        let mut depth = 0;
        loop {
            if open[depth] == 0 {
                if depth == 0 {
                    return Ok(());
                }
                depth -= 1;
                continue;
            }
            open[depth] -= 1;
            let at = self.at;
            let (kind, count) = self.array_header()?;
            match number(kind) {
                Some((_, width)) => {
                    self.take(count * width, "array")?;
                }
                None if kind == KIND_STRING => {
                    for _ in 0..count {
                        self.string("string of an array", STRING_MAX)?;
                    }
                }
                None => {
                    depth += 1;
                    let Some(level) = open.get_mut(depth) else {
                        return Err(fail!(
                            BadFile,
                            "array at byte {at}: at most {NESTING_MAX} nested arrays expected, found more"
                        ));
                    };
                    *level = count;
                }
            }
        }
    }

    /// One tensor's description.
    fn info(&mut self, texts: &mut Texts) -> Result<Info> {
        let name = self.name("name")?;
        let within = |e: crate::error::Error| e.within(format_args!("{}", Quoted(name)));
        let stored_name = texts.push(name)?;
        let at = self.at;
        let dims = self.u32("number of dimensions").map_err(within)?;
        if dims as usize > DIMS_MAX {
            return Err(within(fail!(
                BadFile,
                "number of dimensions at byte {at}: at most {DIMS_MAX} expected, found {dims}"
            )));
        }
        let mut shape = [1; DIMS_MAX];
        for slot in shape[..dims as usize].iter_mut().rev() {
            let at = self.at;
            *slot = self.u64("dimension").map_err(within)?;
            if *slot == 0 {
                return Err(within(fail!(BadFile, "dimension at byte {at}: at least 1 expected, found 0")));
            }
        }
        let at = self.at;
        let id = self.u32("type").map_err(within)?;
        types::known(id, at).map_err(within)?;
        let offset = self.u64("offset").map_err(within)?;
        Ok(Info { name: stored_name, id, dims, shape, offset })
    }
}
