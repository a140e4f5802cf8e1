//! What calls on layers of a device are made of; the same with and without a driver.

use std::ffi::c_void;

use super::DeviceLayer;
use crate::epilogue::Epilogue;
use crate::layout::Float;
use crate::matrix::MatrixMut;

/// Where a layer's memory comes from.
#[derive(Clone, Copy)]
pub enum Room {
    /// It is allocated.
    Own,
    /// The host's: address and bytes.
    Host(u64, usize),
}

/// One layer of a call with host pointers, and where its rows go.
pub struct HostTarget<'a> {
    /// The layer.
    pub layer: &'a DeviceLayer,
    /// `m` rows of `outputs`.
    pub y: MatrixMut<'a>,
    /// Columns of x: the layer's, or (one scale a row only) a prefix of them. The same for all of a call.
    pub columns: usize,
    /// How many of its outputs are computed: the first ones.
    pub outputs: usize,
    /// What is done to them; the layer's own, or the call's.
    pub epilogue: Epilogue,
}

impl<'a> HostTarget<'a> {
    /// All of a layer, as it was made.
    pub fn new(layer: &'a DeviceLayer, y: MatrixMut<'a>) -> HostTarget<'a> {
        let (columns, outputs) = (layer.in_features(), layer.out_features());
        HostTarget { layer, y, columns, outputs, epilogue: layer.around().epilogue }
    }
}

/// One layer of a call with device pointers, and where its rows go.
#[derive(Clone, Copy)]
pub struct StreamTarget<'a> {
    /// The layer.
    pub layer: &'a DeviceLayer,
    /// The first row of y, aligned to its elements.
    pub y: u64,
    /// Bytes from row to row, a multiple of an element's.
    pub y_stride: usize,
}

/// What all layers of a call with device pointers share.
#[derive(Clone, Copy)]
pub struct StreamCall {
    /// Rows of x.
    pub m: usize,
    /// The first row, aligned to its elements.
    pub x: u64,
    /// Its type.
    pub x_type: Float,
    /// Bytes from row to row, a multiple of an element's.
    pub x_stride: usize,
    /// The type of the y's.
    pub y_type: Float,
    /// Whether results are added to the y's.
    pub accumulate: bool,
    /// The workspace: address and bytes.
    pub workspace: (u64, usize),
    /// Whether the driver is asked whose memory all that is.
    pub check: bool,
    /// The caller's stream.
    pub stream: *mut c_void,
}
