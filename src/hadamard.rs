//! What a file says about Hadamard-folded weights: `prism.hadamard.*` metadata -> the rotation of a
//! tensor's input.
//!
//! ```text
//! prism.hadamard.version               1
//! prism.hadamard.transform             "normalized-sylvester-walsh-hadamard"
//! prism.hadamard.axis                  "input-last-dimension"
//! prism.hadamard.block_size            a power of two
//! prism.hadamard.sign_mode             "identity" or "explicit"
//! prism.hadamard.sign_widths           explicit: the widths of inputs that have a vector of signs
//! prism.hadamard.sign_values           explicit: those vectors of +1 and -1, one after another
//! prism.hadamard.weight_names          y = W' (R x) for these
//! prism.hadamard.inverse_weight_names  tables with rotated rows z: h = R^-1 z = s (H z)
//! ```
//! Source: the PrismML fork's contract as `docs/formats.md` tells it. A reader that leaves the rotation
//! out gets plausible garbage, so whatever is not understood here is refused, for every tensor of the
//! file. A table with rotated rows that is used as a layer (tied output weights) wants the rotation of
//! its input too: `h x = s (H z) x = z (H (s x)) = z (R x)`.

use crate::container::{Array, Files, Item, Meta, Quoted, Tensor, Value};
use crate::error::{Result, fail};
use crate::memory::filled;
use crate::rotation::{Rotation, Spec};

const VERSION: &str = "prism.hadamard.version";
const TRANSFORM: &str = "prism.hadamard.transform";
const AXIS: &str = "prism.hadamard.axis";
const BLOCK: &str = "prism.hadamard.block_size";
const SIGN_MODE: &str = "prism.hadamard.sign_mode";
const SIGN_WIDTHS: &str = "prism.hadamard.sign_widths";
const SIGN_VALUES: &str = "prism.hadamard.sign_values";
const WEIGHTS: &str = "prism.hadamard.weight_names";
const TABLES: &str = "prism.hadamard.inverse_weight_names";
/// What all keys begin with.
const PREFIX: &[u8] = b"prism.hadamard.";

/// The rotation that a file declares for a tensor.
pub struct Declared {
    block: usize,
    signs: Option<Vec<f32>>,
}

impl Declared {
    /// As `Linear::new` takes it.
    pub fn spec(&self) -> Spec<'_> {
        Spec { block: self.block, signs: self.signs.as_deref() }
    }
}

/// The rotation of the input of a layer of `in_features` columns made from this tensor; `None` where
/// the file declares none for it.
pub fn of(files: &Files, tensor: &Tensor, in_features: usize) -> Result<Option<Declared>> {
    let directory = &files.directory;
    if !directory.metadata.iter().any(|meta| directory.texts.get(meta.key).starts_with(PREFIX)) {
        return Ok(None);
    }
    check(files)?;
    if directory.meta(WEIGHTS).is_none() && directory.meta(TABLES).is_none() {
        return Err(fail!(BadFile, "{WEIGHTS} and {TABLES} are missing: nothing says what is rotated"));
    }
    let name = directory.name(tensor);
    if !names(files, WEIGHTS, name)? && !names(files, TABLES, name)? {
        return Ok(None);
    }
    let within = |e: crate::error::Error| e.within(format_args!("tensor {}", Quoted(name)));
    let declared = rotation(files, in_features).map_err(within)?;
    // What is wrong with it is the file's fault, not the caller's.
    Rotation::new(&declared.spec(), in_features).map_err(|e| within(fail!(BadFile, "{}", e.text())))?;
    Ok(Some(declared))
}

/// Refuses what this library does not know of the scheme.
fn check(files: &Files) -> Result<()> {
    match integer(files, VERSION)? {
        1 => {}
        version => return Err(fail!(Unsupported, "{VERSION} is {version}: 1 expected")),
    }
    let expect = |key: &str, known: &[&str]| {
        let found = text(files, key)?;
        if known.iter().any(|known| known.as_bytes() == found) {
            return Ok(());
        }
        Err(fail!(Unsupported, "{key} is {}: {} expected", Quoted(found), known.join(" or ")))
    };
    expect(TRANSFORM, &["normalized-sylvester-walsh-hadamard"])?;
    expect(AXIS, &["input-last-dimension"])?;
    expect(SIGN_MODE, &["identity", "explicit"])
}

fn rotation(files: &Files, in_features: usize) -> Result<Declared> {
    let block = integer(files, BLOCK)?;
    // Which blocks there are is `Rotation::new`'s to say; here only that the number fits.
    let block = usize::try_from(block).map_err(|_| fail!(Unsupported, "{BLOCK} is {block}"))?;
    if text(files, SIGN_MODE)? == b"identity" {
        return Ok(Declared { block, signs: None });
    }
    let widths = array(files, SIGN_WIDTHS)?;
    let values = array(files, SIGN_VALUES)?;
    let (mut before, mut found) = (0u64, None);
    for i in 0..widths.count {
        let width = number(files, &widths, i, SIGN_WIDTHS)?;
        if width == in_features as f64 && found.is_none() {
            found = Some(before);
        }
        // A width that is no count of columns cannot be skipped over.
        if !(width >= 1.0 && width <= crate::limits::FEATURES_MAX as f64 && width.fract() == 0.0) {
            return Err(fail!(BadFile, "{SIGN_WIDTHS}: item {i} is {width}"));
        }
        before = before.saturating_add(width as u64);
    }
    if before != values.count {
        return Err(fail!(
            BadFile,
            "{SIGN_VALUES}: {before} signs expected by {SIGN_WIDTHS}, found {}",
            values.count
        ));
    }
    let first = found.ok_or_else(|| fail!(BadFile, "{SIGN_WIDTHS} has no vector of {in_features} signs"))?;
    let mut signs = filled(in_features, 0.0, "rotation signs")?;
    for (i, sign) in signs.iter_mut().enumerate() {
        *sign = number(files, &values, first + i as u64, SIGN_VALUES)? as f32;
    }
    Ok(Declared { block, signs: Some(signs) })
}

fn find<'a>(files: &'a Files, key: &str) -> Result<&'a Meta> {
    files
        .directory
        .meta(key)
        .ok_or_else(|| fail!(BadFile, "{key} is missing beside other prism.hadamard keys"))
}

fn integer(files: &Files, key: &str) -> Result<i64> {
    match find(files, key)?.value {
        Value::U64(v) => Ok(i64::try_from(v).unwrap_or(i64::MAX)),
        Value::I64(v) => Ok(v),
        _ => Err(fail!(BadFile, "{key} is no integer")),
    }
}

fn text<'a>(files: &'a Files, key: &str) -> Result<&'a [u8]> {
    match find(files, key)?.value {
        Value::String(text) => Ok(files.directory.texts.get(text)),
        _ => Err(fail!(BadFile, "{key} is no string")),
    }
}

fn array(files: &Files, key: &str) -> Result<Array> {
    match find(files, key)?.value {
        Value::Array(array) => Ok(array),
        _ => Err(fail!(BadFile, "{key} is no array")),
    }
}

fn number(files: &Files, array: &Array, index: u64, key: &str) -> Result<f64> {
    match files.item(array, index) {
        Some(Value::U64(v)) => Ok(v as f64),
        Some(Value::I64(v)) => Ok(v as f64),
        Some(Value::F64(v)) => Ok(v),
        _ => Err(fail!(BadFile, "{key}: item {index} is no number")),
    }
}

/// Whether a list of names, which may be missing or empty, has this one.
fn names(files: &Files, key: &str, name: &[u8]) -> Result<bool> {
    if files.directory.meta(key).is_none() {
        return Ok(false);
    }
    let list = array(files, key)?;
    if list.item != Item::String && list.count > 0 {
        return Err(fail!(BadFile, "{key} is no array of strings"));
    }
    Ok((0..list.count).any(
        |i| matches!(files.item(&list, i), Some(Value::String(text)) if files.directory.texts.get(text) == name),
    ))
}
