//! Contexts: what calls run with.

use std::ffi::c_void;
use std::sync::{Arc, OnceLock};

use super::boundary::guard;
use super::handle::{self, Kind};
use super::layer::Layer;
use super::model::Model;
use super::options;
use super::types::*;
use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::exec::Executor;

/// The body of a `bl_context`.
pub struct Context {
    /// The instruction set that its layers use.
    pub isa: Isa,
    /// Who runs the pieces.
    pub executor: Executor,
}

impl Kind for Context {
    const TAG: u32 = 0x424c_6374;
    const NAME: &'static str = "context";
}

/// The context of a handle; the default one for NULL.
///
/// # Safety
/// As `handle::get`.
pub unsafe fn of(context: *const bl_context) -> Result<Arc<Context>> {
    if !context.is_null() {
        // SAFETY: the caller's contract.
        return unsafe { handle::share(context) };
    }
    // The environment is read once, at the first use of the default context. What is wrong with it is
    // said at every use.
    static DEFAULT: OnceLock<Option<Arc<Context>>> = OnceLock::new();
    let made = DEFAULT.get_or_init(|| {
        let isa = Isa::from_environment().ok()?;
        Some(Arc::new(Context { isa, executor: Executor::Serial }))
    });
    match made {
        Some(context) => Ok(context.clone()),
        None => Err(Isa::from_environment().err().unwrap_or_else(|| {
            fail!(InvalidArgument, "BITLINEAR_ISA was wrong when the default context was made")
        })),
    }
}

/// Makes a context: threads and settings that layers and calls use. `options` may be NULL.
/// Reads the environment variable BITLINEAR_ISA (scalar, avx2, avxvnni, avx512vnni, or on ARM scalar,
/// neon, dotprod, i8mm), which narrows the instruction sets used; an unknown name is
/// BL_ERROR_INVALID_ARGUMENT, one that this CPU lacks
/// BL_ERROR_UNSUPPORTED. The default context reads it at its first use.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_context_create(
    options: *const bl_context_options,
    out: *mut *mut bl_context,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let options = options::read(options)?;
            if options.threads > 1 {
                return Err(fail!(
                    Unsupported,
                    "threads = {}: contexts are serial in this version; 0 or 1",
                    options.threads
                ));
            }
            let context = Context { isa: Isa::from_environment()?, executor: Executor::Serial };
            *out = handle::make::<bl_context, _>(Arc::new(context))?;
            Ok(())
        })
    }
}

/// An out parameter for a handle, set to NULL.
///
/// # Safety
/// `out` is NULL or valid for writing.
pub unsafe fn out_handle<'a, H>(out: *mut *mut H) -> Result<&'a mut *mut H> {
    if out.is_null() {
        return Err(fail!(InvalidArgument, "`out`, where the handle goes, is NULL"));
    }
    // SAFETY: not NULL, and the caller's contract.
    unsafe {
        out.write(std::ptr::null_mut());
        Ok(&mut *out)
    }
}

/// Frees a context, model or layer. In any order: a handle keeps alive what it needs. NULL does
/// nothing, nor does a handle that was freed before. No other call on the handle may be under way.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_free(handle: *mut c_void) {
    // SAFETY: `error` is NULL; the header's rules for `handle`.
    unsafe {
        guard(std::ptr::null_mut(), || {
            handle::free(handle, |tag, body| match tag {
                // SAFETY: the tag says what the shell owned one count of.
                Context::TAG => drop(Arc::from_raw(body.cast::<Context>())),
                Model::TAG => drop(Arc::from_raw(body.cast::<Model>())),
                Layer::TAG => drop(Arc::from_raw(body.cast::<Layer>())),
                _ => {}
            });
            Ok(())
        });
    }
}
