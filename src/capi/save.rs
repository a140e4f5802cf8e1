//! Saving.

use std::ffi::c_char;

use super::boundary::guard;
use super::enums::*;
use super::handle;
use super::layer::{Body, Layer};
use super::model::{path_of, string};
use super::types::*;
use crate::container::Quoted;
use crate::error::{Result, fail};
use crate::limits::TENSORS_MAX;
use crate::memory::reserve;
use crate::save::{Named, save};

/// Writes layers and texts to a file, which bl_load maps and bl_layer_open uses in place: the weights
/// are in it as they lie in memory. A file of that name stays whole until the new one is on the disk; a
/// failure leaves it, and nothing else. Texts come back as metadata; their keys do not begin with
/// "bitlinear.". The file serves every CPU. Layers on a device are copied back for the time of the call.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_save(
    path: *const c_char,
    layers: *const bl_named_layer,
    layer_count: usize,
    texts: *const bl_named_text,
    text_count: usize,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let path = path_of(string(path, "the path")?)?;
            let layer_items = items(layers, layer_count, "layers")?;
            // Layers on a device, back on the CPU.
            let mut back = Vec::new();
            for item in layer_items {
                let layer: &Layer = handle::get(item.layer)?;
                reserve(&mut back, 1, "layers")?;
                back.push(match layer.body {
                    Body::Cpu(_) => None,
                    Body::Device(_) => Some(layer.to_cpu()?),
                });
            }
            let mut named = Vec::new();
            for (item, back) in layer_items.iter().zip(&back) {
                let layer: &Layer = handle::get(item.layer)?;
                reserve(&mut named, 1, "layers")?;
                let linear = match back {
                    Some(linear) => linear,
                    None => layer.cpu("the panels")?,
                };
                named.push(Named { name: text(item.name, "a layer's name")?, linear, ty: layer.ty });
            }
            let mut pairs = Vec::new();
            for item in items(texts, text_count, "texts")? {
                reserve(&mut pairs, 1, "texts")?;
                pairs.push((text(item.key, "a text's key")?, text(item.value, "a text")?));
            }
            save(path, &named, &pairs)
        })
    }
}

/// A caller's array.
///
/// # Safety
/// `items` is NULL or an array of `count` items.
pub unsafe fn items<'a, T>(items: *const T, count: usize, what: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if items.is_null() || count as u64 > TENSORS_MAX {
        let found = if items.is_null() { "but the array is NULL" } else { "are too many" };
        return Err(fail!(InvalidArgument, "{count} {what} {found}"));
    }
    // SAFETY: not NULL, and the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts(items, count) })
}

/// A caller's UTF-8.
///
/// # Safety
/// `text` is NULL or NUL-terminated.
pub unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str> {
    // SAFETY: the caller's contract.
    let text = unsafe { string(text, what) }?;
    text.to_str().map_err(|_| fail!(InvalidArgument, "{what} is no UTF-8: {}", Quoted(text.to_bytes())))
}
