//! Layers of bitlinear's own file: their panels are used where they are.

use std::ops::Deref;
use std::sync::Arc;

use super::parts::Parts;
use super::plan::{Plan, Recipe};
use crate::container::packed::{Layer, Part};
use crate::container::{Files, Quoted, Tensor};
use crate::epilogue::Epilogue;
use crate::error::{Error, Result, Status, fail};
use crate::layer::{Activation, Around, Settings};
use crate::layout::Packed;
use crate::memory::{ALIGNMENT, Block, Heap};
use crate::norm;
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
    /// What stands around the product.
    pub settings: Settings,
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
    // What the file asks for is nobody's argument.
    let of_file = |e: Error| match e.status() {
        Status::InvalidArgument => e.with(Status::BadFile),
        _ => e,
    };
    read(files, layer, heap).map(Some).map_err(|e| of_file(e).within(format_args!("layer {name}")))
}

fn read<T>(files: &Arc<T>, layer: &Layer, heap: &Heap) -> Result<Saved>
where
    T: Deref<Target = Files> + Send + Sync + 'static,
{
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
    let permutation = layer.permutation(file)?;
    let packed = Packed::of(line.layout, line.out_features, line.in_features, panels, permutation)?;
    let unknown = |what: &str, number: u32| fail!(Unsupported, "{what} {number} is unknown to this library");
    let activation = Activation::ALL.into_iter().find(|a| *a as u32 == line.activation);
    let norm = match line.norm {
        None => None,
        Some((number, epsilon)) => {
            let kind = norm::Kind::ALL.into_iter().find(|kind| *kind as u32 == number);
            Some((kind.ok_or_else(|| unknown("norm", number))?, epsilon))
        }
    };
    let settings = Settings {
        activation: activation.ok_or_else(|| unknown("activation", line.activation))?,
        product_scale: line.product_scale,
        bias: layer.floats(Part::Bias, file)?,
        norm,
        norm_weight: layer.floats(Part::NormWeight, file)?,
        norm_bias: layer.floats(Part::NormBias, file)?,
        rotation: line.rotation,
        rotation_signs: layer.floats(Part::RotationSigns, file)?,
        epilogue: match line.epilogue {
            None => Epilogue::None,
            Some((number, threshold)) => Epilogue::from_number(number, threshold)?,
        },
        activation_scale: line.activation_scale,
    };
    let stray = settings.norm.is_none() && (settings.norm_weight.is_some() || settings.norm_bias.is_some())
        || settings.rotation.is_none() && settings.rotation_signs.is_some();
    if stray {
        return Err(fail!(BadFile, "vectors of a norm or a rotation, but no such thing"));
    }
    // Alone, before a caller's options are added: what is wrong here is the file.
    Around::new(&settings.options(), packed.layout(), packed.out_features(), packed.in_features())?;
    Ok(Saved { packed, settings, ty: line.ty })
}
