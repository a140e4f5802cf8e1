//! A build without the feature `cuda`: the same names, and no device. What needs one says so; nothing that it
//! would give can exist.

use std::convert::Infallible;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::call::{HostTarget, Room, StreamCall, StreamTarget};
use crate::error::{Result, fail};
use crate::layer::{Activation, Around, Options, Seen};
use crate::layout::{Layout, Matrix, Row};
use crate::matrix::MatrixRef;
use crate::memory::Heap;

/// Alignment of everything on a device.
pub const ALIGNMENT: usize = 256;

fn none<T>() -> Result<T> {
    Err(fail!(NoDriver, "this build of the library has no CUDA"))
}

macro_rules! never {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        pub struct $name {
            #[allow(dead_code)] // of some it is never read
            never: Infallible,
            $(
                /// As in a build with CUDA.
                pub $field: $ty,
            )*
        }
    )*};
}

never! {
    /// A driver.
    Driver {}
    /// A GPU.
    Description { name: Name, arch: u32, processors: u32, memory: u64, }
    /// The name of a GPU.
    Name {}
    /// A GPU in use.
    Device {}
    /// What a context has on a device.
    Lanes { device: Arc<Device>, count: Arc<AtomicU64>, }
    /// A layer on a device.
    DeviceLayer {}
    /// What a call will do.
    DevicePlan { kernel: &'static CStr, workspace: usize, bytes_read: u64, operations: u64, }
}

/// The driver: there is none.
pub fn driver() -> Result<&'static Driver> {
    none()
}

/// The names of all kernels: there are none.
pub fn kernels() -> impl Iterator<Item = &'static CStr> {
    std::iter::empty()
}

impl Driver {
    /// The GPUs.
    pub fn devices(&self) -> &[Description] {
        match self.never {}
    }
    /// Bytes of memory that are free on one.
    pub fn free_memory(&self, _: &Description) -> Option<u64> {
        match self.never {}
    }
}

impl Name {
    /// NUL-terminated.
    pub fn as_c(&self) -> &CStr {
        match self.never {}
    }
}

impl Device {
    /// Its number.
    pub fn index(&self) -> u32 {
        match self.never {}
    }
    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        match self.never {}
    }
}

impl Lanes {
    /// That device: there is none.
    pub fn new(_: u32) -> Result<Lanes> {
        none()
    }
}

/// Puts a call on a stream: there is none.
///
/// # Safety
/// None is needed.
pub unsafe fn enqueue(_: &[StreamTarget<'_>], _: &StreamCall) -> Result<()> {
    none()
}

/// Rows of a layer on a device.
pub struct DeviceRows<'a>(&'a DeviceLayer);

impl Matrix for DeviceRows<'_> {
    fn layout(&self) -> Layout {
        match self.0.never {}
    }
    fn out_features(&self) -> usize {
        match self.0.never {}
    }
    fn in_features(&self) -> usize {
        match self.0.never {}
    }
    fn read_row(&self, _: usize, _: &mut Row) -> Result<()> {
        match self.0.never {}
    }
}

#[expect(missing_docs, reason = "as in a build with CUDA; nothing of it can be called")]
impl DeviceLayer {
    pub fn size(_: &dyn Matrix, _: &Options<'_>) -> Result<usize> {
        none()
    }
    /// # Safety
    /// None is needed.
    pub unsafe fn new(
        _: &dyn Matrix,
        _: &Options<'_>,
        _: &Arc<Lanes>,
        _: Room,
        _: Seen<'_>,
    ) -> Result<DeviceLayer> {
        none()
    }
    pub fn forward(
        _: &[HostTarget<'_>],
        _: usize,
        _: MatrixRef<'_>,
        _: &[f32],
        _: Option<&dyn Fn(&'static CStr, u64)>,
    ) -> Result<()> {
        none()
    }
    pub fn replace(&mut self, _: &dyn Matrix, _: &Heap) -> Result<()> {
        match self.never {}
    }
    pub fn fix_scale(&mut self, _: Option<f32>) {
        match self.never {}
    }
    pub fn out_features(&self) -> usize {
        match self.never {}
    }
    pub fn in_features(&self) -> usize {
        match self.never {}
    }
    pub fn layout(&self) -> &Layout {
        match self.never {}
    }
    pub fn around(&self) -> &Around {
        match self.never {}
    }
    pub fn activation(&self) -> Activation {
        match self.never {}
    }
    pub fn device(&self) -> u32 {
        match self.never {}
    }
    pub fn bytes(&self) -> (usize, bool) {
        match self.never {}
    }
    pub fn plan(&self, _: usize) -> Result<DevicePlan> {
        match self.never {}
    }
    pub fn rows(&self) -> Result<DeviceRows<'_>> {
        match self.never {}
    }
}
