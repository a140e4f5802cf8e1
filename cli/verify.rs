//! Whether a file is whole.

use std::path::PathBuf;
use std::sync::Arc;

use bitlinear::container::{Files, Kind};
use bitlinear::error::{Result, Status};
use bitlinear::layout::{Matrix, Row};
use bitlinear::memory::Heap;
use bitlinear::model::{Layers, Request};
use clap::Args;
use serde_json::json;

use super::{Answer, Common, Failure, show};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The model.
    file: PathBuf,
}

struct Kept(Files);
impl std::ops::Deref for Kept {
    type Target = Files;
    fn deref(&self) -> &Files {
        &self.0
    }
}

/// Reads every weight; how many there are.
fn read(matrix: &dyn Matrix) -> Result<u64> {
    let (layout, columns) = (matrix.layout(), matrix.in_features());
    let mut row = Row::new(layout, columns)?;
    for index in 0..matrix.out_features() {
        matrix.read_row(index, &mut row)?;
        if let Some(k) = (0..columns).find(|&k| !row.weight(&layout, k).is_finite()) {
            return Err(bitlinear::error::Error::new(
                Status::BadFile,
                format_args!("weight [{index}, {k}] is {}", row.weight(&layout, k)),
            ));
        }
    }
    Ok(matrix.out_features() as u64 * columns as u64)
}

pub(crate) fn run(a: &Arguments, common: &Common) -> Answer {
    // A file that cannot be read is a bad one, not a failure of this command.
    let files = match show::open(&a.file) {
        Ok(files) => Arc::new(Kept(files)),
        Err(e) if e.status() == Status::BadFile => {
            show::note(e.text());
            return Err(Failure::No);
        }
        Err(e) => return Err(e.into()),
    };
    let layers = Layers::of(&files)?;
    let mut rows = Vec::new();
    let mut bad = 0;
    for layer in layers.list() {
        let name = show::name(layers.name(layer));
        let found = || -> Result<u64> {
            if files.directory.kind == Kind::Packed {
                let heap = Heap::default();
                let tensor = files.directory.tensor(layers.name(layer));
                let saved =
                    tensor.map(|tensor| bitlinear::model::saved(&files, tensor, &heap)).transpose()?;
                return saved.flatten().map_or(Ok(0), |saved| read(&saved.packed));
            }
            let request = Request { all_slices: true, ..Request::default() };
            read(&*layers.plan(&files, layer, &request)?.matrix()?)
        };
        match found() {
            Ok(weights) => rows.push((name, layer.ty.name(), weights, String::new())),
            Err(e) => {
                bad += 1;
                rows.push((name, layer.ty.name(), 0, e.text().to_string()));
            }
        }
    }
    if files.directory.kind == Kind::Packed {
        check_sums(&a.file)?;
    }
    if common.json {
        let layers: Vec<_> = rows
            .iter()
            .map(|(name, ty, weights, problem)| json!({"layer": name, "type": ty, "weights": weights, "problem": problem}))
            .collect();
        show::json(&json!({"layers": layers, "bad": bad}))?;
    } else {
        let problems: Vec<Vec<String>> = rows
            .iter()
            .filter(|(.., problem)| !problem.is_empty())
            .map(|(name, ty, _, problem)| vec![name.clone(), ty.to_string(), problem.clone()])
            .collect();
        if !problems.is_empty() {
            show::table(&["layer", "type", "problem"], &problems, 3)?;
        }
        let weights: u64 = rows.iter().map(|r| r.2).sum();
        let file = a.file.display();
        show::line(format_args!(
            "{file}: {} layers, {weights} weights read, {bad} layers are bad",
            rows.len()
        ))?;
    }
    if bad > 0 { Err(Failure::No) } else { Ok(()) }
}

/// The sums that bl_save wrote, against the bytes.
fn check_sums(path: &std::path::Path) -> Answer {
    use bitlinear::capi::types::{BL_LOAD_VERIFY, bl_error, bl_load_options};
    let text = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| Failure::Error("a path with a NUL".to_string()))?;
    let options = bl_load_options { struct_size: size_of::<bl_load_options>() as u32, flags: BL_LOAD_VERIFY };
    // SAFETY: all zeros is an error struct; the pointers are to locals; the handle is freed once.
    unsafe {
        let mut error: bl_error = std::mem::zeroed();
        let mut model = std::ptr::null_mut();
        let context = std::ptr::null();
        let status =
            bitlinear::capi::model::bl_load(context, text.as_ptr(), &options, &mut model, &mut error);
        bitlinear::capi::context::bl_free(model.cast());
        if status as u32 != 0 {
            let message = std::ffi::CStr::from_ptr(error.message.as_ptr());
            return Err(Failure::Error(message.to_string_lossy().into_owned()));
        }
    }
    Ok(())
}
