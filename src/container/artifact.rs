//! burn_dragon's artifacts: packed weights as numbers in a JSON text.
//!
//! ```text
//! {"decoder_x": A | null, "decoder_y": A | null, "encoder": A | null}      or one A alone
//!
//! A = {"encoding": "binary1" | "ternary2" | "int8", "logical_shape": [4, 64, 128],
//!      "scale": 0.60833335, "packed": [45, 12, ...], "len": 32768}
//! ```
//! The numbers become bytes once, when the file is opened; the directory is of those:
//!
//! ```text
//! tensor "decoder_x"        binary, ternary2 or int8; logical_shape
//! tensor "decoder_x.scale"  f32, [1]
//! ```
//! each at a multiple of 64. One artifact alone is called "artifact". The shapes are burn_dragon's:
//! the axis that is summed over is the second last. Source: burn_dragon_core 0.5.0, its serialised
//! structs.

use super::json::{Kind as Json, Reader, Text};
use super::{Directory, Kind, Quoted, Source, Tensor, Texts};
use crate::error::{Result, fail};
use crate::limits::DIMS_MAX;
use crate::memory::{ALIGNMENT, Buffer, reserve};
use crate::types::Type;

const WHAT: &str = "artifact";
/// Name of an artifact that stands alone.
const ALONE: &str = "artifact";

/// Reads the artifacts of a JSON text: their bytes and the directory of those.
pub(super) fn read(text: &[u8]) -> Result<(Directory, Source)> {
    // A number and its comma are at least two characters; three artifacts and their scales are
    // padded. Pages of the buffer that stay unused are never touched, so they cost nothing.
    let capacity = text.len() / 2 + 8 * ALIGNMENT;
    let mut store = Store {
        buffer: Buffer::zeroed(capacity, "artifact")?,
        len: 0,
        texts: Texts::new(),
        tensors: Vec::new(),
        room: Vec::new(),
    };
    let mut json = Reader::new(text, WHAT, 0)?;
    if json.clone().find(&["encoding"]).is_some() {
        store.artifact(&mut json, ALONE.as_bytes())?;
    } else {
        json.open_object()?;
        while let Some(key) = json.next_key()? {
            let known = ["decoder_x", "decoder_y", "encoder"].into_iter().find(|known| key.is(known));
            match (known, json.peek()?) {
                (Some(name), Json::Object) => store
                    .artifact(&mut json, name.as_bytes())
                    .map_err(|e| e.within(format_args!("{WHAT} {name}")))?,
                _ => json.skip()?,
            }
        }
    }
    json.end()?;
    if store.tensors.is_empty() {
        return Err(fail!(
            BadFile,
            "JSON file: an artifact or an index of safetensors expected, found neither"
        ));
    }
    let directory = Directory::new(Kind::Artifact, store.tensors, Vec::new(), store.texts)?;
    Ok((directory, Source::of_buffer(store.buffer, store.len)))
}

/// What was read so far.
struct Store {
    buffer: Buffer,
    len: usize,
    texts: Texts,
    tensors: Vec<Tensor>,
    room: Vec<u8>,
}

impl Store {
    fn put(&mut self, byte: u8) -> Result<()> {
        // Never past the end, by the capacity chosen in `read`; a mistake there must not be unsound.
        let slot = self.buffer.bytes_mut().get_mut(self.len);
        *slot.ok_or_else(|| fail!(Internal, "artifact: more bytes than its text can hold"))? = byte;
        self.len += 1;
        Ok(())
    }

    fn artifact(&mut self, json: &mut Reader<'_>, name: &[u8]) -> Result<()> {
        if self.tensors.iter().any(|tensor| self.texts.get(tensor.name) == name) {
            return Err(fail!(BadFile, "it is there twice"));
        }
        self.len = self.len.next_multiple_of(ALIGNMENT);
        let offset = self.len as u64;
        let (mut encoding, mut shape, mut scale, mut packed, mut len) = (None, None, None, None, None);
        json.open_object()?;
        while let Some(key) = json.next_key()? {
            let twice = if key.is("encoding") {
                encoding.replace(self.encoding(json.string()?)?).is_some()
            } else if key.is("logical_shape") {
                shape.replace(logical_shape(json)?).is_some()
            } else if key.is("scale") {
                scale.replace(finite(json)?).is_some()
            } else if key.is("packed") {
                packed.replace(self.packed(json)?).is_some()
            } else if key.is("len") {
                len.replace(json.u64()?).is_some()
            } else {
                json.skip()?;
                false
            };
            if twice {
                return Err(fail!(BadFile, "a field is there twice"));
            }
        }
        let (Some((ty, bits)), Some((dims, shape, elements)), Some(scale), Some(bytes)) =
            (encoding, shape, scale, packed)
        else {
            return Err(fail!(BadFile, "encoding, logical_shape, scale and packed expected, found fewer"));
        };
        if len.is_some_and(|len| len != elements) {
            return Err(fail!(BadFile, "len: {elements} expected, found {}", len.unwrap_or(0)));
        }
        let expected = elements.checked_mul(bits).map(|bits| bits.div_ceil(8));
        if expected != Some(bytes) {
            return Err(fail!(
                BadFile,
                "packed: {elements} values of {bits} bits expected, found {bytes} bytes"
            ));
        }
        let weight = Tensor { name: self.texts.push(name)?, ty, dims, shape, source: 0, offset, bytes };
        self.len = self.len.next_multiple_of(ALIGNMENT);
        let at = self.len as u64;
        for byte in scale.to_le_bytes() {
            self.put(byte)?;
        }
        self.room.clear();
        reserve(&mut self.room, name.len() + 6, "name")?;
        self.room.extend_from_slice(name);
        self.room.extend_from_slice(b".scale");
        let name = self.texts.push(&self.room)?;
        let scale =
            Tensor { name, ty: Type::F32, dims: 1, shape: [1; DIMS_MAX], source: 0, offset: at, bytes: 4 };
        reserve(&mut self.tensors, 2, "tensors")?;
        self.tensors.extend([weight, scale]);
        Ok(())
    }

    fn encoding(&mut self, encoding: Text<'_>) -> Result<(Type, u64)> {
        for (name, ty, bits) in
            [("binary1", Type::Binary, 1), ("ternary2", Type::Ternary2, 2), ("int8", Type::Int8, 8)]
        {
            if encoding.is(name) {
                return Ok((ty, bits));
            }
        }
        let found = Quoted(encoding.decode(&mut self.room)?);
        Err(fail!(Unsupported, "encoding: binary1, ternary2 or int8 expected, found {found}"))
    }

    /// Stores an array of bytes and returns how many there are.
    fn packed(&mut self, json: &mut Reader<'_>) -> Result<u64> {
        let start = self.len;
        json.open_array()?;
        while json.next_item()? {
            let number = json.u64()?;
            let byte = u8::try_from(number);
            let index = self.len - start;
            self.put(
                byte.map_err(|_| fail!(BadFile, "packed: a byte expected at {index}, found {number}"))?,
            )?;
        }
        Ok((self.len - start) as u64)
    }
}

/// Number of dimensions, shape and number of elements.
fn logical_shape(json: &mut Reader<'_>) -> Result<(u32, [u64; DIMS_MAX], u64)> {
    let mut shape = [1; DIMS_MAX];
    let mut dims = 0;
    let mut elements = 1u64;
    json.open_array()?;
    while json.next_item()? {
        let slot = shape.get_mut(dims).ok_or_else(|| {
            fail!(BadFile, "logical_shape: at most {DIMS_MAX} dimensions expected, found more")
        })?;
        *slot = json.u64()?;
        dims += 1;
        let product = elements.checked_mul(*slot).filter(|&n| n > 0 && n <= i64::MAX as u64);
        elements = product
            .ok_or_else(|| fail!(BadFile, "logical_shape: no elements, or more than 64 bits count"))?;
    }
    Ok((dims as u32, shape, elements))
}

/// A finite f32: the text is rounded once, as the shortest text of an f32 needs.
fn finite(json: &mut Reader<'_>) -> Result<f32> {
    let text = json.number()?;
    let number = text.parse::<f32>().ok().filter(|f| f.is_finite());
    number.ok_or_else(|| fail!(BadFile, "scale: a finite f32 expected, found {}", Quoted(text.as_bytes())))
}
