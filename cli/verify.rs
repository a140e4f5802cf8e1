//! Whether a file is whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitlinear::container::{Files, Kind, packed};
use bitlinear::error::{Error, Result, Status};
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
            return Err(Error::new(
                Status::BadFile,
                format_args!("weight [{index}, {k}] is {}", row.weight(&layout, k)),
            ));
        }
    }
    Ok(matrix.out_features() as u64 * columns as u64)
}

/// What was found of a layer.
struct Found {
    layer: String,
    ty: &'static str,
    weights: u64,
    problem: Option<String>,
}

pub(crate) fn run(a: &Arguments, common: &Common) -> Answer {
    let (rows, problem) = match verify(&a.file) {
        Ok(found) => found,
        // A file that is not what its format says is a bad one, not a failure of this command.
        Err(e) if e.status() == Status::BadFile || is_incomplete(&a.file, &e) => {
            (Vec::new(), Some(e.text().to_string()))
        }
        Err(e) => return Err(e.into()),
    };
    let bad = rows.iter().filter(|row| row.problem.is_some()).count();
    if common.json {
        let layers: Vec<_> = rows
            .iter()
            .map(|r| {
                let problem = r.problem.as_deref().unwrap_or_default();
                json!({"layer": r.layer, "type": r.ty, "weights": r.weights, "problem": problem})
            })
            .collect();
        show::json(
            &json!({"layers": layers, "bad": bad, "problem": problem.as_deref().unwrap_or_default()}),
        )?;
    } else if rows.is_empty() && problem.is_some() {
        // There is nothing to list, and stderr says why.
    } else {
        let problems: Vec<Vec<String>> = rows
            .iter()
            .filter_map(|r| Some(vec![r.layer.clone(), r.ty.to_string(), r.problem.clone()?]))
            .collect();
        if !problems.is_empty() {
            show::table(&["layer", "type", "problem"], &problems, 3)?;
        }
        let (file, weights) = (a.file.display(), rows.iter().map(|r| r.weights).sum::<u64>());
        let whole = if problem.is_some() { ", and the file is" } else { "" };
        let read = format_args!("{} layers, {weights} weights read, {bad} layers are bad{whole}", rows.len());
        show::line(format_args!("{file}: {read}"))?;
    }
    if let Some(problem) = &problem {
        show::note(problem);
    }
    if bad > 0 || problem.is_some() { Err(Failure::No) } else { Ok(()) }
}

/// What was found of each layer, and what is wrong with the file beside.
fn verify(file: &Path) -> Result<(Vec<Found>, Option<String>)> {
    let files = Arc::new(Kept(show::open(file)?));
    let layers = Layers::of(&files)?;
    let packed = files.directory.kind == Kind::Packed;
    let mut rows = Vec::new();
    for layer in layers.list() {
        let found = || -> Result<u64> {
            if packed {
                let heap = Heap::default();
                let tensor = files.directory.tensor(layers.name(layer));
                let saved =
                    tensor.map(|tensor| bitlinear::model::saved(&files, tensor, &heap)).transpose()?;
                return saved.flatten().map_or(Ok(0), |saved| read(&saved.packed));
            }
            let request = Request { all_slices: true, ..Request::default() };
            read(&*layers.plan(&files, layer, &request)?.matrix()?)
        };
        let (weights, problem) = match found() {
            Ok(weights) => (weights, None),
            Err(e) => (0, Some(e.text().to_string())),
        };
        rows.push(Found { layer: show::name(layers.name(layer)), ty: layer.ty.name(), weights, problem });
    }
    // The sums of a packed file, against its bytes: a flipped bit may well be another weight. Others have none.
    let bytes = files.sources.first().map_or(&[][..], |source| source.bytes());
    match packed::verify(&files.directory, bytes) {
        Err(e) if e.status() == Status::BadFile => {
            Ok((rows, Some(e.within(format_args!("{}", file.display())).text().to_string())))
        }
        checked => checked.map(|()| (rows, None)),
    }
}

/// Whether it is a part of the model that cannot be read: its first file can.
fn is_incomplete(file: &Path, e: &Error) -> bool {
    let index = file.join("model.safetensors.index.json");
    let first = if file.is_dir() { &index } else { file };
    // Only of a plain file: a pipe would be waited for.
    e.status() == Status::Io && first.is_file() && std::fs::File::open(first).is_ok()
}
