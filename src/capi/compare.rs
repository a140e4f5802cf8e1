//! What a layer lost against another model's: unstable until version 1.0.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::ffi::c_char;

use super::boundary::guard;
use super::enums::*;
use super::handle;
use super::model::{Model, string};
use super::options::{self, Sized32};
use super::types::*;
use crate::compare::{Comparison, compare};
use crate::container;
use crate::error::{Result, fail};
use crate::export;
use crate::layout::Matrix;
use crate::model::{Request, Role};
use crate::rotation::{Rotation, Spec};

/// What a layer's weights lose against a reference.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_model_difference_info {
    pub struct_size: u32,
    pub reserved: u32,
    pub weights: u64,
    /// Stored bytes of the weights and their scales: of the reference and of the other.
    pub bytes_reference: u64,
    pub bytes_other: u64,
    /// Mean and largest magnitude, and mean square, of the difference.
    pub mean_error: f64,
    pub max_error: f64,
    pub mean_square_error: f64,
    /// Root mean square of the difference over that of the reference.
    pub relative_error: f64,
    /// Root mean square of the other over that of the reference.
    pub rms_ratio: f64,
    /// Of the angle between the two.
    pub cosine: f64,
    /// bytes_reference / bytes_other.
    pub compression: f64,
    /// Part of the other's weights that is 0.
    pub sparsity: f64,
}

// SAFETY: repr(C), first field `struct_size: u32`, fields ordered so that there is no padding
// (tests/abi.rs compares the sum of the fields with the size), all fields integers or floats.
unsafe impl Sized32 for bl_model_difference_info {
    const NAME: &'static str = stringify!(bl_model_difference_info);
}

/// Compares the weights of a layer of two models, as bl_layer_read gives them; all matrices of a tensor
/// of three dimensions together. A rotation that a file declares is taken back first. Runs on the
/// reference's context.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_model_compare(
    reference: *const bl_model,
    other: *const bl_model,
    layer: *const c_char,
    info: *mut bl_model_difference_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let (a, b): (&Model, &Model) = (handle::get(reference)?, handle::get(other)?);
            let name = string(layer, "the layer's name")?.to_bytes();
            let found = with_weights(a, name, &mut |one| {
                with_weights(b, name, &mut |two| compare(&a.context.executor, one, two))
            })?;
            let (bytes_reference, bytes_other) = (stored_bytes(a, name)?, stored_bytes(b, name)?);
            out.fill(&bl_model_difference_info {
                struct_size: 0,
                reserved: 0,
                weights: found.weights,
                bytes_reference,
                bytes_other,
                mean_error: found.mean_error,
                max_error: found.max_error,
                mean_square_error: found.mean_square_error,
                relative_error: found.relative_error,
                rms_ratio: found.rms_ratio,
                cosine: found.cosine,
                compression: bytes_reference as f64 / bytes_other as f64,
                sparsity: found.sparsity,
            });
            Ok(())
        })
    }
}

type Work<'a> = &'a mut dyn FnMut(&dyn Matrix) -> Result<Comparison>;

/// The weights of a layer, as they were before a rotation that its file declares.
fn with_weights(model: &Model, name: &[u8], work: Work<'_>) -> Result<Comparison> {
    let isa = model.context.isa;
    let back = |matrix: &dyn Matrix, spec: Option<Spec<'_>>, work: Work<'_>| match spec {
        None => work(matrix),
        Some(spec) => {
            let rotation = Rotation::new(&spec, matrix.in_features())?;
            work(&export::Plain::back(matrix, Some(&rotation), isa))
        }
    };
    if model.files.directory.kind == container::Kind::Packed {
        let tensor = model.files.directory.tensor(name);
        let tensor =
            tensor.ok_or_else(|| fail!(NotFound, "no layer is named {}", container::Quoted(name)))?;
        let saved = crate::model::saved(&model.files, tensor, &model.context.heap)?;
        let Some(saved) = saved else {
            return Err(fail!(Internal, "a tensor of a packed file that is no layer"));
        };
        let signs = saved.settings.rotation_signs.as_deref();
        let spec = saved.settings.rotation.map(|block| Spec { block, signs });
        return back(&saved.packed, spec, work);
    }
    let request = Request { all_slices: true, without_norm: true, has_bias: true, ..Request::default() };
    let layers = model.layers()?;
    let plan = match layers.find(name, None)? {
        Some(layer) => layers.plan(&model.files, layer, &request)?,
        None => layers.plan_named(&model.files, name, &request)?,
    };
    let matrix = plan.matrix()?;
    let declared = plan.rotation.as_ref().map(|declared| declared.spec());
    match matrix.permutation() {
        None => back(&*matrix, declared, work),
        // Columns in the order of x.
        Some(_) => back(&export::Plain::new(&*matrix, None, isa), declared, work),
    }
}

/// Bytes of a layer's weights, scales, zero points and group indices.
fn stored_bytes(model: &Model, name: &[u8]) -> Result<u64> {
    let files = &model.files;
    let layer = match files.directory.kind {
        container::Kind::Packed => None,
        _ => model.layers()?.find(name, None)?,
    };
    let Some(layer) = layer else {
        return Ok(files.directory.tensor(name).map_or(0, |tensor| tensor.bytes));
    };
    let roles = [Role::Weight, Role::Scales, Role::Zeros, Role::GroupIndex];
    Ok(roles.into_iter().filter_map(|role| layer.tensor(files, role)).map(|tensor| tensor.bytes).sum())
}
