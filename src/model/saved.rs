//! Layers of bitlinear's own file: their panels are used where they are.

use std::ops::Deref;
use std::sync::Arc;

use super::parts::Parts;
use super::plan::{Plan, Recipe};
use crate::container::packed::Line;
use crate::container::{Files, Quoted, Tensor};
use crate::error::{Error, Result, fail};
use crate::layout::Packed;
use crate::memory::{ALIGNMENT, Block, Heap};
use crate::types::Type;

/// What a listing tells of such a layer.
pub(super) fn plan<'a>(parts: &Parts<'a, '_>) -> Result<Plan<'a>> {
    let line = parts.files.directory.layer(parts.weight()?).map(|layer| &layer.line);
    let line = line.ok_or_else(|| fail!(Internal, "no layer of a packed file"))?;
    Ok(Plan::new(line.ty, line.out_features, line.in_features, Recipe::Saved))
}

/// A layer of a packed file.
pub struct Saved {
    /// Its panels, in place.
    pub packed: Packed,
    /// What is added to y.
    pub bias: Option<Vec<f32>>,
    /// What the product is multiplied with before the bias is added.
    pub product_scale: Option<f32>,
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
    let name = Quoted(files.directory.name(tensor));
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
    let Line { activation, product_scale, ty, .. } = *line;
    Ok(Some(Saved { packed, bias, product_scale, activation, ty }))
}
