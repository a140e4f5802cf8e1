//! What layers lose.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use bitlinear::capi::compare::{bl_model_compare, bl_model_difference_info};
use bitlinear::capi::context::{bl_context_create, bl_free};
use bitlinear::capi::model::bl_load;
use bitlinear::capi::types::{bl_context, bl_context_options, bl_error, bl_model};
use bitlinear::model::Layers;
use clap::Args;
use serde_json::json;

use super::{Answer, Common, Failure, Threads, show};

#[derive(Args)]
#[command(after_help = COLUMNS)]
pub(crate) struct Arguments {
    /// The reference.
    reference: PathBuf,
    /// The file that is compared with it.
    other: PathBuf,
    /// Only layers whose name holds this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Fail (exit code 1) where a layer's relative error is above this or no number, or where the other file
    /// lacks a layer.
    #[arg(long, value_name = "ERROR", value_parser = bound)]
    at_most: Option<f64>,
    #[command(flatten)]
    threads: Threads,
}

const COLUMNS: &str = "\
e is the difference of a weight w: its mean and largest magnitude; `e / w` the root mean square
of e over that of w; `rms ratio` that of the other's weights over the reference's; `cosine` of
the angle between the two; `smaller by` the reference's bytes over the other's; `zeros` the part
of the other's weights that is 0. Layers that the other file lacks are named on stderr, and in
`missing` of the JSON.

  bitlinear compare model.gguf small.gguf --at-most 0.1    exit code 1 where a layer lost more";

fn bound(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(most) if most >= 0.0 => Ok(most),
        _ => Err("a number of 0 or more expected".to_string()),
    }
}

pub(crate) fn run(a: &Arguments, common: &Common) -> Answer {
    let (one, two) = (show::open(&a.reference)?, show::open(&a.other)?);
    let (ours, theirs) = (Layers::of(&one)?, Layers::of(&two)?);
    // The C interface opens both once more: it knows packed files and rotations.
    let (reference, other) = (Loaded::open(&a.reference, &a.threads)?, Loaded::open(&a.other, &a.threads)?);
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    for layer in ours.list() {
        let name = show::name(ours.name(layer));
        if !name.contains(&a.only) {
            continue;
        }
        match theirs.find(ours.name(layer), None)? {
            Some(found) => rows.push((name, found.ty.name(), reference.compare(&other, ours.name(layer))?)),
            None => missing.push(name),
        }
    }
    if rows.is_empty() {
        let named = if a.only.is_empty() { String::new() } else { format!(" with `{}` in it", a.only) };
        return Err(Failure::Error(format!("no layer of one name{named} is in both files")));
    }
    for name in missing.iter().map(|name| show::shown(name)) {
        show::note(format_args!("{name}: not in {}", a.other.display()));
    }
    if common.json {
        let layers: Vec<_> = rows
            .iter()
            .map(|(name, ty, i)| {
                json!({"layer": name, "type": ty, "weights": i.weights, "mean_error": i.mean_error,
                    "max_error": i.max_error, "mean_square_error": i.mean_square_error,
                    "relative_error": i.relative_error, "rms_ratio": i.rms_ratio, "cosine": i.cosine,
                    "compression": i.compression, "sparsity": i.sparsity})
            })
            .collect();
        show::json(&json!({"layers": layers, "missing": missing}))?;
    } else {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|(name, ty, i)| {
                vec![
                    name.clone(),
                    ty.to_string(),
                    format!("{:.3e}", i.mean_error),
                    format!("{:.3e}", i.max_error),
                    format!("{:.5}", i.relative_error),
                    format!("{:.5}", i.rms_ratio),
                    format!("{:.6}", i.cosine),
                    format!("{:.2}", i.compression),
                    format!("{:.3}", i.sparsity),
                ]
            })
            .collect();
        let head =
            ["layer", "type", "mean |e|", "max |e|", "e / w", "rms ratio", "cosine", "smaller by", "zeros"];
        show::table(&head, &rows, 2)?;
    }
    // An error that is no number, of weights that are none, is at most nothing.
    let within = |most: f64| missing.is_empty() && rows.iter().all(|(.., i)| i.relative_error <= most);
    if a.at_most.is_none_or(within) { Ok(()) } else { Err(Failure::No) }
}

/// A model of the C interface.
struct Loaded(*mut bl_model, *mut bl_context);

impl Loaded {
    fn open(path: &Path, threads: &Threads) -> Result<Loaded, Failure> {
        let text = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| Failure::Error("a path with a NUL".to_string()))?;
        let mut loaded = Loaded(std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: all zeros is a value of both; the pointers are to locals, or what the library gave.
        unsafe {
            let mut error: bl_error = std::mem::zeroed();
            let mut options: bl_context_options = std::mem::zeroed();
            options.struct_size = size_of::<bl_context_options>() as u32;
            options.threads = threads.count() as u32;
            let status = bl_context_create(&options, &mut loaded.1, &mut error);
            check(status as u32, &error)?;
            let status = bl_load(loaded.1, text.as_ptr(), std::ptr::null(), &mut loaded.0, &mut error);
            check(status as u32, &error)?;
        }
        Ok(loaded)
    }

    fn compare(&self, other: &Loaded, layer: &[u8]) -> Result<bl_model_difference_info, Failure> {
        let name = CString::new(layer).map_err(|_| Failure::Error("a name with a NUL".to_string()))?;
        // SAFETY: as above; both models are open.
        unsafe {
            let mut error: bl_error = std::mem::zeroed();
            let mut info: bl_model_difference_info = std::mem::zeroed();
            info.struct_size = size_of::<bl_model_difference_info>() as u32;
            let status = bl_model_compare(self.0, other.0, name.as_ptr(), &mut info, &mut error);
            check(status as u32, &error)?;
            Ok(info)
        }
    }
}

fn check(status: u32, error: &bl_error) -> Answer {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the library wrote a NUL-terminated message.
    let text = unsafe { std::ffi::CStr::from_ptr(error.message.as_ptr()) };
    Err(Failure::Error(text.to_string_lossy().into_owned()))
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: what the library gave, or NULL.
        unsafe {
            bl_free(self.0.cast());
            bl_free(self.1.cast());
        }
    }
}
