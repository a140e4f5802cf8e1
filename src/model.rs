//! From a tensor of a file to a matrix of weights: which codec reads it, and in which shape.

use std::ops::Deref;
use std::sync::Arc;

use crate::codec::{self, Matrix};
use crate::container::{Files, Tensor};
use crate::error::{Error, Result, fail};
use crate::layout::Packed;
use crate::memory::{ALIGNMENT, Block, Heap};
use crate::types::Type;

/// The matrix that a tensor holds: its last dimension are the columns, the ones before it the rows. A
/// vector is one row.
pub fn matrix<'a>(files: &'a Files, tensor: &Tensor) -> Result<Box<dyn Matrix + 'a>> {
    let name = String::from_utf8_lossy(files.directory.name(tensor));
    let shape = &tensor.shape[..tensor.dims as usize];
    let (rows, columns) = match *shape {
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        _ => {
            return Err(fail!(
                Unsupported,
                "tensor {name} has {} dimensions; a layer is a matrix [out_features, in_features]",
                tensor.dims
            ));
        }
    };
    let size = |n: u64| usize::try_from(n).map_err(|_| fail!(Unsupported, "tensor {name}: {n} is too large"));
    let (rows, columns) = (size(rows)?, size(columns)?);
    let bytes = files.bytes(tensor);
    let within = |e: crate::error::Error| e.within(format_args!("tensor {name}"));
    codec::open(tensor.ty, rows, columns, bytes).map_err(within)
}

/// A layer of a packed file.
pub struct Saved {
    /// Its panels, in place.
    pub packed: Packed,
    /// What is added to y.
    pub bias: Option<Vec<f32>>,
    /// How it takes x: a number of `bl_activation`.
    pub activation: u32,
    /// The format that its weights were stored in.
    pub ty: Type,
}

/// The layer that a tensor of a packed file holds; `None` where the files are of another kind. The
/// panels keep `files` alive; they are copied only out of a caller's memory that is not aligned.
pub fn saved<T>(files: &Arc<T>, tensor: &Tensor, heap: &Heap) -> Result<Option<Saved>>
where
    T: Deref<Target = Files> + Send + Sync + 'static,
{
    let Some(layer) = files.directory.layer(tensor) else { return Ok(None) };
    let name = String::from_utf8_lossy(files.directory.name(tensor));
    let within = |e: Error| e.within(format_args!("layer {name}"));
    let file = files.sources.first().map_or(&[][..], |source| source.bytes());
    let (line, range) = (&layer.line, layer.panels.clone());
    let bytes = file.get(range.clone()).unwrap_or(&[]);
    let panels = if bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
        Block::kept(files, |files| {
            files.sources.first().and_then(|source| source.bytes().get(range)).unwrap_or(&[])
        })
    } else {
        let mut block = heap.block(bytes.len(), "packed weights")?;
        block.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        block
    };
    let permutation = layer.read_permutation(file).map_err(within)?;
    let bias = layer.read_bias(file).map_err(within)?;
    let packed = Packed::of(line.layout, line.out_features, line.in_features, panels, permutation);
    let packed = packed.map_err(within)?;
    Ok(Some(Saved { packed, bias, activation: line.activation, ty: line.ty }))
}
