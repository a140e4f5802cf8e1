//! What a file holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bitlinear::container::{Kind, Value};
use bitlinear::model::{Layers, Request};
use clap::Args;
use serde_json::json;

use super::{Answer, Common, show};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The model: a file or a folder.
    file: PathBuf,
    /// List the layers: which can be opened, with which type and shape.
    #[arg(long)]
    layers: bool,
    /// List the tensors.
    #[arg(long)]
    tensors: bool,
    /// List the metadata.
    #[arg(long)]
    metadata: bool,
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> Answer {
    let files = show::open(&arguments.file)?;
    let directory = &files.directory;
    let layers = Layers::of(&files)?;
    let kind = match directory.kind {
        Kind::Gguf => "GGUF",
        Kind::Safetensors => "safetensors",
        Kind::Packed => "bitlinear",
        Kind::Artifact => "burn_dragon",
    };
    let mut types: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for tensor in &directory.tensors {
        let sum = types.entry(tensor.ty.name()).or_default();
        let elements: u64 = tensor.shape.iter().product();
        (sum.0, sum.1, sum.2) = (sum.0 + 1, sum.1 + elements, sum.2 + tensor.bytes);
    }
    let bytes: u64 = directory.tensors.iter().map(|t| t.bytes).sum();
    let listed: Vec<_> = layers
        .list()
        .iter()
        .map(|layer| {
            let request = Request { all_slices: true, ..Request::default() };
            let plan = layers.plan(&files, layer, &request);
            let name = show::name(layers.name(layer));
            match plan {
                Ok(plan) => json!({"name": name, "type": plan.ty.name(), "out_features": plan.out_features,
                    "in_features": plan.in_features, "rotated": plan.rotation.is_some()}),
                Err(e) => json!({"name": name, "type": layer.ty.name(), "problem": e.text()}),
            }
        })
        .collect();
    let shape = |t: &bitlinear::container::Tensor| t.shape[..t.dims as usize].to_vec();
    if common.json {
        let tensors: Vec<_> = directory
            .tensors
            .iter()
            .map(|t| {
                json!({"name": show::name(directory.name(t)), "type": t.ty.name(), "shape": shape(t), "bytes": t.bytes})
            })
            .collect();
        let types: Vec<_> = types
            .iter()
            .map(|(name, (n, e, b))| json!({"type": name, "tensors": n, "elements": e, "bytes": b}))
            .collect();
        let metadata: serde_json::Map<String, serde_json::Value> = directory
            .metadata
            .iter()
            .map(|meta| {
                let value = match meta.value {
                    Value::String(s) => json!(show::name(directory.texts.get(s))),
                    Value::Array(a) => json!({"items": a.count, "of": format!("{:?}", a.item)}),
                    Value::U64(v) => json!(v),
                    Value::I64(v) => json!(v),
                    Value::F64(v) => json!(v),
                    Value::Bool(v) => json!(v),
                };
                (show::name(directory.texts.get(meta.key)), value)
            })
            .collect();
        return show::json(
            &json!({"file": arguments.file.display().to_string(), "container": kind, "bytes": bytes,
            "types": types, "layers": listed, "tensors": tensors, "metadata": metadata}),
        );
    }
    show::line(format_args!(
        "{}: {kind}, {} tensors in {}, {} layers, {} metadata entries",
        arguments.file.display(),
        directory.tensors.len(),
        show::bytes(bytes),
        layers.list().len(),
        directory.metadata.len()
    ))?;
    let rows: Vec<Vec<String>> = types
        .iter()
        .map(|(name, (n, e, b))| {
            let bits = if *e == 0 { 0.0 } else { *b as f64 * 8.0 / *e as f64 };
            vec![name.to_string(), n.to_string(), e.to_string(), show::bytes(*b), format!("{bits:.3}")]
        })
        .collect();
    show::table(&["type", "tensors", "weights", "bytes", "bits each"], &rows, 1)?;
    if arguments.layers {
        let text = |v: &serde_json::Value| match v {
            serde_json::Value::String(s) => s.clone(),
            serde_json::Value::Null => "-".to_string(),
            v => v.to_string(),
        };
        let rows: Vec<Vec<String>> = listed
            .iter()
            .map(|l| ["name", "type", "out_features", "in_features", "problem"].map(|k| text(&l[k])).to_vec())
            .collect();
        show::table(&["layer", "type", "outputs", "inputs", "problem"], &rows, 2)?;
    }
    if arguments.tensors {
        let rows: Vec<Vec<String>> = directory
            .tensors
            .iter()
            .map(|t| {
                let name = show::name(directory.name(t));
                vec![name, t.ty.name().to_string(), format!("{:?}", shape(t)), show::bytes(t.bytes)]
            })
            .collect();
        show::table(&["tensor", "type", "shape", "bytes"], &rows, 2)?;
    }
    if arguments.metadata {
        for meta in &directory.metadata {
            let key = show::shown(&show::name(directory.texts.get(meta.key)));
            match meta.value {
                Value::String(s) => {
                    show::line(format_args!("{key} = {:?}", show::name(directory.texts.get(s))))
                }
                Value::Array(a) => show::line(format_args!("{key} = {} items of {:?}", a.count, a.item)),
                Value::U64(v) => show::line(format_args!("{key} = {v}")),
                Value::I64(v) => show::line(format_args!("{key} = {v}")),
                Value::F64(v) => show::line(format_args!("{key} = {v}")),
                Value::Bool(v) => show::line(format_args!("{key} = {v}")),
            }?;
        }
    }
    Ok(())
}
