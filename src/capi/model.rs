//! Model files.

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::boundary::{guard, status_of};
use super::context::{self, Context, out_handle};
use super::enums::*;
use super::handle::{self, Kind};
use super::options;
use super::types::*;
use crate::container::{Access, Array, Files, Item, Meta, Quoted, Source, Str, Tensor, Value, packed};
use crate::error::{Result, fail};
use crate::model::{Layers, Request, Role};

/// The body of a `bl_model`.
pub struct Model {
    /// The context it was loaded in, which its layers use.
    pub context: Arc<Context>,
    /// Its files, which layers read in place may outlive the model with.
    pub files: Arc<Opened>,
    layers: OnceLock<Layers>,
}

/// The files of a model, counted in its context's memory for as long as anything uses them.
pub struct Opened {
    context: Arc<Context>,
    files: Files,
}

impl std::ops::Deref for Opened {
    type Target = Files;
    fn deref(&self) -> &Files {
        &self.files
    }
}

impl Opened {
    fn mapped(&self) -> u64 {
        self.files.sources.iter().filter(|s| s.is_mapped()).map(|s| s.bytes().len() as u64).sum()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.context.usage.mapped.fetch_sub(self.mapped(), Ordering::Relaxed);
    }
}

impl Kind for Model {
    const TAG: u32 = 0x424c_6d6f;
    const NAME: &'static str = "model";
}

impl Drop for Model {
    fn drop(&mut self) {
        self.context.usage.handles.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Model {
    fn new(context: Arc<Context>, files: Files) -> Model {
        let files = Opened { context: context.clone(), files };
        context.usage.handles.fetch_add(1, Ordering::Relaxed);
        context.usage.mapped.fetch_add(files.mapped(), Ordering::Relaxed);
        Model { context, files: Arc::new(files), layers: OnceLock::new() }
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &CStr) -> Result<&Tensor> {
        self.files
            .directory
            .tensor(name.to_bytes())
            .ok_or_else(|| fail!(NotFound, "no tensor is named {}", Quoted(name.to_bytes())))
    }

    /// Its layers, listed at the first use.
    pub fn layers(&self) -> Result<&Layers> {
        if let Some(layers) = self.layers.get() {
            return Ok(layers);
        }
        let layers = Layers::of(&self.files)?;
        // They stay: a part of the reserve that they took would bar this thread from making handles (`handle::make`).
        if crate::reserve::in_use() {
            return Err(fail!(OutOfMemory, "the list of layers: the library's reserve had to help out"));
        }
        Ok(self.layers.get_or_init(|| layers))
    }

    /// The first byte of a text, for C.
    fn text(&self, text: Str) -> *const c_char {
        self.files.directory.texts.c_str(text)
    }
}

/// A string argument.
///
/// # Safety
/// `text` is NULL or NUL-terminated.
pub unsafe fn string<'a>(text: *const c_char, what: &str) -> Result<&'a CStr> {
    if text.is_null() {
        return Err(fail!(InvalidArgument, "{what} is NULL"));
    }
    // SAFETY: not NULL, and the caller's contract.
    Ok(unsafe { CStr::from_ptr(text) })
}

/// No file has the empty path; what the system says of it would name nothing.
fn not_empty(path: &CStr) -> Result<()> {
    if path.is_empty() { Err(fail!(Io, "the path is empty")) } else { Ok(()) }
}

/// A path argument.
#[cfg(unix)]
pub fn path_of(text: &CStr) -> Result<&Path> {
    use std::os::unix::ffi::OsStrExt;
    not_empty(text)?;
    Ok(Path::new(OsStr::from_bytes(text.to_bytes())))
}

/// A path argument.
#[cfg(not(unix))]
pub fn path_of(text: &CStr) -> Result<&Path> {
    not_empty(text)?;
    let text = text.to_str().map_err(|_| fail!(InvalidArgument, "the path is not UTF-8"))?;
    Ok(Path::new(OsStr::new(text)))
}

/// Opens a model: a GGUF file (or the first part of a split one), a safetensors file, an index of
/// shards or the folder they are in, a file that bl_save wrote, a JSON artifact of burn_dragon (read,
/// not mapped). The content tells the kind. Only headers are read; tensors are mapped. The file must not
/// be cut or rewritten while it is mapped: reading a missing page would stop the process with SIGBUS.
/// BL_LOAD_COPY reads it into memory instead, and then it may change.
/// BL_LOAD_VERIFY reads all of a file that bl_save wrote and compares it with the sums in it.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_load(
    context: *const bl_context,
    path: *const c_char,
    options: *const bl_load_options,
    out: *mut *mut bl_model,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let context = context::of(context)?;
            let path = path_of(string(path, "the path")?)?;
            let flags = options::read(options)?.flags;
            let access = match flags & !BL_LOAD_VERIFY {
                0 => Access::Map,
                BL_LOAD_COPY => Access::Read,
                _ => {
                    return Err(fail!(
                        InvalidArgument,
                        "load flags {flags:#x}: BL_LOAD_COPY and BL_LOAD_VERIFY are known"
                    ));
                }
            };
            let files = Files::open(path, access)?;
            if flags & BL_LOAD_VERIFY != 0 {
                verify(&files).map_err(|e| e.within(format_args!("{}", path.display())))?;
            }
            let count = files.directory.tensors.len();
            context.log(bl_log_level::BL_LOG_INFO, format_args!("{}: {count} tensors", path.display()));
            *out = handle::make::<bl_model, _>(Arc::new(Model::new(context, files)))?;
            Ok(())
        })
    }
}

/// Checks the sums of a packed file; files of other kinds have none.
fn verify(files: &Files) -> Result<()> {
    packed::verify(&files.directory, files.sources.first().map_or(&[], Source::bytes))
}

/// The same from bytes in memory, which are copied unless BL_LOAD_BORROW.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_load_memory(
    context: *const bl_context,
    data: *const c_void,
    size: usize,
    options: *const bl_load_options,
    out: *mut *mut bl_model,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_load`; `data` has `size` bytes by the header's rules.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let context = context::of(context)?;
            if data.is_null() && size > 0 {
                return Err(fail!(InvalidArgument, "the bytes to load are NULL"));
            }
            if size > isize::MAX as usize {
                return Err(fail!(InvalidArgument, "{size} bytes are more than an address space"));
            }
            let flags = options::read(options)?.flags;
            let source = match flags & !BL_LOAD_VERIFY {
                BL_LOAD_BORROW => Source::borrow(data.cast(), size),
                0 | BL_LOAD_COPY if size == 0 => Source::copy(&[])?,
                0 | BL_LOAD_COPY => Source::copy(std::slice::from_raw_parts(data.cast(), size))?,
                _ => return Err(fail!(InvalidArgument, "load flags {flags:#x} are unknown")),
            };
            let files = Files::of(source)?;
            if flags & BL_LOAD_VERIFY != 0 {
                verify(&files)?;
            }
            *out = handle::make::<bl_model, _>(Arc::new(Model::new(context, files)))?;
            Ok(())
        })
    }
}

/// Kind, counts and size of a model.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_model_describe(
    model: *const bl_model,
    info: *mut bl_model_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_load`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let model: &Model = handle::get(model)?;
            let directory = &model.files.directory;
            out.fill(&bl_model_info {
                struct_size: 0,
                container: directory.kind as u32,
                tensors: directory.tensors.len() as i64,
                metadata: directory.metadata.len() as i64,
                bytes: model.files.sources.iter().map(|s| s.bytes().len() as u64).sum(),
                layers: model.layers()?.list().len() as i64,
            });
            Ok(())
        })
    }
}

/// A tensor by name, or by index where name is NULL. BL_ERROR_NOT_FOUND where there is none.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_model_tensor(
    model: *const bl_model,
    name: *const c_char,
    index: i64,
    info: *mut bl_tensor_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_load`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let model: &Model = handle::get(model)?;
            let tensor = if name.is_null() {
                let count = model.files.directory.tensors.len();
                u64::try_from(index)
                    .ok()
                    .and_then(|i| model.files.directory.tensor_at(i))
                    .ok_or_else(|| fail!(NotFound, "tensor {index} of {count}"))?
            } else {
                model.tensor(CStr::from_ptr(name))?
            };
            out.fill(&bl_tensor_info {
                struct_size: 0,
                r#type: TypeArg(tensor.ty as u32),
                name: model.text(tensor.name),
                dims: tensor.dims,
                reserved: 0,
                shape: tensor.shape.map(|n| n as i64),
                data: model.files.bytes(tensor).as_ptr().cast(),
                bytes: tensor.bytes,
            });
            Ok(())
        })
    }
}

/// A layer by name, or by index where name is NULL. BL_ERROR_NOT_FOUND where there is none. A layer that
/// cannot be opened is listed too: see `status`. A name under which weights are stored in several formats
/// is BL_ERROR_INVALID_ARGUMENT; by index each is listed.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_model_layer(
    model: *const bl_model,
    name: *const c_char,
    index: i64,
    info: *mut bl_model_layer_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_load`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let model: &Model = handle::get(model)?;
            let layers = model.layers()?;
            let layer = if name.is_null() {
                let count = layers.list().len();
                usize::try_from(index)
                    .ok()
                    .and_then(|i| layers.list().get(i))
                    .ok_or_else(|| fail!(NotFound, "layer {index} of {count}"))?
            } else {
                let name = CStr::from_ptr(name);
                layers
                    .find(name.to_bytes(), None)?
                    .ok_or_else(|| fail!(NotFound, "no layer is named {}", Quoted(name.to_bytes())))?
            };
            let tensor = |role| {
                let tensor = layer.tensor(&model.files, role);
                tensor.map_or(std::ptr::null(), |t| model.text(t.name))
            };
            let plan = layers.plan(&model.files, layer, &Request::default());
            let (ty, shape, status) = match &plan {
                Ok(plan) => {
                    let shape = [plan.in_features, plan.out_features, plan.slices].map(|n| n as i64);
                    let status =
                        plan.check_sizes().map_or_else(|e| status_of(e.status()), |()| bl_status::BL_OK);
                    (plan.ty, shape, status)
                }
                Err(e) => (layer.ty, [0; 3], status_of(e.status())),
            };
            out.fill(&bl_model_layer_info {
                struct_size: 0,
                r#type: TypeArg(ty as u32),
                name: layers.texts.c_str(layer.name),
                in_features: shape[0],
                out_features: shape[1],
                slices: shape[2],
                status: StatusArg(status as u32),
                reserved: 0,
                weight: tensor(Role::Weight),
                scales: tensor(Role::Scales),
                zeros: tensor(Role::Zeros),
                group_index: tensor(Role::GroupIndex),
                shape: tensor(Role::Shape),
                product_scale: tensor(Role::ProductScale),
                bias: tensor(Role::Bias),
                norm: tensor(Role::Norm),
            });
            Ok(())
        })
    }
}

/// A metadata value by key, or by index where key is NULL. BL_ERROR_NOT_FOUND where there is none.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_model_meta(
    model: *const bl_model,
    key: *const c_char,
    index: i64,
    info: *mut bl_meta_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_load`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let model: &Model = handle::get(model)?;
            let meta = if key.is_null() {
                let all = &model.files.directory.metadata;
                usize::try_from(index)
                    .ok()
                    .and_then(|i| all.get(i))
                    .ok_or_else(|| fail!(NotFound, "metadata entry {index} of {}", all.len()))?
            } else {
                find_meta(model, CStr::from_ptr(key))?
            };
            out.fill(&meta_info(model, model.text(meta.key), &meta.value));
            Ok(())
        })
    }
}

/// One item of an array value, as if it were a value of its own (its key is NULL). Takes the same time
/// for every item.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_model_meta_item(
    model: *const bl_model,
    key: *const c_char,
    item: i64,
    info: *mut bl_meta_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_load`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let model: &Model = handle::get(model)?;
            let key = string(key, "the key")?;
            let Value::Array(array) = &find_meta(model, key)?.value else {
                return Err(fail!(InvalidArgument, "{} is no array", Quoted(key.to_bytes())));
            };
            let value =
                u64::try_from(item).ok().and_then(|i| model.files.item(array, i)).ok_or_else(|| {
                    let key = Quoted(key.to_bytes());
                    match array.item {
                        Item::Array => fail!(Unsupported, "{key} is an array of arrays"),
                        _ => fail!(NotFound, "item {item} of {} of {key}", array.count),
                    }
                })?;
            out.fill(&meta_info(model, std::ptr::null(), &value));
            Ok(())
        })
    }
}

fn find_meta<'a>(model: &'a Model, key: &CStr) -> Result<&'a Meta> {
    model
        .files
        .directory
        .meta(key.to_bytes())
        .ok_or_else(|| fail!(NotFound, "no metadata key is {}", Quoted(key.to_bytes())))
}

fn item_kind(array: &Array) -> bl_meta_kind {
    match array.item {
        Item::Unsigned(_) => bl_meta_kind::BL_META_U64,
        Item::Signed(_) => bl_meta_kind::BL_META_I64,
        Item::Float(_) => bl_meta_kind::BL_META_F64,
        Item::Bool => bl_meta_kind::BL_META_BOOL,
        Item::String => bl_meta_kind::BL_META_STRING,
        Item::Array => bl_meta_kind::BL_META_ARRAY,
    }
}

fn meta_info(model: &Model, key: *const c_char, value: &Value) -> bl_meta_info {
    let (kind, integer, number) = match *value {
        Value::U64(v) => (bl_meta_kind::BL_META_U64, v as i64, v as f64),
        Value::I64(v) => (bl_meta_kind::BL_META_I64, v, v as f64),
        Value::F64(v) => (bl_meta_kind::BL_META_F64, 0, v),
        Value::Bool(v) => (bl_meta_kind::BL_META_BOOL, v as i64, v as i64 as f64),
        Value::String(_) => (bl_meta_kind::BL_META_STRING, 0, 0.0),
        Value::Array(_) => (bl_meta_kind::BL_META_ARRAY, 0, 0.0),
    };
    let mut info = bl_meta_info {
        struct_size: 0,
        kind: MetaKindArg(kind as u32),
        key,
        integer,
        number,
        string: std::ptr::null(),
        item_kind: MetaKindArg(0),
        reserved: 0,
        items: 0,
    };
    match value {
        Value::String(text) => {
            info.string = model.text(*text);
            info.items = model.files.directory.texts.get(*text).len() as i64;
        }
        Value::Array(array) => {
            info.item_kind = MetaKindArg(item_kind(array) as u32);
            info.items = array.count as i64;
        }
        _ => {}
    }
    info
}
