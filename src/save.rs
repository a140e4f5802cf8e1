//! Layers to a packed file (`container::packed` draws it): the panels as they lie in memory.
//!
//! The file is written beside the one that it is to replace, brought to the disk and renamed: whoever
//! opens the name finds the old file or the whole new one. A file that is mapped under the old name
//! stays what it was.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3Default;

use crate::container::packed::{LAYER, Line, MAGIC, PAD, PART, PARTS, Part, RESERVED, VERSION, header_sum};
use crate::container::{Escaped, JsonText, Temporary};
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::layer::Linear;
use crate::limits::{JSON_MAX, METADATA_MAX, NAME_MAX, STRING_MAX, TENSORS_MAX};
use crate::memory::{ALIGNMENT, filled, reserve};
use crate::norm::Norm;
use crate::order;
use crate::rotation::Rotation;
use crate::types::Type;

/// A layer to save.
pub struct Named<'a> {
    /// Its name: that of the tensor to open.
    pub name: &'a str,
    /// The layer.
    pub linear: &'a Linear,
    /// The format that its weights were stored in.
    pub ty: Type,
}

/// Room in a tensor's name or a key for what is put round a layer's name.
const AROUND: usize = 32;

/// Writes a packed file.
pub fn save(path: &Path, layers: &[Named<'_>], texts: &[(&str, &str)]) -> Result<()> {
    check_names(layers, texts)?;
    let mut pieces = Vec::new();
    let header = header(layers, texts, &mut pieces)?;
    let io = |e: io::Error| fail!(Io, "{}: {e}", path.display());
    let (mut file, mut temporary) = Temporary::create(path).map_err(io)?;
    let written = write(&mut file, &header, &pieces).and_then(|()| file.sync_all());
    drop(file); // some systems rename only files that nobody has open
    written.and_then(|()| temporary.rename()).map_err(io)
}

fn write(out: &mut dyn Write, header: &[u8], pieces: &[Piece<'_>]) -> io::Result<()> {
    out.write_all(header)?;
    pieces.iter().try_for_each(|piece| piece.each(&mut |bytes| out.write_all(bytes)))
}

// ---- what is refused --------------------------------------------------------------------------

fn check_names(layers: &[Named<'_>], texts: &[(&str, &str)]) -> Result<()> {
    // Each layer has its panels, up to five parts and a pad.
    if layers.len() as u64 > TENSORS_MAX / 8 {
        return Err(fail!(Unsupported, "{} layers in one file", layers.len()));
    }
    for Named { name, linear, .. } in layers {
        let reserved = name.starts_with(RESERVED) || name.contains(PART);
        if name.is_empty() || reserved || *name == "__metadata__" {
            return Err(fail!(InvalidArgument, "a layer cannot be named `{name}` in a file"));
        }
        if name.len() + AROUND > NAME_MAX as usize {
            return Err(fail!(InvalidArgument, "a layer's name of {} bytes", name.len()));
        }
        linear.packed().layout().check(linear.in_features())?;
    }
    check_texts(texts, &[RESERVED])?;
    unique(layers.len(), |i| layers[i].name, "layers have the name")
}

/// Refuses texts that a reader would refuse or take for something else: the file's own keys, of which those with a dot
/// at the end are beginnings of keys.
pub(crate) fn check_texts(texts: &[(&str, &str)], reserved: &[&str]) -> Result<()> {
    if texts.len() as u64 > METADATA_MAX / 2 {
        return Err(fail!(Unsupported, "{} texts in one file", texts.len()));
    }
    for (key, value) in texts {
        if key.is_empty() || key.len() as u64 > NAME_MAX || key.contains('\0') {
            return Err(fail!(
                InvalidArgument,
                "a text cannot have the key `{key}`: 1 to {NAME_MAX} bytes without NUL expected"
            ));
        }
        if reserved.iter().any(|own| key == own || own.ends_with('.') && key.starts_with(own)) {
            return Err(fail!(
                InvalidArgument,
                "a text cannot have the key `{key}`, which is the file's own: give it another"
            ));
        }
        if value.len() as u64 > STRING_MAX {
            return Err(fail!(InvalidArgument, "a text of {} bytes", value.len()));
        }
    }
    unique(texts.len(), |i| texts[i].0, "texts have the key")
}

/// Refuses names that are there twice; at most `u32::MAX` of them.
pub(crate) fn unique<'a>(count: usize, name: impl Fn(usize) -> &'a str, what: &str) -> Result<()> {
    let mut order = Vec::new();
    reserve(&mut order, count, "sorted names")?;
    order.extend(0..count as u32);
    let name = |i: u32| name(i as usize);
    order::sort(&mut order, &|a, b| name(a).cmp(name(b)));
    match order.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        None => Ok(()),
        Some(pair) => Err(fail!(InvalidArgument, "two {what} `{}`", name(pair[0]))),
    }
}

// ---- the data ---------------------------------------------------------------------------------

/// Bytes of the data section, in the order of the file.
enum Piece<'a> {
    Panels(&'a [u8]),
    Floats(Part, Cow<'a, [f32]>),
    Columns(&'a [u32]),
    Zeros(usize),
}

/// Numbers that are turned into bytes at a time.
const AT_A_TIME: usize = 1024;

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Piece::Panels(bytes) => bytes.len(),
            Piece::Floats(_, values) => values.len() * 4,
            Piece::Columns(values) => values.len() * 4,
            Piece::Zeros(len) => *len,
        }
    }

    /// Hands its bytes, little endian, to `take` in one or more parts.
    fn each(&self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut words = [0u8; 4 * AT_A_TIME];
        let mut put = |count: usize, word: &dyn Fn(usize) -> [u8; 4]| {
            for (i, place) in words.as_chunks_mut().0.iter_mut().take(count).enumerate() {
                *place = word(i);
            }
            take(&words[..4 * count])
        };
        match self {
            Piece::Panels(bytes) => take(bytes),
            Piece::Floats(_, values) => {
                values.chunks(AT_A_TIME).try_for_each(|v| put(v.len(), &|i| v[i].to_le_bytes()))
            }
            Piece::Columns(values) => {
                values.chunks(AT_A_TIME).try_for_each(|v| put(v.len(), &|i| v[i].to_le_bytes()))
            }
            Piece::Zeros(len) => take(&[0; ALIGNMENT][..*len]),
        }
    }

    fn sum(&self) -> u64 {
        let mut hash = Xxh3Default::new();
        let _ = self.each(&mut |bytes| {
            hash.update(bytes);
            Ok(()) // hashing cannot fail
        });
        hash.digest()
    }
}

// ---- the header -------------------------------------------------------------------------------

/// What the header says of layers.
trait Tensors {
    fn part(&mut self, name: Escaped<'_>, part: Part, bytes: usize, at: &mut usize) -> Result<()>;
    fn tensor(&mut self, name: fmt::Arguments<'_>, dtype: &str, bytes: usize, at: &mut usize) -> Result<()>;
}

impl Tensors for JsonText {
    /// The same for a part of a layer.
    fn part(&mut self, name: Escaped<'_>, part: Part, bytes: usize, at: &mut usize) -> Result<()> {
        self.tensor(format_args!("{name}{PART}{}", part.name()), part.dtype().0, bytes, at)
    }

    /// `"name": {...},` for the tensor that the next piece holds.
    fn tensor(&mut self, name: fmt::Arguments<'_>, dtype: &str, bytes: usize, at: &mut usize) -> Result<()> {
        let count = if dtype == "U8" { bytes } else { bytes / 4 };
        let (begin, end) = (*at, *at + bytes);
        *at = end;
        self.put(format_args!(
            "\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[{count}],\"data_offsets\":[{begin},{end}]}},"
        ))
    }
}

/// The length and the header; `pieces` is what follows.
fn header<'a>(layers: &[Named<'a>], texts: &[(&str, &str)], pieces: &mut Vec<Piece<'a>>) -> Result<Vec<u8>> {
    let mut json = JsonText::default();
    json.put(format_args!("\0\0\0\0\0\0\0\0{MAGIC}{VERSION}0000000000000000\""))?;
    let sum_at = json.bytes.len() - 17..json.bytes.len() - 1;
    reserve(pieces, (2 + PARTS) * layers.len(), "tensors")?;
    for Named { name, linear, ty } in layers {
        let packed = linear.packed();
        let panels = Piece::Panels(packed.panels());
        let norm = linear.norm().map(Norm::spec);
        let signs = match linear.rotation() {
            Some(rotation) if rotation.has_signs() => {
                let mut signs = filled(rotation.columns(), 0.0f32, "signs")?;
                signs.iter_mut().enumerate().for_each(|(k, sign)| *sign = rotation.sign(k));
                Some(Cow::Owned(signs))
            }
            _ => None,
        };
        let parts = Part::ALL.into_iter().zip([
            linear.bias().map(|v| Piece::Floats(Part::Bias, Cow::Borrowed(v))),
            packed.permutation().map(Piece::Columns),
            norm.and_then(|n| n.weight).map(|v| Piece::Floats(Part::NormWeight, Cow::Borrowed(v))),
            norm.and_then(|n| n.bias).map(|v| Piece::Floats(Part::NormBias, Cow::Borrowed(v))),
            signs.map(|v| Piece::Floats(Part::RotationSigns, v)),
        ]);
        let (sum, mut sums, mut end) = (panels.sum(), [None; PARTS], panels.len());
        pieces.push(panels);
        for (part, piece) in parts {
            if let Some(piece) = piece {
                sums[part as usize] = Some(piece.sum());
                end += piece.len();
                pieces.push(piece);
            }
        }
        // Every layer starts at a multiple of 64; the pad marks where the next one begins.
        pieces.push(Piece::Zeros(end.next_multiple_of(ALIGNMENT) - end));
        let threshold = match linear.epilogue() {
            Epilogue::Relu { threshold } => threshold,
            _ => 0.0,
        };
        let line = Line {
            ty: *ty,
            out_features: packed.out_features(),
            in_features: packed.in_features(),
            layout: *packed.layout(),
            activation: linear.activation() as u32,
            activation_scale: linear.activation_scale(),
            product_scale: linear.product_scale(),
            norm: norm.map(|norm| (norm.kind as u32, norm.epsilon)),
            rotation: linear.rotation().map(Rotation::block),
            epilogue: match linear.epilogue() {
                Epilogue::None => None,
                epilogue => Some((epilogue.number(), threshold)),
            },
            sum,
            sums,
        };
        json.put(format_args!(",\"{LAYER}{}\":\"{line}\"", Escaped(name)))?;
    }
    for (key, value) in texts {
        json.put(format_args!(",\"{}\":\"{}\"", Escaped(key), Escaped(value)))?;
    }
    json.put(format_args!("}},"))?;
    let mut at = 0;
    let mut pieces = pieces.iter();
    for (number, Named { name, .. }) in layers.iter().enumerate() {
        for piece in pieces.by_ref() {
            let name = Escaped(name);
            match piece {
                Piece::Panels(_) => json.tensor(format_args!("{name}"), "U8", piece.len(), &mut at)?,
                Piece::Floats(part, _) => json.part(name, *part, piece.len(), &mut at)?,
                Piece::Columns(_) => json.part(name, Part::Permutation, piece.len(), &mut at)?,
                Piece::Zeros(0) => break,
                Piece::Zeros(_) => {
                    json.tensor(format_args!("{PAD}{number}"), "U8", piece.len(), &mut at)?;
                    break;
                }
            }
        }
    }
    let mut bytes = json.bytes;
    bytes.pop(); // the last comma
    let end = (bytes.len() + 1).next_multiple_of(ALIGNMENT);
    reserve(&mut bytes, ALIGNMENT + 1, "the header of a packed file")?;
    bytes.push(b'}');
    bytes.resize(end, b' ');
    let length = (end - 8) as u64;
    if length > JSON_MAX {
        return Err(fail!(Unsupported, "a header of {length} bytes; the format has at most {JSON_MAX}"));
    }
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    let sum = header_sum(&bytes);
    for (i, place) in bytes[sum_at].iter_mut().enumerate() {
        *place = b"0123456789abcdef"[(sum >> (60 - 4 * i) & 15) as usize];
    }
    Ok(bytes)
}
