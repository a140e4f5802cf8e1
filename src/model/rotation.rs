//! Weights that were rotated before they were quantised (`prism.hadamard.*` in the metadata).
//!
//! ```text
//! version 1 | block_size, a power of two | transform "normalized-sylvester-walsh-hadamard"
//! axis "input-last-dimension" | sign_mode "identity" or "explicit"
//! weight_names           the tensors for which x must be rotated first
//! inverse_weight_names   tables whose rows are stored rotated
//! ```
//! Without the rotation such weights give plausible garbage, and this version does not apply it. So a
//! tensor that is named is refused by name, the others open. Where the declaration is not understood, or
//! names what the file does not have, nobody knows which tensors it means: all are refused.
//!
//! Source: the contract that PrismML publishes with its fork (llama.cpp issue 29058).

use crate::container::{Files, Item, Value};
use crate::error::{Error, Result, fail};
use crate::memory::reserve;

const PREFIX: &[u8] = b"prism.hadamard.";

/// What the metadata declares.
#[derive(Debug)]
pub(super) enum Rotation {
    /// Nothing.
    None,
    /// These tensors are rotated: indices, sorted.
    Of(Vec<u32>),
    /// A declaration that is not understood; the key that is the reason.
    Unknown(&'static str),
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
            Some(Value::U64(n)) => Some(n),
            Some(Value::I64(n)) => u64::try_from(n).ok(),
            _ => None,
        };
        if integer("prism.hadamard.version") != Some(1) {
            return Ok(Rotation::Unknown("prism.hadamard.version"));
        }
        if !integer("prism.hadamard.block_size").is_some_and(u64::is_power_of_two) {
            return Ok(Rotation::Unknown("prism.hadamard.block_size"));
        }
        for (key, known) in [
            ("prism.hadamard.transform", &["normalized-sylvester-walsh-hadamard"][..]),
            ("prism.hadamard.axis", &["input-last-dimension"]),
            ("prism.hadamard.sign_mode", &["identity", "explicit"]),
        ] {
            if !directory.meta_text(key).is_some_and(|text| known.contains(&text)) {
                return Ok(Rotation::Unknown(key));
            }
        }
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
        rotated.sort_unstable();
        Ok(Rotation::Of(rotated))
    }

    /// Refuses the tensor of that index, where it is rotated or may be.
    pub(super) fn refuse(&self, index: u32) -> Result<(), Error> {
        match self {
            Rotation::None => Ok(()),
            Rotation::Of(rotated) if rotated.binary_search(&index).is_err() => Ok(()),
            Rotation::Of(_) => Err(fail!(
                Unsupported,
                "its weights are rotated (prism.hadamard), and the rotation is not applied yet"
            )),
            Rotation::Unknown(key) => Err(fail!(
                Unsupported,
                "the file has rotated weights, and its {key} is not understood: none of its layers is opened"
            )),
        }
    }
}
