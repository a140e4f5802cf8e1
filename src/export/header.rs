//! The headers of GGUF and safetensors files: metadata, and where each tensor's bytes will lie.

use super::source::signs;
use super::store::{Part, Store};
use super::{Job, Step, What, shape};
use crate::container::packed::RESERVED;
use crate::container::{Kind, Quoted, SafetensorsHeader, Value, gguf};
use crate::error::{Error, Result, fail};
use crate::limits::TENSORS_MAX;
use crate::memory::reserve;
use crate::model::Plan;
use crate::save::unique;
use crate::types::Type;

/// What the key of a rotation's declaration begins with.
const ROTATION: &str = "prism.hadamard.";

/// Keys that say how a file is to be read, and are written as it is written or not at all; those with a dot at the end
/// are beginnings of keys.
pub(super) fn own_keys(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Gguf => &[
            RESERVED,
            "general.alignment",
            "general.file_type",
            "general.quantization_version",
            "split.",
            ROTATION,
            // With it dimensions are taken the other way round.
            "craftsman.bitnet.weight_encoding",
        ],
        Kind::Safetensors => &[RESERVED, ROTATION],
        _ => &[RESERVED],
    }
}

/// Refuses two tensors of one name before anything is written: what layers become may be named as what stays.
pub(super) fn check_names(kind: Kind, steps: &[Step<'_>]) -> Result<()> {
    let mut names = Vec::new();
    let mut add = |name: String| reserve(&mut names, 1, "names of tensors").map(|()| names.push(name));
    for step in steps {
        match &step.what {
            What::Round { plan, store: Some(store), .. } => {
                for part in parts(store, plan)? {
                    add(format!("{}.{}", step.name, part.suffix))?;
                }
            }
            _ => add(step.name.clone())?,
        }
    }
    if names.len() as u64 > TENSORS_MAX {
        return Err(fail!(Unsupported, "{} tensors in one file", names.len()));
    }
    let what = if kind == Kind::Packed { "layers" } else { "tensors" };
    unique(names.len(), |i| &names[i], &format!("{what} of the new file would have the name"))
        .map_err(|e| e.within(format_args!("choose other types or layers")))
}

impl<'a> Job<'a> {
    pub(super) fn gguf_header(&self, steps: &mut [Step<'a>]) -> Result<(Vec<u8>, u64)> {
        let directory = &self.files.directory;
        let mut header = gguf::Header::new()?;
        let replaced = |key: &[u8]| {
            let own = [
                &b"general.alignment"[..],
                b"general.file_type",
                b"general.quantization_version",
                b"split.no",
                b"split.count",
                b"split.tensors.count",
                b"craftsman.bitnet.weight_encoding",
            ];
            own.contains(&key)
                || self.options.rotation.is_some() && key.starts_with(ROTATION.as_bytes())
                || self.options.texts.iter().any(|(text, _)| text.as_bytes() == key)
        };
        if directory.kind == Kind::Gguf {
            let source = self.files.sources.first().map_or(&[][..], |s| s.bytes());
            for (key, value) in gguf::entries(source)? {
                if !replaced(key) {
                    header.entry(key, gguf::Entry::Raw(value))?;
                }
            }
        }
        for (key, value) in self.options.texts {
            header.entry(key.as_bytes(), gguf::Entry::String(value))?;
        }
        header.entry(b"general.quantization_version", gguf::Entry::U32(2))?;
        if let Some(number) = file_type(steps) {
            header.entry(b"general.file_type", gguf::Entry::U32(number))?;
        }
        if let Some((block, seed)) = self.options.rotation {
            declare_rotation(&mut header, steps, block, seed)?;
        }
        for step in steps {
            let within = |e: Error| e.within(format_args!("{}", Quoted(step.name.as_bytes())));
            match &mut step.what {
                What::Copy { tensor, at } if tensor.ty == Type::T158 => {
                    let _ = at;
                    return Err(within(fail!(Unsupported, "t158 is read only: quantise this layer too")));
                }
                What::Copy { tensor, at } => {
                    let (start, bytes) =
                        header.tensor(step.name.as_bytes(), tensor.ty, shape(tensor)).map_err(within)?;
                    if bytes != tensor.bytes {
                        return Err(within(fail!(
                            Unsupported,
                            "{} bytes, where {bytes} belong",
                            tensor.bytes
                        )));
                    }
                    *at = start;
                }
                What::Convert { tensor, ty, at } => {
                    *at = header.tensor(step.name.as_bytes(), *ty, shape(tensor)).map_err(within)?.0;
                }
                What::Round { plan, store: Some(store), at, .. } => {
                    for part in parts(store, plan)? {
                        let name = format!("{}.{}", step.name, part.suffix);
                        reserve(at, 1, "places")?;
                        at.push(header.tensor(name.as_bytes(), part.ty, &part.shape).map_err(within)?);
                    }
                }
                What::Round { .. } => {}
            }
        }
        let data = header.data();
        Ok((header.finish()?, data))
    }

    pub(super) fn safetensors_header(&self, steps: &mut [Step<'a>]) -> Result<(Vec<u8>, u64)> {
        let directory = &self.files.directory;
        let mut header = SafetensorsHeader::new()?;
        if self.options.rotation.is_some() {
            return Err(fail!(
                Unsupported,
                "safetensors files have no place for a rotation: write GGUF or packed"
            ));
        }
        for meta in &directory.metadata {
            // Texts are kept; other values (of GGUF) have no place in a safetensors header.
            let (Value::String(value), Ok(key)) = (meta.value, str::from_utf8(directory.texts.get(meta.key)))
            else {
                continue;
            };
            if let Ok(value) = str::from_utf8(directory.texts.get(value))
                && !self.options.texts.iter().any(|(text, _)| *text == key)
                && directory.kind == Kind::Safetensors
            {
                header.text(key, value)?;
            }
        }
        for (key, value) in self.options.texts {
            header.text(key, value)?;
        }
        for step in steps {
            let within = |e: Error| e.within(format_args!("{}", Quoted(step.name.as_bytes())));
            match &mut step.what {
                What::Copy { tensor, at } => {
                    let (start, bytes) =
                        header.tensor(&step.name, tensor.ty, shape(tensor)).map_err(within)?;
                    if bytes != tensor.bytes {
                        return Err(within(fail!(
                            Unsupported,
                            "{} bytes, where {bytes} belong",
                            tensor.bytes
                        )));
                    }
                    *at = start;
                }
                What::Convert { tensor, ty, at } => {
                    *at = header.tensor(&step.name, *ty, shape(tensor)).map_err(within)?.0;
                }
                What::Round { plan, store: Some(store), at, .. } => {
                    for part in parts(store, plan)? {
                        let name = format!("{}.{}", step.name, part.suffix);
                        reserve(at, 1, "places")?;
                        at.push(header.tensor(&name, part.ty, &part.shape).map_err(within)?);
                    }
                }
                What::Round { .. } => {}
            }
        }
        let data = header.data();
        Ok((header.finish()?, data))
    }
}

/// The tensors of a layer, in the dimensions that it has in its file.
fn parts(store: &Store, plan: &Plan<'_>) -> Result<Vec<Part>> {
    let (rows, columns) = (plan.out_features as u64, plan.in_features as u64);
    match plan.slices {
        0 | 1 => store.parts(&[rows, columns]),
        slices => store.parts(&[slices as u64, rows / slices as u64, columns]),
    }
}

/// llama.cpp's number for files whose most weights are of one type.
fn file_type(steps: &[Step<'_>]) -> Option<u32> {
    let types = steps.iter().filter_map(|step| match &step.what {
        What::Round { target, .. } => Some((target.ty, step.weights)),
        _ => None,
    });
    let mut sums: Vec<(Type, u64)> = Vec::new();
    for (ty, weights) in types {
        match sums.iter_mut().find(|(found, _)| *found == ty) {
            Some((_, sum)) => *sum += weights,
            None => sums.push((ty, weights)),
        }
    }
    let (ty, _) = sums.into_iter().max_by_key(|(_, sum)| *sum)?;
    Some(match ty {
        Type::F32 => 0,
        Type::F16 => 1,
        Type::Q4_0 => 2,
        Type::Q4_1 => 3,
        Type::Q8_0 => 7,
        Type::Q5_0 => 8,
        Type::Q5_1 => 9,
        Type::Q2K => 10,
        Type::Q3K => 11,
        Type::Q4K => 14,
        Type::Q5K => 16,
        Type::Q6K => 18,
        Type::Bf16 => 32,
        Type::Tq1_0 => 36,
        Type::Tq2_0 => 37,
        Type::Mxfp4 => 38,
        // 40 is I2_S in bitnet.cpp's fork and Q1_0 in llama.cpp.
        Type::I2S | Type::Q1_0 => 40,
        Type::Q2_0 => 41,
        _ => return None,
    })
}

/// The contract of Hadamard-folded weights.
fn declare_rotation(header: &mut gguf::Header, steps: &[Step<'_>], block: usize, seed: u64) -> Result<()> {
    let (mut names, mut widths, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for step in steps {
        let What::Round { plan, .. } = &step.what else { continue };
        reserve(&mut names, 1, "names of rotated tensors")?;
        names.push(format!("{}.weight", step.name));
        let width = plan.in_features as i32;
        if seed != 0 && !widths.contains(&width) {
            reserve(&mut widths, 1, "widths of rotated inputs")?;
            widths.push(width);
            let signs = signs(seed, plan.in_features)?.unwrap_or_default();
            reserve(&mut values, signs.len(), "signs of rotated inputs")?;
            values.extend(signs.iter().map(|sign| *sign as i32));
        }
    }
    let entries = [
        ("version", gguf::Entry::U32(1)),
        ("block_size", gguf::Entry::U32(block as u32)),
        ("transform", gguf::Entry::String("normalized-sylvester-walsh-hadamard")),
        ("axis", gguf::Entry::String("input-last-dimension")),
        ("sign_mode", gguf::Entry::String(if seed == 0 { "identity" } else { "explicit" })),
        ("weight_names", gguf::Entry::Strings(&names)),
    ];
    for (key, value) in entries {
        header.entry(format!("{ROTATION}{key}").as_bytes(), value)?;
    }
    if seed != 0 {
        header.entry(format!("{ROTATION}sign_widths").as_bytes(), gguf::Entry::I32s(&widths))?;
        header.entry(format!("{ROTATION}sign_values").as_bytes(), gguf::Entry::I32s(&values))?;
    }
    Ok(())
}
