//! Layers to a packed file (`container::packed` draws it): the panels as they lie in memory.
//!
//! The file is written beside the one that it is to replace, brought to the disk and renamed: whoever
//! opens the name finds the old file or the whole new one. A file that is mapped under the old name
//! stays what it was.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use xxhash_rust::xxh3::Xxh3Default;

use crate::container::packed::{LAYER, Line, MAGIC, PAD, PART, PARTS, Part, RESERVED, VERSION, header_sum};
use crate::epilogue::Epilogue;
use crate::error::{Error, Result, fail};
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
    written.and_then(|()| temporary.rename(path)).map_err(io)
}

fn write(out: &mut dyn Write, header: &[u8], pieces: &[Piece<'_>]) -> io::Result<()> {
    out.write_all(header)?;
    pieces.iter().try_for_each(|piece| piece.each(&mut |bytes| out.write_all(bytes)))
}

// ---- what is refused --------------------------------------------------------------------------

fn check_names(layers: &[Named<'_>], texts: &[(&str, &str)]) -> Result<()> {
    // Each layer has its panels, up to five parts and a pad.
    if layers.len() as u64 > TENSORS_MAX / 8 || texts.len() as u64 > METADATA_MAX / 2 {
        return Err(fail!(Unsupported, "{} layers and {} texts in one file", layers.len(), texts.len()));
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
    for (key, value) in texts {
        if key.is_empty() || key.starts_with(RESERVED) || key.len() as u64 > NAME_MAX {
            return Err(fail!(
                InvalidArgument,
                "a text cannot have the key `{key}`: not empty, nor beginning with `{RESERVED}`"
            ));
        }
        if value.len() as u64 > STRING_MAX {
            return Err(fail!(InvalidArgument, "a text of {} bytes", value.len()));
        }
    }
    unique(layers.len(), |i| layers[i].name, "layers have the name")?;
    unique(texts.len(), |i| texts[i].0, "texts have the key")
}

fn unique<'a>(count: usize, name: impl Fn(usize) -> &'a str, what: &str) -> Result<()> {
    let mut order = Vec::new();
    reserve(&mut order, count, "sorted names")?;
    order.extend(0..count as u32); // checked against TENSORS_MAX and METADATA_MAX above
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

/// Text that grows fallibly.
#[derive(Default)]
struct Json {
    bytes: Vec<u8>,
    failed: Option<Error>,
}

impl fmt::Write for Json {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Err(error) = reserve(&mut self.bytes, text.len(), "the header of a packed file") {
            self.failed = Some(error);
            return Err(fmt::Error);
        }
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Json {
    fn put(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        match self.write_fmt(text) {
            Ok(()) => Ok(()),
            Err(_) => {
                Err(self.failed.take().unwrap_or_else(|| fail!(Internal, "the header of a packed file")))
            }
        }
    }

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

/// Text inside a JSON string.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
            let (plain, special) = rest.split_at(at);
            let (special, after) = special.split_at(1); // all of them are ASCII
            f.write_str(plain)?;
            match special {
                "\"" | "\\" => write!(f, "\\{special}")?,
                _ => write!(f, "\\u{:04x}", special.as_bytes()[0])?,
            }
            rest = after;
        }
        f.write_str(rest)
    }
}

/// The length and the header; `pieces` is what follows.
fn header<'a>(layers: &[Named<'a>], texts: &[(&str, &str)], pieces: &mut Vec<Piece<'a>>) -> Result<Vec<u8>> {
    let mut json = Json::default();
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

// ---- the file beside --------------------------------------------------------------------------

/// A file that is gone with this, unless it was renamed.
struct Temporary(Option<PathBuf>);

impl Temporary {
    /// A new file in the folder of `path`.
    fn create(path: &Path) -> io::Result<(File, Temporary)> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let Some(name) = path.file_name() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let mut beside = name.to_os_string();
            beside.push(format!(".{}-{number}.tmp", std::process::id()));
            let beside = path.with_file_name(beside);
            match File::options().write(true).create_new(true).open(&beside) {
                Ok(file) => return Ok((file, Temporary(Some(beside)))),
                // Another process of that number left it, in a container perhaps.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn rename(&mut self, path: &Path) -> io::Result<()> {
        if let Some(beside) = &self.0 {
            std::fs::rename(beside, path)?;
            self.0 = None;
            // The name, too, is to be on the disk. Not every file system can; the file is whole.
            #[cfg(unix)]
            if let Ok(folder) =
                File::open(path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new(".")))
            {
                let _ = folder.sync_all();
            }
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(beside) = &self.0 {
            let _ = std::fs::remove_file(beside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(Escaped("a\"b\\c\n\u{1}é").to_string(), "a\\\"b\\\\c\\u000a\\u0001é");
    }

    #[test]
    fn a_failed_write_leaves_no_file() {
        let path = std::env::temp_dir().join(format!("bitlinear-temporary-{}", std::process::id()));
        let (mut file, temporary) = Temporary::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        let beside = temporary.0.clone().unwrap();
        assert!(beside.exists() && beside.parent() == path.parent());
        drop(temporary);
        assert!(!beside.exists() && !path.exists());
    }
}
