//! Weights that were rotated before they were quantised (`prism.hadamard.*` in the metadata).
//!
//! ```text
//! version 1 | block_size, a power of two | transform "normalized-sylvester-walsh-hadamard"
//! axis "input-last-dimension" | sign_mode "identity" or "explicit"
//! sign_widths, sign_values   explicit: for each input width a vector of +1 and -1, one after another
//! weight_names               y = W' (R x) for these
//! inverse_weight_names       tables with rotated rows z: h = R^-1 z = s (H z)
//! ```
//! Without the rotation such weights give plausible garbage. Where the declaration is not understood, or
//! names what the file does not have, nobody knows which tensors it means: none is opened. A table with
//! rotated rows that is opened as a layer (tied output weights) wants the rotation of its input too:
//! `h x = s (H z) x = z (H (s x)) = z (R x)`.
//!
//! Source: the contract that PrismML publishes with its fork (llama.cpp issue 29058).

use crate::container::{Array, Files, Item, Value};
use crate::error::{Result, fail};
use crate::limits::FEATURES_MAX;
use crate::memory::{filled, reserve};
use crate::rotation::{self, BLOCKS, Spec};

const PREFIX: &[u8] = b"prism.hadamard.";
const SIGN_WIDTHS: &str = "prism.hadamard.sign_widths";
const SIGN_VALUES: &str = "prism.hadamard.sign_values";

/// What the metadata declares.
#[derive(Debug)]
pub(super) enum Rotation {
    /// Nothing.
    None,
    /// Some tensors are rotated.
    Of {
        /// Their indices, sorted.
        rotated: Vec<u32>,
        /// Columns of a block.
        block: usize,
        /// Whether there are signs.
        explicit: bool,
    },
    /// A declaration that is not understood; the key that is the reason.
    Unknown(&'static str),
}

/// The rotation that a file declares for the input of a layer.
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

impl Rotation {
    /// Reads the declaration.
    pub(super) fn of(files: &Files) -> Result<Rotation> {
        let directory = &files.directory;
        let declared =
            directory.metadata.iter().any(|meta| directory.texts.get(meta.key).starts_with(PREFIX));
        if !declared {
            return Ok(Rotation::None);
        }
        let integer = |key: &str| match directory.meta(key).map(|meta| meta.value) {
            Some(Value::U64(n)) => usize::try_from(n).ok(),
            Some(Value::I64(n)) => usize::try_from(n).ok(),
            _ => None,
        };
        if integer("prism.hadamard.version") != Some(1) {
            return Ok(Rotation::Unknown("prism.hadamard.version"));
        }
        let known = |n: &usize| n.is_power_of_two() && (BLOCKS.0..=BLOCKS.1).contains(n);
        let Some(block) = integer("prism.hadamard.block_size").filter(known) else {
            return Ok(Rotation::Unknown("prism.hadamard.block_size"));
        };
        for (key, known) in [
            ("prism.hadamard.transform", &["normalized-sylvester-walsh-hadamard"][..]),
            ("prism.hadamard.axis", &["input-last-dimension"]),
            ("prism.hadamard.sign_mode", &["identity", "explicit"]),
        ] {
            if !directory.meta_text(key).is_some_and(|text| known.contains(&text)) {
                return Ok(Rotation::Unknown(key));
            }
        }
        let explicit = directory.meta_text("prism.hadamard.sign_mode") == Some("explicit");
        let mut rotated = Vec::new();
        for (key, required) in
            [("prism.hadamard.weight_names", true), ("prism.hadamard.inverse_weight_names", false)]
        {
            let array = match directory.meta(key).map(|meta| meta.value) {
                None if !required => continue,
                Some(Value::Array(array)) if array.item == Item::String || array.count == 0 => array,
                _ => return Ok(Rotation::Unknown(key)),
            };
            for i in 0..array.count {
                let Some(Value::String(name)) = files.item(&array, i) else {
                    return Ok(Rotation::Unknown(key));
                };
                let Some(index) = directory.index(directory.texts.get(name)) else {
                    return Ok(Rotation::Unknown(key));
                };
                reserve(&mut rotated, 1, "rotated tensors")?;
                rotated.push(index);
            }
        }
        crate::order::sort(&mut rotated, &|a, b| a.cmp(&b));
        Ok(Rotation::Of { rotated, block, explicit })
    }

    /// Refuses every tensor of a file whose declaration is not understood.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Rotation::Unknown(key) => Err(fail!(
                Unsupported,
                "the file has rotated weights, and its {key} is not understood: none of its layers is opened"
            )),
            _ => Ok(()),
        }
    }

    /// The rotation of the input of a layer of `in_features` columns made of the tensor of that index.
    pub(super) fn of_tensor(
        &self,
        files: &Files,
        index: u32,
        in_features: usize,
    ) -> Result<Option<Declared>> {
        let Rotation::Of { rotated, block, explicit } = self else { return Ok(None) };
        if rotated.binary_search(&index).is_err() {
            return Ok(None);
        }
        let signs = if *explicit { Some(signs(files, in_features)?) } else { None };
        let declared = Declared { block: *block, signs };
        // What is wrong with it is the file's fault, not the caller's.
        rotation::Rotation::new(&declared.spec(), in_features).map_err(|e| fail!(BadFile, "{}", e.text()))?;
        Ok(Some(declared))
    }
}

/// The vector of signs for inputs of that width.
fn signs(files: &Files, in_features: usize) -> Result<Vec<f32>> {
    let array = |key: &str| match files.directory.meta(key).map(|meta| meta.value) {
        Some(Value::Array(array)) => Ok(array),
        _ => Err(fail!(BadFile, "{key}: an array expected, which sign_mode \"explicit\" needs")),
    };
    let (widths, values) = (array(SIGN_WIDTHS)?, array(SIGN_VALUES)?);
    let (mut before, mut first) = (0u64, None);
    for i in 0..widths.count {
        let width = number(files, &widths, i, SIGN_WIDTHS)?;
        if !(width >= 1.0 && width <= FEATURES_MAX as f64 && width.fract() == 0.0) {
            return Err(fail!(BadFile, "{SIGN_WIDTHS}: item {i} is {width}"));
        }
        if width == in_features as f64 {
            first = first.or(Some(before));
        }
        before = before.saturating_add(width as u64);
    }
    if before != values.count {
        let found = values.count;
        return Err(fail!(BadFile, "{SIGN_VALUES}: {before} expected by {SIGN_WIDTHS}, found {found}"));
    }
    let first =
        first.ok_or_else(|| fail!(BadFile, "{SIGN_WIDTHS}: no vector for inputs of {in_features}"))?;
    let mut signs = filled(in_features, 0.0, "rotation signs")?;
    for (i, sign) in signs.iter_mut().enumerate() {
        *sign = number(files, &values, first + i as u64, SIGN_VALUES)? as f32;
    }
    Ok(signs)
}

fn number(files: &Files, array: &Array, index: u64, key: &str) -> Result<f64> {
    match files.item(array, index) {
        Some(Value::U64(v)) => Ok(v as f64),
        Some(Value::I64(v)) => Ok(v as f64),
        Some(Value::F64(v)) => Ok(v),
        _ => Err(fail!(BadFile, "{key}: item {index} is no number")),
    }
}
