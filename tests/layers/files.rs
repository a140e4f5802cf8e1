//! Files for tests: safetensors with any tensors, folders with a config.json.

use std::path::{Path, PathBuf};

use crate::c::Model;

/// A tensor to write.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// A tensor of a safetensors file.
pub(crate) fn tensor(name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Tensor {
    let tensor = Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes };
    assert_eq!(tensor.shape.iter().product::<usize>() * width(dtype), tensor.bytes.len(), "{name}");
    tensor
}

/// Bytes of an element.
pub(crate) fn width(dtype: &str) -> usize {
    match dtype {
        "U8" | "I8" => 1,
        "F16" | "BF16" => 2,
        "F32" | "I32" | "U32" => 4,
        "I64" => 8,
        other => panic!("{other}"),
    }
}

/// The bytes of a safetensors file.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for Tensor { name, dtype, shape, bytes } in tensors {
        let (begin, end) = (data.len(), data.len() + bytes.len());
        entries.push(format!(
            "\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}"
        ));
        data.extend_from_slice(bytes);
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// The tensors of a golden safetensors file.
pub(crate) fn golden_tensors(name: &str) -> Vec<Tensor> {
    let bytes = crate::data::data(&format!("golden/{name}"));
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let entries = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    entries
        .map(|(name, entry)| {
            let dtypes = ["U8", "I8", "F16", "BF16", "F32", "I32", "U32", "I64"];
            let dtype = dtypes.into_iter().find(|d| entry["dtype"] == *d).unwrap();
            let sizes = |v: &serde_json::Value| -> Vec<usize> {
                v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
            };
            let range = sizes(&entry["data_offsets"]);
            let bytes = bytes[8 + len + range[0]..8 + len + range[1]].to_vec();
            tensor(name, dtype, &sizes(&entry["shape"]), bytes)
        })
        .collect()
}

/// A model of these tensors, in memory.
pub(crate) fn model(tensors: &[Tensor]) -> Model {
    Model::memory(&safetensors(tensors), 0).unwrap()
}

/// A folder that goes with the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("bitlinear-layers-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The model of these tensors and this config.json.
    pub(crate) fn model(&self, tensors: &[Tensor], config: &str) -> Model {
        std::fs::write(self.0.join("model.safetensors"), safetensors(tensors)).unwrap();
        std::fs::write(self.0.join("config.json"), config).unwrap();
        Model::path(&self.0).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
