//! Model files: bytes -> named byte ranges and metadata.
//!
//! A reader turns untrusted bytes into a [`Directory`]: every tensor's range lies inside its source,
//! shapes do not overflow, names are unique. Readers know formats of files, not of weights: the
//! bytes of a tensor are the codecs' business.

mod artifact;
mod config;
mod files;
pub mod gguf;
mod json;
mod json_text;
pub mod packed;
pub mod safetensors;
mod safetensors_write;
mod sharded;
mod source;
mod temporary;
mod text;

pub use config::Config;
pub use files::{Access, Files};
pub use json_text::{Escaped, JsonText};
pub use safetensors_write::SafetensorsHeader;
pub use source::Source;
pub use temporary::Temporary;
pub(crate) use text::Quoted;
pub use text::{Str, Texts};

use crate::error::{Result, fail};
use crate::limits::DIMS_MAX;
use crate::memory::reserve;
use crate::order;
use crate::types::Type;

/// Which kind of file it is; the numbers are those of `bl_model_info.container`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// safetensors, one file or shards.
    Safetensors = 1,
    /// GGUF, one file or splits.
    Gguf = 2,
    /// bitlinear's own packed file.
    Packed = 3,
    /// burn_dragon's JSON artifacts.
    Artifact = 4,
}

/// What a file holds. Made by [`Directory::new`], which sorts the names for the look-ups.
#[derive(Debug)]
pub struct Directory {
    /// Its kind.
    pub kind: Kind,
    /// Tensors in the file's order; names are unique.
    pub tensors: Vec<Tensor>,
    /// Metadata in the file's order; keys are unique.
    pub metadata: Vec<Meta>,
    /// The bytes of all names, keys and strings.
    pub texts: Texts,
    /// Packed files: the layer in each of `tensors`. Else empty.
    pub layers: Vec<packed::Layer>,
    /// Indices of `tensors` in the order of their names.
    by_name: Vec<u32>,
    /// Indices of `metadata` in the order of their keys.
    by_key: Vec<u32>,
}

/// One tensor: where its bytes are and what they are.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: Str,
    /// Stored format.
    pub ty: Type,
    /// How many entries of `shape` count: 0 to 4.
    pub dims: u32,
    /// Shape, outermost dimension first: a weight is `[out_features, in_features]`. The entries
    /// from `dims` on are 1.
    pub shape: [u64; DIMS_MAX],
    /// Which source (shard) it is in.
    pub source: u32,
    /// First byte in that source.
    pub offset: u64,
    /// Bytes. `offset + bytes` is inside the source.
    pub bytes: u64,
}

/// One metadata entry.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Its key.
    pub key: Str,
    /// Its value.
    pub value: Value,
}

/// A metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    U64(u64),
    /// Any signed integer.
    I64(i64),
    /// Any float.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    String(Str),
    /// An array of values of one kind.
    Array(Array),
}

/// Kind of the items of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Unsigned integers of that many bytes.
    Unsigned(u8),
    /// Signed integers of that many bytes.
    Signed(u8),
    /// Floats of that many bytes.
    Float(u8),
    /// Truth values of one byte.
    Bool,
    /// Strings.
    String,
    /// Arrays: counted, not readable item by item.
    Array,
}

/// A metadata array. Numbers stay in the file's bytes; strings are in the directory's texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// What it holds.
    pub item: Item,
    /// How many.
    pub count: u64,
    /// Numbers: the first byte in source 0. Strings: the index of the first in `Texts`. Else unused.
    pub first: u64,
}

impl Directory {
    /// The directory of these tensors and entries; refused where a name or key is there twice.
    pub fn new(kind: Kind, tensors: Vec<Tensor>, metadata: Vec<Meta>, texts: Texts) -> Result<Directory> {
        let by_name = sorted(&texts, tensors.len(), |i| tensors[i].name, "tensor name")?;
        let by_key = sorted(&texts, metadata.len(), |i| metadata[i].key, "metadata key")?;
        Ok(Directory { kind, tensors, metadata, texts, layers: Vec::new(), by_name, by_key })
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: impl AsRef<[u8]>) -> Option<&Tensor> {
        self.tensors.get(self.index(name)? as usize)
    }

    /// The index in `tensors` of the tensor of that name.
    pub fn index(&self, name: impl AsRef<[u8]>) -> Option<u32> {
        let at = |&i: &u32| self.texts.get(self.tensors[i as usize].name).cmp(name.as_ref());
        let found = self.by_name.binary_search_by(at).ok()?;
        self.by_name.get(found).copied()
    }

    /// The layer that a tensor of a packed file holds.
    pub fn layer(&self, tensor: &Tensor) -> Option<&packed::Layer> {
        self.layers.get(self.index(self.name(tensor))? as usize)
    }

    /// The tensor at `index` in the file's order.
    pub fn tensor_at(&self, index: u64) -> Option<&Tensor> {
        self.tensors.get(usize::try_from(index).ok()?)
    }

    /// The name of a tensor of this directory.
    pub fn name(&self, tensor: &Tensor) -> &[u8] {
        self.texts.get(tensor.name)
    }

    /// The item of an array, as if it were a value; `None` past the end and for nested arrays.
    /// `source` is the bytes of source 0.
    pub fn item(&self, array: &Array, index: u64, source: &[u8]) -> Option<Value> {
        if index >= array.count {
            return None;
        }
        let number = |width: u8| -> Option<u64> {
            let at = usize::try_from(array.first.checked_add(index.checked_mul(width as u64)?)?).ok()?;
            let bytes = source.get(at..at.checked_add(width as usize)?)?;
            let mut word = [0u8; 8];
            word.get_mut(..bytes.len())?.copy_from_slice(bytes);
            Some(u64::from_le_bytes(word))
        };
        Some(match array.item {
            Item::Unsigned(width) => Value::U64(number(width)?),
            Item::Signed(width) => {
                let shift = 64 - 8 * width as u32;
                Value::I64((number(width)? << shift) as i64 >> shift)
            }
            Item::Float(4) => Value::F64(f32::from_bits(number(4)? as u32) as f64),
            Item::Float(_) => Value::F64(f64::from_bits(number(8)?)),
            Item::Bool => Value::Bool(number(1)? != 0),
            Item::String => Value::String(self.texts.item(array.first, index)?),
            Item::Array => return None,
        })
    }

    /// The entry of that key.
    pub fn meta(&self, key: impl AsRef<[u8]>) -> Option<&Meta> {
        let at = |&i: &u32| self.texts.get(self.metadata[i as usize].key).cmp(key.as_ref());
        let found = self.by_key.binary_search_by(at).ok()?;
        self.metadata.get(self.by_key[found] as usize)
    }

    /// The text of a string entry.
    pub fn meta_text(&self, key: &str) -> Option<&str> {
        match self.meta(key)?.value {
            Value::String(s) => str::from_utf8(self.texts.get(s)).ok(),
            _ => None,
        }
    }
}

/// The numbers `0..count` in the order of their texts; refused where two texts are the same. Sorting
/// (rather than hashing) bounds the work whatever names a file has.
fn sorted(texts: &Texts, count: usize, text: impl Fn(usize) -> Str, what: &str) -> Result<Vec<u32>> {
    let end = u32::try_from(count).map_err(|_| fail!(Unsupported, "{count} entries in one file"))?;
    let mut order = Vec::new();
    reserve(&mut order, count, "sorted names")?;
    order.extend(0..end);
    let text = |i: u32| texts.get(text(i as usize));
    order::sort(&mut order, &|a, b| text(a).cmp(text(b)));
    match order.windows(2).find(|pair| text(pair[0]) == text(pair[1])) {
        None => Ok(order),
        Some(pair) => Err(fail!(
            BadFile,
            "{what} {} is there twice: entries {} and {}",
            Quoted(text(pair[0])),
            pair[0].min(pair[1]),
            pair[0].max(pair[1])
        )),
    }
}

/// Reads the directory of a single file that is used in place, told by its first bytes. Whole models
/// (in several files, or in JSON) are opened by [`Files`].
pub fn read(bytes: &[u8]) -> Result<Directory> {
    if gguf::is(bytes) {
        gguf::read(bytes)
    } else if safetensors::is(bytes) {
        packed::read(bytes, safetensors::read(bytes)?)
    } else {
        Err(files::unknown(bytes))
    }
}
