//! bitlinear's own file: layers as they lie in memory, to be mapped and used in place.
//!
//! ```text
//! a safetensors file:
//! length N u64 | header, N bytes of JSON, padded with spaces | data        8 + N is a multiple of 64
//!
//! {"__metadata__":{"bitlinear.format":"1","bitlinear.endian":"little","bitlinear.header":"<sum>",
//!   "bitlinear.layer.<name>":"<line>", ...,          one for each layer, in the order of the file
//!   "<key>":"<value>", ...},                         the texts of the caller
//!  "<name>":{"dtype":"U8","shape":[bytes],...},      the panels (layout::packed), at a multiple of 64
//!  "<name>.bitlinear.<part>":{"dtype":"F32",...},   what else it has: bias, norm_weight, norm_bias,
//!                                                   rotation_signs; permutation is U32
//!  "bitlinear.pad.<number>":{"dtype":"U8",...}}      0 to 63 zeros, so that the data has no gaps
//!
//! line = type=q4_k rows=64 columns=512 layout=codes:4:zero0:super32+minimum:f16:1 record=256 unit=8
//!        unit_bytes=64 head=20 bytes=20480 activation=3 [activation_scale=<float>]
//!        [product_scale=<float>] [norm=<number>:<float>] [rotation=<block>] [epilogue=<number>:<float>]
//!        sum=<sum> [<part>=<sum>] ...               numbers as in bitlinear.h
//! float  = the bits of an f32, 8 hexadecimal digits
//! layout = f32 | f16 | bf16 | codes:<bits>:<values>:<scales>:<scale type>:<bases>
//! values = zero<n> | sign | iq4 | e2m1
//! scales = row | group<len> | group<len>+minimum | group<len>+zero | super<len> | super<len>+minimum
//! sum    = XXH3 of the bytes, 64 bits, 16 hexadecimal digits; the header's own: of the length and the
//!          header with these 16 digits as zeros
//! ```
//! Little endian, whatever machine writes it. The header's sum is checked whenever the file is
//! opened, those of the tensors on request ([`verify`]). Nothing in the header is trusted: the
//! geometry is computed anew from the layout and has to be the one that is written there.
//!
//! A line with a word that this version does not know is refused: it may stand for something that
//! changes y.

use std::fmt;
use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::{Directory, Kind, Quoted, Str, Tensor, Value};
use crate::codec::tables;
use crate::error::{Error, Result, fail};
use crate::layout::packed::{Geometry, Packed};
use crate::layout::{Coded, Float, Layout, Offset, ScaleType, Scales, Values};
use crate::memory::{ALIGNMENT, filled, reserve};
use crate::types::{TYPES, Type};

/// How the header of every version begins; the version follows.
pub(crate) const MAGIC: &str = "{\"__metadata__\":{\"bitlinear.format\":\"";
/// The version that is read and written, and what stands between it and the header's sum.
pub(crate) const VERSION: &str = "1\",\"bitlinear.endian\":\"little\",\"bitlinear.header\":\"";
/// What the keys of this format begin with; texts of callers may not.
pub(crate) const RESERVED: &str = "bitlinear.";
/// What the key of a layer's line begins with.
pub(crate) const LAYER: &str = "bitlinear.layer.";
/// What the name of a padding tensor begins with.
pub(crate) const PAD: &str = "bitlinear.pad.";
/// What stands between a layer's name and that of a part.
pub(crate) const PART: &str = ".bitlinear.";

/// What a layer may have beside its panels; the names are those of words and of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Added to y: f32, one for each row.
    Bias,
    /// The column of x at each packed column: u32.
    Permutation,
    /// Factors of the norm: f32, one for each column.
    NormWeight,
    /// What the norm adds: f32, one for each column.
    NormBias,
    /// Signs of the rotation: f32, one for each column.
    RotationSigns,
}

/// How many parts there are.
pub const PARTS: usize = 5;

impl Part {
    /// All of them, in the order of words and tensors.
    pub const ALL: [Part; PARTS] =
        [Part::Bias, Part::Permutation, Part::NormWeight, Part::NormBias, Part::RotationSigns];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Bias => "bias",
            Part::Permutation => "permutation",
            Part::NormWeight => "norm_weight",
            Part::NormBias => "norm_bias",
            Part::RotationSigns => "rotation_signs",
        }
    }

    /// Its dtype.
    pub(crate) const fn dtype(self) -> (&'static str, Type) {
        match self {
            Part::Permutation => ("U32", Type::U32),
            _ => ("F32", Type::F32),
        }
    }

    fn count(self, line: &Line) -> usize {
        match self {
            Part::Bias => line.out_features,
            _ => line.in_features,
        }
    }
}

/// Digits of a sum.
const DIGITS: usize = 16;
/// Where the digits of the header's sum are in the file.
const SUM_AT: usize = 8 + MAGIC.len() + VERSION.len();

/// One layer of a packed file.
#[derive(Debug)]
pub struct Layer {
    /// What its line says.
    pub line: Line,
    /// Its panels, in the bytes of the file.
    pub panels: Range<usize>,
    /// Its parts, in the order of [`Part::ALL`].
    pub parts: [Option<Range<usize>>; PARTS],
}

/// The line of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// The format that its weights were stored in.
    pub ty: Type,
    /// Rows of W.
    pub out_features: usize,
    /// Columns of W.
    pub in_features: usize,
    /// How they lie.
    pub layout: Layout,
    /// How the layer takes x: a number of `bl_activation`.
    pub activation: u32,
    /// One scale for all of x.
    pub activation_scale: Option<f32>,
    /// What the product is multiplied with before the bias is added.
    pub product_scale: Option<f32>,
    /// The norm of x: a number of `bl_norm`, and its epsilon.
    pub norm: Option<(u32, f32)>,
    /// Columns of a block of the rotation of x.
    pub rotation: Option<usize>,
    /// What is done to y: a number of `bl_epilogue`, and its threshold.
    pub epilogue: Option<(u32, f32)>,
    /// Of the panels.
    pub sum: u64,
    /// Of the parts, in the order of [`Part::ALL`].
    pub sums: [Option<u64>; PARTS],
}

/// The sum of bytes.
pub fn sum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The sum of a file's beginning: the length and the header.
pub fn header_sum(start: &[u8]) -> u64 {
    let mut hash = Xxh3Default::new();
    let digits = SUM_AT.min(start.len())..(SUM_AT + DIGITS).min(start.len());
    hash.update(&start[..digits.start]);
    hash.update(&[b'0'; DIGITS][..digits.len()]);
    hash.update(&start[digits.end..]);
    hash.digest()
}

// ---- the line ---------------------------------------------------------------------------------

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { ty, out_features, in_features, layout, activation, sum, .. } = self;
        let g = Geometry::new(layout, *in_features);
        let bytes = Packed::size(layout, *out_features, *in_features).unwrap_or(0);
        write!(f, "type={} rows={out_features} columns={in_features} layout=", ty.name())?;
        write_layout(f, layout)?;
        write!(f, " record={} unit={} unit_bytes={} head={}", g.record, g.unit, g.unit_bytes, g.head)?;
        write!(f, " bytes={bytes} activation={activation}")?;
        for (key, value) in
            [("activation_scale", self.activation_scale), ("product_scale", self.product_scale)]
        {
            if let Some(value) = value {
                write!(f, " {key}={:08x}", value.to_bits())?;
            }
        }
        if let Some((kind, epsilon)) = self.norm {
            write!(f, " norm={kind}:{:08x}", epsilon.to_bits())?;
        }
        if let Some(block) = self.rotation {
            write!(f, " rotation={block}")?;
        }
        if let Some((kind, threshold)) = self.epilogue {
            write!(f, " epilogue={kind}:{:08x}", threshold.to_bits())?;
        }
        write!(f, " sum={sum:016x}")?;
        for (part, sum) in Part::ALL.iter().zip(self.sums) {
            if let Some(sum) = sum {
                write!(f, " {}={sum:016x}", part.name())?;
            }
        }
        Ok(())
    }
}

fn write_layout(f: &mut fmt::Formatter<'_>, layout: &Layout) -> fmt::Result {
    let coded = match layout {
        Layout::Dense(Float::F32) => return f.write_str("f32"),
        Layout::Dense(Float::F16) => return f.write_str("f16"),
        Layout::Dense(Float::Bf16) => return f.write_str("bf16"),
        Layout::Coded(coded) => coded,
    };
    write!(f, "codes:{}:", coded.bits)?;
    match coded.values {
        Values::Offset(zero) => write!(f, "zero{zero}")?,
        Values::Sign => f.write_str("sign")?,
        Values::Table(table) => f.write_str(tables::name(table).unwrap_or("?"))?,
    }
    match coded.scales {
        Scales::Row => f.write_str(":row")?,
        Scales::Group { len, offset } => {
            let offset = match offset {
                Offset::None => "",
                Offset::Minimum => "+minimum",
                Offset::Zero => "+zero",
            };
            write!(f, ":group{len}{offset}")?;
        }
        Scales::TwoLevel { len, minimum } => {
            write!(f, ":super{len}{}", if minimum { "+minimum" } else { "" })?;
        }
    }
    let scale_type = match coded.scale_type {
        ScaleType::F32 => "f32",
        ScaleType::F16 => "f16",
        ScaleType::Bf16 => "bf16",
        ScaleType::E8m0 => "e8m0",
    };
    write!(f, ":{scale_type}:{}", coded.bases)
}

fn read_layout(text: &str) -> Option<Layout> {
    let words = match text {
        "f32" => return Some(Layout::Dense(Float::F32)),
        "f16" => return Some(Layout::Dense(Float::F16)),
        "bf16" => return Some(Layout::Dense(Float::Bf16)),
        _ => text.strip_prefix("codes:")?,
    };
    let mut words = words.split(':');
    let bits = words.next()?.parse().ok()?;
    let values = match words.next()? {
        "sign" => Values::Sign,
        word => match word.strip_prefix("zero") {
            Some(zero) => Values::Offset(zero.parse().ok()?),
            None => Values::Table(tables::find(word)?),
        },
    };
    let scales = words.next()?;
    let scales = if scales == "row" {
        Scales::Row
    } else if let Some(rest) = scales.strip_prefix("group") {
        let (len, offset) = match rest.split_once('+') {
            None => (rest, Offset::None),
            Some((len, "minimum")) => (len, Offset::Minimum),
            Some((len, "zero")) => (len, Offset::Zero),
            Some(_) => return None,
        };
        Scales::Group { len: len.parse().ok()?, offset }
    } else {
        let rest = scales.strip_prefix("super")?;
        let (len, minimum) = match rest.split_once('+') {
            None => (rest, false),
            Some((len, "minimum")) => (len, true),
            Some(_) => return None,
        };
        Scales::TwoLevel { len: len.parse().ok()?, minimum }
    };
    let scale_type = match words.next()? {
        "f32" => ScaleType::F32,
        "f16" => ScaleType::F16,
        "bf16" => ScaleType::Bf16,
        "e8m0" => ScaleType::E8m0,
        _ => return None,
    };
    let bases = words.next()?.parse().ok()?;
    words.next().is_none().then_some(Layout::Coded(Coded { bits, values, scales, scale_type, bases }))
}

/// The words of a line, each `key=value`, in their one order.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// The value of the next word, which has that key.
    fn optional(&mut self, key: &str) -> Option<&'a str> {
        let value = self.0.strip_prefix(key)?.strip_prefix('=')?;
        let (value, rest) = value.split_once(' ').unwrap_or((value, ""));
        self.0 = rest;
        Some(value)
    }

    fn word(&mut self, key: &str) -> Result<&'a str> {
        let found = Quoted(&self.0.as_bytes()[..self.0.len().min(24)]);
        let error = fail!(BadFile, "{key}= expected, found {found}");
        self.optional(key).ok_or(error)
    }

    fn number(&mut self, key: &str) -> Result<usize> {
        let word = self.word(key)?;
        word.parse().map_err(|_| fail!(BadFile, "{key}: {} is no number", Quoted(word.as_bytes())))
    }

    /// A word of bits.
    fn float(&mut self, key: &str) -> Result<Option<f32>> {
        self.optional(key).map(|word| float(key, word)).transpose()
    }

    /// A word of a number and a float.
    fn kind(&mut self, key: &str) -> Result<Option<(u32, f32)>> {
        let Some(word) = self.optional(key) else { return Ok(None) };
        match word.split_once(':').and_then(|(kind, value)| Some((kind.parse().ok()?, value))) {
            Some((kind, value)) => Ok(Some((kind, float(key, value)?))),
            None => Err(fail!(BadFile, "{key}: {} is no number and float", Quoted(word.as_bytes()))),
        }
    }

    fn sum(&mut self, key: &str) -> Result<Option<u64>> {
        match self.optional(key) {
            None => Ok(None),
            Some(word) => match u64::from_str_radix(word, 16) {
                Ok(sum) if word.len() == DIGITS => Ok(Some(sum)),
                _ => Err(fail!(BadFile, "{key}: {} is no sum", Quoted(word.as_bytes()))),
            },
        }
    }
}

/// A float from its bits.
fn float(key: &str, word: &str) -> Result<f32> {
    match u32::from_str_radix(word, 16) {
        Ok(bits) if word.len() == 8 => Ok(f32::from_bits(bits)),
        _ => Err(fail!(BadFile, "{key}: {} is no f32", Quoted(word.as_bytes()))),
    }
}

impl Line {
    /// Reads a line; the layout is valid for its shape, and the geometry is as written.
    pub fn read(text: &str) -> Result<Line> {
        let mut words = Words(text);
        let name = words.word("type")?;
        let ty = TYPES.iter().find(|t| t.name() == name).map(|t| t.ty);
        let quoted = |word: &'_ str| fail!(Unsupported, "{} is not known", Quoted(word.as_bytes()));
        let ty = ty.ok_or_else(|| quoted(name).within(format_args!("type")))?;
        let (out_features, in_features) = (words.number("rows")?, words.number("columns")?);
        let word = words.word("layout")?;
        let layout = read_layout(word).ok_or_else(|| quoted(word).within(format_args!("layout")))?;
        layout.check(in_features)?;
        let bytes =
            Packed::size(&layout, out_features, in_features).map_err(|e| fail!(BadFile, "{}", e.text()))?;
        let g = Geometry::new(&layout, in_features);
        let geometry = [
            ("record", g.record),
            ("unit", g.unit),
            ("unit_bytes", g.unit_bytes),
            ("head", g.head),
            ("bytes", bytes),
        ];
        for (key, expected) in geometry {
            let found = words.number(key)?;
            if found != expected {
                return Err(fail!(BadFile, "{key}: {expected} expected, found {found}"));
            }
        }
        let activation = words.number("activation")?;
        let activation = u32::try_from(activation)
            .map_err(|_| fail!(Unsupported, "activation {activation} is not known"))?;
        let (activation_scale, product_scale) =
            (words.float("activation_scale")?, words.float("product_scale")?);
        let norm = words.kind("norm")?;
        let rotation = words.optional("rotation").map(|word| {
            word.parse().map_err(|_| fail!(BadFile, "rotation: {} is no number", Quoted(word.as_bytes())))
        });
        let rotation = rotation.transpose()?;
        let epilogue = words.kind("epilogue")?;
        let sum = words.sum("sum")?.ok_or_else(|| fail!(BadFile, "sum= expected"))?;
        let mut sums = [None; PARTS];
        for (sum, part) in sums.iter_mut().zip(Part::ALL) {
            *sum = words.sum(part.name())?;
        }
        if !words.0.is_empty() {
            let rest = Quoted(words.0.as_bytes());
            return Err(fail!(Unsupported, "{rest} is not known: written by a later version"));
        }
        Ok(Line {
            ty,
            out_features,
            in_features,
            layout,
            activation,
            activation_scale,
            product_scale,
            norm,
            rotation,
            epilogue,
            sum,
            sums,
        })
    }
}

// ---- the file ---------------------------------------------------------------------------------

/// Whether the bytes begin a packed file of any version.
pub(super) fn is(bytes: &[u8]) -> bool {
    bytes.get(8..).is_some_and(|header| header.starts_with(MAGIC.as_bytes()))
}

/// What the safetensors reader found in `bytes` as a packed file: its layers are the tensors.
pub(super) fn read(bytes: &[u8], safetensors: Directory) -> Result<Directory> {
    if !is(bytes) {
        // Another tool has written the header anew, or it is damaged: the panels would pass for bytes.
        let ours = safetensors.metadata.iter().map(|meta| safetensors.texts.get(meta.key));
        return match ours.into_iter().find(|key| key.starts_with(RESERVED.as_bytes())) {
            None => Ok(safetensors),
            Some(key) => Err(fail!(
                BadFile,
                "bitlinear file: a header that begins with bitlinear.format expected, found {} elsewhere",
                Quoted(key)
            )),
        };
    }
    let header = &bytes[8 + MAGIC.len()..];
    let Some(digits) = header.strip_prefix(VERSION.as_bytes()).and_then(|rest| rest.get(..DIGITS)) else {
        let version = header.split(|b| *b == b'"').next().unwrap_or(&[]);
        return Err(match version {
            b"1" => fail!(BadFile, "bitlinear file: little endian and a sum expected"),
            _ => fail!(Unsupported, "bitlinear file of version {}; this library reads 1", Quoted(version)),
        });
    };
    let data = safetensors.tensors.iter().map(|t| t.offset).min().unwrap_or(bytes.len() as u64) as usize;
    let start = bytes.get(..data).unwrap_or(bytes);
    let expected = header_sum(start);
    if sum_of(digits) != Some(expected) {
        let found = Quoted(digits);
        return Err(fail!(BadFile, "bitlinear file: header: sum {expected:016x} expected, found {found}"));
    }
    let mut layers = Vec::new();
    let mut tensors = Vec::new();
    for meta in &safetensors.metadata {
        let Some(name) = safetensors.texts.get(meta.key).strip_prefix(LAYER.as_bytes()) else { continue };
        let within = |e: Error| e.within(format_args!("bitlinear file: layer {}", Quoted(name)));
        let Value::String(line) = meta.value else { continue };
        let (layer, tensor) = layer(&safetensors, name, line).map_err(within)?;
        reserve(&mut layers, 1, "layers")?;
        reserve(&mut tensors, 1, "layers")?;
        layers.push(layer);
        tensors.push(tensor);
    }
    let expected: usize = layers.iter().map(Layer::tensors).sum();
    let pads = safetensors.tensors.iter();
    let pads = pads.filter(|t| safetensors.name(t).starts_with(PAD.as_bytes())).count();
    if expected + pads != safetensors.tensors.len() {
        let found = safetensors.tensors.len();
        return Err(fail!(
            Unsupported,
            "bitlinear file: {} tensors expected, found {found}: written by a later version",
            expected + pads
        ));
    }
    let mut directory = Directory::new(Kind::Packed, tensors, safetensors.metadata, safetensors.texts)?;
    directory.layers = layers;
    Ok(directory)
}

/// The number of 16 digits.
fn sum_of(digits: &[u8]) -> Option<u64> {
    let lower = digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    str::from_utf8(digits).ok().filter(|_| lower).and_then(|text| u64::from_str_radix(text, 16).ok())
}

/// One layer: its line against its tensors.
fn layer(directory: &Directory, name: &[u8], line: Str) -> Result<(Layer, Tensor)> {
    let text = str::from_utf8(directory.texts.get(line));
    let line = Line::read(text.map_err(|_| fail!(BadFile, "its line is no UTF-8"))?)?;
    let find = |suffix: [&str; 2], ty: Type, bytes: usize, align: usize| -> Result<Tensor> {
        let mut full = Vec::new();
        reserve(&mut full, name.len() + suffix[0].len() + suffix[1].len(), "the name of a tensor")?;
        full.extend_from_slice(name);
        suffix.iter().for_each(|suffix| full.extend_from_slice(suffix.as_bytes()));
        let tensor = directory.tensor(&full);
        let tensor = *tensor.ok_or_else(|| fail!(BadFile, "no tensor {}", Quoted(&full)))?;
        if tensor.ty != ty || tensor.bytes != bytes as u64 || !tensor.offset.is_multiple_of(align as u64) {
            return Err(fail!(
                BadFile,
                "tensor {}: {bytes} bytes of {} at a multiple of {align} expected, found {} of {} at {}",
                Quoted(&full),
                ty.name(),
                tensor.bytes,
                tensor.ty.name(),
                tensor.offset
            ));
        }
        Ok(tensor)
    };
    let range = |t: Tensor| t.offset as usize..(t.offset + t.bytes) as usize;
    let size = Packed::size(&line.layout, line.out_features, line.in_features)?;
    let mut panels = find(["", ""], Type::U8, size, ALIGNMENT)?;
    let mut parts = [const { None }; PARTS];
    for ((place, part), sum) in parts.iter_mut().zip(Part::ALL).zip(line.sums) {
        if sum.is_some() {
            // Features are at most 2^31, so that the product fits.
            *place = Some(range(find([PART, part.name()], part.dtype().1, 4 * part.count(&line), 4)?));
        }
    }
    let layer = Layer { line, panels: range(panels), parts };
    // To callers the tensor is the matrix that it holds.
    panels.ty = Type::Panels;
    panels.dims = 2;
    panels.shape = [line.out_features as u64, line.in_features as u64, 1, 1];
    Ok((layer, panels))
}

impl Layer {
    /// How many tensors of the file are its own.
    fn tensors(&self) -> usize {
        1 + self.parts.iter().flatten().count()
    }

    fn bytes<'a>(&self, part: Part, file: &'a [u8]) -> Option<&'a [[u8; 4]]> {
        let range = self.parts[part as usize].clone()?;
        Some(file.get(range).unwrap_or(&[]).as_chunks().0)
    }

    /// Reads its permutation, which has to be one.
    pub fn permutation(&self, file: &[u8]) -> Result<Option<Vec<u32>>> {
        let Some(bytes) = self.bytes(Part::Permutation, file) else { return Ok(None) };
        let count = self.line.in_features;
        let mut columns = filled(count, 0u32, "a column permutation")?;
        let mut seen = filled(count, false, "a column permutation")?;
        for (k, (column, bytes)) in columns.iter_mut().zip(bytes).enumerate() {
            *column = u32::from_le_bytes(*bytes);
            match seen.get_mut(*column as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return Err(fail!(BadFile, "permutation: column {column} is there twice")),
                None => {
                    return Err(fail!(BadFile, "permutation: item {k} is {column}, of {count} columns"));
                }
            }
        }
        Ok(Some(columns))
    }

    /// Reads another of its parts.
    pub fn floats(&self, part: Part, file: &[u8]) -> Result<Option<Vec<f32>>> {
        let Some(bytes) = self.bytes(part, file) else { return Ok(None) };
        let mut values = filled(bytes.len(), 0.0f32, part.name())?;
        for (value, bytes) in values.iter_mut().zip(bytes) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(Some(values))
    }
}

/// Checks the sums of all tensors: reads the whole file.
pub fn verify(directory: &Directory, file: &[u8]) -> Result<()> {
    for (tensor, layer) in directory.tensors.iter().zip(&directory.layers) {
        let parts = Part::ALL.iter().map(|part| part.name()).zip(&layer.parts).zip(layer.line.sums);
        let parts = parts.filter_map(|((what, range), sum)| Some((what, range.as_ref()?, sum?)));
        for (what, range, expected) in [("weights", &layer.panels, layer.line.sum)].into_iter().chain(parts) {
            let found = sum(file.get(range.clone()).unwrap_or(&[]));
            if found != expected {
                return Err(fail!(
                    BadFile,
                    "layer {}: {what}: sum {expected:016x} expected, found {found:016x}",
                    Quoted(directory.name(tensor))
                ));
            }
        }
    }
    Ok(())
}
