//! The files of kernels, what is in them, and the devices they run on.

use std::ffi::CStr;

use crate::activation::Rule;
use crate::layout::{Coded, Layout, Scales, Values};

/// Shared memory that kernels declare themselves, at most: what dynamic shared memory leaves free.
const STATIC_SHARED: usize = 1024;

/// A device, as far as launches depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Compute capability, e.g. (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most shared memory of a block, with opt-in (`MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`).
    pub shared_block: usize,
}

impl Gpu {
    /// Most dynamic shared memory of a launch. Every function of a module is to be allowed it once
    /// (`cuFuncSetAttribute`).
    pub fn dynamic_shared(&self) -> usize {
        self.shared_block.saturating_sub(STATIC_SHARED)
    }
}

/// A C string of literals.
macro_rules! nul {
    ($($part:literal),*) => {
        match CStr::from_bytes_with_nul(concat!($($part,)* "\0").as_bytes()) {
            Ok(name) => name,
            Err(_) => panic!("a name without NUL"),
        }
    };
}

/// The functions of a module of coded weights; `Kernel::function` counts them.
macro_rules! functions {
    ($name:literal) => {
        const {
            &[
                nul!("bl_", $name, "_few8"),
                nul!("bl_", $name, "_few16"),
                nul!("bl_", $name, "_few32"),
                nul!("bl_", $name, "_gemm_row"),
                nul!("bl_", $name, "_gemm_group"),
                nul!("bl_", $name, "_gemm_level"),
            ]
        }
    };
}

/// A file of kernels: one source in `kernels/`, loaded when first needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// x into codes or floats.
    Prepare,
    /// Products of floats, for every layout.
    Float,
    /// 1-bit codes, and so on.
    W1,
    /// 2 bits.
    W2,
    /// 3 bits.
    W3,
    /// 4 bits.
    W4,
    /// 5 bits.
    W5,
    /// 6 bits.
    W6,
    /// 8 bits.
    W8,
    /// 4 bits through a table.
    T4,
    /// 1 bit, one scale a row, many rows of x, on capability 9.0 alone; and so on.
    Hopper1,
    /// 2 bits.
    Hopper2,
    /// 4 bits.
    Hopper4,
    /// 8 bits.
    Hopper8,
}

impl Module {
    /// All of them.
    pub const ALL: [Module; 14] = [
        Module::Prepare,
        Module::Float,
        Module::W1,
        Module::W2,
        Module::W3,
        Module::W4,
        Module::W5,
        Module::W6,
        Module::W8,
        Module::T4,
        Module::Hopper1,
        Module::Hopper2,
        Module::Hopper4,
        Module::Hopper8,
    ];

    /// The file's name without its ending.
    pub fn name(self) -> &'static str {
        match self {
            Module::Prepare => "prepare",
            Module::Float => "float",
            Module::W1 => "w1",
            Module::W2 => "w2",
            Module::W3 => "w3",
            Module::W4 => "w4",
            Module::W5 => "w5",
            Module::W6 => "w6",
            Module::W8 => "w8",
            Module::T4 => "t4",
            Module::Hopper1 => "hopper_w1",
            Module::Hopper2 => "hopper_w2",
            Module::Hopper4 => "hopper_w4",
            Module::Hopper8 => "hopper_w8",
        }
    }

    /// The functions of the file.
    pub fn functions(self) -> &'static [&'static CStr] {
        match self {
            Module::Prepare => &[c"bl_prepare"],
            Module::Float => &[c"bl_float_few", c"bl_float_many"],
            Module::W1 => functions!("w1"),
            Module::W2 => functions!("w2"),
            Module::W3 => functions!("w3"),
            Module::W4 => functions!("w4"),
            Module::W5 => functions!("w5"),
            Module::W6 => functions!("w6"),
            Module::W8 => functions!("w8"),
            Module::T4 => functions!("t4"),
            Module::Hopper1 => &[c"bl_w1_wgmma64", c"bl_w1_wgmma128", c"bl_w1_wgmma256"],
            Module::Hopper2 => &[c"bl_w2_wgmma64", c"bl_w2_wgmma128", c"bl_w2_wgmma256"],
            Module::Hopper4 => &[c"bl_w4_wgmma64", c"bl_w4_wgmma128", c"bl_w4_wgmma256"],
            Module::Hopper8 => &[c"bl_w8_wgmma64", c"bl_w8_wgmma128", c"bl_w8_wgmma256"],
        }
    }

    /// The module of a layer's products, beside `Prepare` and [`Module::hopper`].
    pub fn of(layout: &Layout, rule: Option<Rule>) -> Module {
        match (layout, rule) {
            (Layout::Coded(coded), Some(_)) => match (coded.bits, coded.values) {
                (_, Values::Table(_)) => Module::T4,
                (1, _) => Module::W1,
                (2, _) => Module::W2,
                (3, _) => Module::W3,
                (4, _) => Module::W4,
                (5, _) => Module::W5,
                (6, _) => Module::W6,
                _ => Module::W8,
            },
            _ => Module::Float,
        }
    }

    /// The module for many rows of x that a layer has on capability 9.0 alone.
    pub fn hopper(layout: &Layout, rule: Option<Rule>) -> Option<Module> {
        let one_scale = matches!(layout, Layout::Coded(Coded { scales: Scales::Row, bases: 1, .. }));
        match Module::of(layout, rule) {
            Module::W1 if one_scale => Some(Module::Hopper1),
            Module::W2 if one_scale => Some(Module::Hopper2),
            Module::W4 if one_scale => Some(Module::Hopper4),
            Module::W8 if one_scale => Some(Module::Hopper8),
            _ => None,
        }
    }
}
