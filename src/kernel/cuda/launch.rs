//! Which kernels run for a call, with what grid and what parameters: arithmetic only, no driver.
//!
//! ```text
//! rows of x --prepare--> codes, scales, sums (or f32) in the workspace --few | gemm | float--> y
//! ```
//! A call is a `prepare` launch for each run of layers that take x in the same form, and a product launch for
//! each run of those whose kernel and cut are the same. What runs depends on the weights, the number of rows
//! and the device, on nothing else, so that a captured graph holds for its number of rows. Nothing is
//! allocated; the workspace is one piece whose size [`workspace`] tells.

use std::ffi::{CStr, c_void};

use super::params::{self, Layer, Prepare, Product};
use super::weights::{Form, STRIP, unit_columns};
use crate::activation::{Rule, Segment, Span, Width};
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::layout::{Coded, Float, Layout, Offset, ScaleType, Scales, Values};
use crate::limits::{FEATURES_MAX, LAYERS_MAX};
use crate::matrix::Gather;
use crate::norm;

/// Parts of the workspace begin at multiples of so many bytes; so must the workspace itself.
pub const ALIGNMENT: usize = 256;
/// Rows of codes are padded to so many columns: whole units of every width.
const CODE_COLUMNS: usize = 256;
/// Shared memory that kernels declare themselves, at most: what dynamic shared memory leaves free.
pub const STATIC_SHARED: usize = 1024;
/// Warps of a block of the few-rows kernels and of the gemm kernels.
const WARPS: usize = 8;
/// Rows of W of a gemm block.
const GEMM_ROWS: usize = 128;
/// Batches of more rows may run on kernels that walk all of k in one warp.
const FEW_ROWS: usize = 64;
/// Rows of an image of codes of x: whole tiles of every kernel of warpgroups.
const IMAGE_ROWS: usize = 256;
/// Most blocks in y: the driver's limit. Kernels walk on in strides of the grid.
const GRID_Y: usize = 65_535;

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

/// Which kernels may be chosen for integer activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    /// Whatever is estimated to be fastest.
    #[default]
    Auto,
    /// Those for few rows of x.
    Few,
    /// Those of `mma.sync` for many rows.
    Warps,
    /// Those of `wgmma`, where there are some; else `Warps`.
    Warpgroups,
}

/// A norm in front of a layer, its parameters on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which.
    pub kind: norm::Kind,
    /// Added to the mean square.
    pub epsilon: f32,
    /// `in_features` f32, or 0.
    pub weight: u64,
    /// `in_features` f32, or 0.
    pub bias: u64,
}

/// A rotation in front of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Columns of a block.
    pub block: usize,
    /// The sign bit of each column (u32: 0 or 0x80000000), or 0.
    pub signs: u64,
}

/// A layer on a device: addresses are the device's, 16-byte aligned (the weights: [`ALIGNMENT`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placed {
    /// How the weights lie.
    pub form: Form,
    /// `form.bytes()` bytes.
    pub weights: u64,
    /// `out_features` f32, or 0.
    pub bias: u64,
    /// How x becomes integers; `None`: it is taken as floats. Unsigned rules need a form with sums.
    pub rule: Option<Rule>,
    /// Done to rows of x first.
    pub norm: Option<Norm>,
    /// Done to rows of x next.
    pub rotation: Option<Rotation>,
    /// `in_features` u32: the column of x at each packed column; or 0.
    pub permutation: u64,
    /// What the product is multiplied with.
    pub product_scale: Option<f32>,
}

/// One layer of a call and where its rows go.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The layer.
    pub layer: &'a Placed,
    /// Whether norm, rotation and permutation are the same values as those of the target before this one,
    /// so that both may share what `prepare` makes of x. Ignored for the first.
    pub same_front: bool,
    /// Columns of x: the layer's, or (one scale a row only) a prefix of them.
    pub columns: usize,
    /// Outputs that are computed: the first ones.
    pub outputs: usize,
    /// What is done to them.
    pub epilogue: Epilogue,
    /// The first row of y, aligned to its elements.
    pub y: u64,
    /// Its element type.
    pub y_type: Float,
    /// Bytes from row to row of y.
    pub y_stride: usize,
    /// Whether results are added to y.
    pub accumulate: bool,
}

/// Scales of x that stand in for those which the rule finds. 0 is a row of zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RowScales {
    /// None.
    #[default]
    Own,
    /// One for all rows, at this address.
    One(u64),
    /// One for each row, at this address.
    Each(u64),
}

/// The rows of x of a call.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Rows.
    pub m: usize,
    /// The first row, aligned to its elements.
    pub x: u64,
    /// Its element type; gathered rows are f32.
    pub x_type: Float,
    /// Bytes from row to row.
    pub x_stride: usize,
    /// Where rows lie in parts.
    pub gather: Option<Gather>,
    /// Scales that are known.
    pub scales: RowScales,
}

/// The parameters of a launch.
#[derive(Clone, Copy, Debug)]
pub enum Params<'a> {
    /// Of `prepare`.
    Prepare(&'a Prepare),
    /// Of a product.
    Product(&'a Product),
}

impl Params<'_> {
    /// The one kernel parameter: its address and its bytes.
    pub fn address(&self) -> (*const c_void, usize) {
        match self {
            Params::Prepare(p) => (std::ptr::from_ref(*p).cast(), size_of::<Prepare>()),
            Params::Product(p) => (std::ptr::from_ref(*p).cast(), size_of::<Product>()),
        }
    }
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Its module.
    pub module: Module,
    /// The kernel's name: one of the module's functions.
    pub function: &'static CStr,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block (x).
    pub block: u32,
    /// Bytes of dynamic shared memory: at most [`Gpu::dynamic_shared`].
    pub shared: u32,
    /// The parameters.
    pub params: Params<'a>,
}

/// Where everything of one run of layers lies in the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Space {
    codes: usize,
    scales: usize,
    sums: usize,
    floats: usize,
    stage: usize,
    bytes: usize,
    /// Bytes of a row of codes or floats.
    stride: usize,
    /// Rows of an image of codes; 0: rows of codes.
    image_rows: usize,
    /// Rows of scales and sums.
    pitch: usize,
    /// Blocks of `prepare`, and the bytes of shared memory that hold a row; 0: the workspace does.
    blocks: usize,
    shared: usize,
}

/// How a row of W or x is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    columns: usize,
    record: usize,
    record_padded: usize,
    records: usize,
    group: usize,
    record_groups: usize,
    groups: usize,
}

impl Target<'_> {
    /// The form of the columns that this call has.
    fn form(&self) -> Result<Form> {
        let form = &self.layer.form;
        if self.columns == form.in_features {
            return Ok(*form);
        }
        let row = matches!(form.layout, Layout::Coded(Coded { scales: Scales::Row, .. }));
        if !row || form.unsigned || self.columns > form.in_features {
            return Err(fail!(
                Unsupported,
                "{} of {} columns: a prefix needs weights with one scale a row and signed codes of x",
                self.columns,
                form.in_features
            ));
        }
        Form::new(&form.layout, form.out_features, self.columns, false)
    }

    /// How the weights are cut.
    fn weight_cut(&self) -> Result<Cut> {
        let form = self.form()?;
        Ok(Cut {
            columns: self.columns,
            record: form.record,
            record_padded: form.record_padded,
            records: form.records,
            group: form.group,
            record_groups: form.record_groups,
            groups: form.groups,
        })
    }

    /// How x is cut: as the weights are, but floats are not.
    fn cut(&self) -> Result<Cut> {
        let columns = self.columns;
        Ok(match self.layer.rule {
            Some(_) => self.weight_cut()?,
            None => Cut {
                columns,
                record: columns,
                record_padded: columns,
                records: 1,
                group: columns,
                record_groups: 1,
                groups: 1,
            },
        })
    }

    /// Whether this takes x in the form of the target before it.
    fn shares(&self, before: &Target<'_>, call: &Call<'_>) -> Result<bool> {
        let image = |target: &Target<'_>| -> Result<bool> { Ok(Kernel::choose(target, call)?.image) };
        if image(self)? != image(before)? {
            return Ok(false);
        }
        let (a, b) = (self.layer, before.layer);
        let front = |l: &Placed| (l.norm, l.rotation, l.permutation);
        let same = self.same_front || front(a) == front(b);
        Ok(same && a.rule == b.rule && self.cut()? == before.cut()?)
    }
}

impl Space {
    fn new(target: &Target<'_>, m: usize, gpu: &Gpu, image: bool) -> Result<Space> {
        let cut = target.cut()?;
        let mut at = 0usize;
        let mut fits = true;
        let mut take = |count: usize, bytes: usize| {
            let start = at;
            let end = count.checked_mul(bytes).and_then(|b| b.checked_next_multiple_of(ALIGNMENT));
            match end.and_then(|b| at.checked_add(b)).filter(|end| *end <= isize::MAX as usize) {
                Some(end) => at = end,
                None => fits = false,
            }
            start
        };
        let pitch = m.next_multiple_of(8);
        let mut space = Space { pitch, blocks: m, ..Space::default() };
        if target.layer.rule.is_some() {
            let padded = cut.records.saturating_mul(cut.record_padded).next_multiple_of(CODE_COLUMNS);
            if padded as u64 > FEATURES_MAX {
                return Err(fail!(
                    Unsupported,
                    "{} columns in groups of {} on a CUDA device",
                    cut.columns,
                    cut.record
                ));
            }
            // Room for an image wherever there may be one: which it is depends on the other layers of a call.
            let rows = match Module::hopper(&target.layer.form.layout, target.layer.rule) {
                Some(_) if gpu.capability == (9, 0) => m.next_multiple_of(IMAGE_ROWS),
                _ => m,
            };
            space.stride = padded;
            space.image_rows = if image { rows } else { 0 };
            space.codes = take(rows, padded);
            space.scales = take(pitch, 4 * cut.records);
            space.sums = take(pitch, 4 * cut.groups);
        } else {
            space.stride = (cut.columns * 4).next_multiple_of(16);
            space.floats = take(m, space.stride);
        }
        let row = (cut.columns * 4).next_multiple_of(16);
        if row <= gpu.dynamic_shared() {
            space.shared = row;
        } else {
            space.blocks = m.min(2 * gpu.multiprocessors.max(1) as usize);
            space.stage = take(space.blocks, row);
        }
        space.bytes = at;
        if !fits || m > u32::MAX as usize / 2 {
            return Err(fail!(OutOfMemory, "a workspace for {m} rows of {} columns", cut.columns));
        }
        Ok(space)
    }
}

/// Bytes of workspace of a call on `m` rows: what the layer that needs most needs alone.
pub fn workspace(targets: &[Target<'_>], m: usize, gpu: &Gpu) -> Result<usize> {
    let mut bytes = 0;
    for target in targets {
        bytes = bytes.max(Space::new(target, m, gpu, false)?.bytes);
    }
    Ok(bytes)
}

/// Tells `emit` the launches of a call, in order. `workspace` is the device address of at least
/// [`workspace`] bytes, a multiple of [`ALIGNMENT`].
pub fn plan(
    targets: &[Target<'_>],
    input: &Input,
    gpu: &Gpu,
    workspace: u64,
    emit: &mut dyn FnMut(&Launch<'_>) -> Result<()>,
) -> Result<()> {
    plan_of(targets, input, gpu, Family::Auto, workspace, emit)
}

/// The same with kernels of one family: for tests, and to compare them.
pub fn plan_of(
    targets: &[Target<'_>],
    input: &Input,
    gpu: &Gpu,
    family: Family,
    workspace: u64,
    emit: &mut dyn FnMut(&Launch<'_>) -> Result<()>,
) -> Result<()> {
    if input.m == 0 {
        return Ok(());
    }
    let outputs = targets.iter().map(|t| t.outputs).sum();
    let call = Call { m: input.m, outputs, gpu, family };
    let mut rest = targets;
    while let Some(first) = rest.first() {
        let mut count = 1;
        while count < rest.len() && rest[count].shares(&rest[count - 1], &call)? {
            count += 1;
        }
        let image = Kernel::choose(first, &call)?.image;
        let space = Space::new(first, input.m, gpu, image)?;
        prepare(first, input, &space, workspace, emit)?;
        let mut run = &rest[..count];
        while let Some(first) = run.first() {
            let mut kernel = Kernel::choose(first, &call)?;
            let mut same = 1;
            while same < run.len().min(LAYERS_MAX) {
                match kernel.join(&Kernel::choose(&run[same], &call)?) {
                    Some(both) => kernel = both,
                    None => break,
                }
                same += 1;
            }
            product(&kernel, &run[..same], input.m, &space, workspace, emit)?;
            run = &run[same..];
        }
        rest = &rest[count..];
    }
    Ok(())
}

fn float_type(float: Float) -> u32 {
    match float {
        Float::F32 => params::FLOAT_F32,
        Float::F16 => params::FLOAT_F16,
        Float::Bf16 => params::FLOAT_BF16,
    }
}

/// A number that is known to fit: counts are at most [`FEATURES_MAX`], and grids are checked.
fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn prepare(
    target: &Target<'_>,
    input: &Input,
    space: &Space,
    workspace: u64,
    emit: &mut dyn FnMut(&Launch<'_>) -> Result<()>,
) -> Result<()> {
    let (layer, cut) = (target.layer, target.cut()?);
    let at = |offset: usize| workspace + offset as u64;
    let mut p = Prepare {
        x: input.x,
        x_stride: input.x_stride as u64,
        permutation: layer.permutation,
        code_stride: space.stride as u64,
        pitch: space.pitch as u64,
        rows: narrow(input.m),
        columns: narrow(cut.columns),
        x_type: float_type(input.x_type),
        record: narrow(cut.record),
        record_padded: narrow(cut.record_padded),
        records: narrow(cut.records),
        group: narrow(cut.group),
        record_groups: narrow(cut.record_groups),
        ..Prepare::default()
    };
    if space.shared == 0 {
        p.stage = at(space.stage);
    }
    if let Some(gather) = input.gather {
        if gather.columns() != cut.columns || layer.permutation != 0 {
            return Err(fail!(Internal, "gathered rows of {} columns", gather.columns()));
        }
        p.head_stride = gather.head_stride as u64;
        p.heads = narrow(gather.heads);
        p.features = narrow(gather.features);
        p.run = narrow(gather.run);
    }
    if let Some(norm) = layer.norm {
        p.norm = norm.kind as u32;
        p.epsilon = norm.epsilon;
        p.norm_weight = norm.weight;
        p.norm_bias = norm.bias;
    }
    if let Some(rotation) = layer.rotation {
        p.rotation = narrow(rotation.block);
        p.rotation_scale = (1.0 / (rotation.block as f64).sqrt()) as f32;
        p.signs = rotation.signs;
    }
    match layer.rule {
        None => p.floats = at(space.floats),
        Some(Rule { span: Span::TwiceMean, segment: Segment::Record, .. }) => {
            return Err(fail!(Internal, "a mean range for each group"));
        }
        Some(rule) => {
            p.codes = at(space.codes);
            p.image_rows = narrow(space.image_rows);
            p.scales = at(space.scales);
            p.sums = at(space.sums);
            p.limit = rule.width.limit();
            p.code_bias = rule.width.bias();
            p.mean_range = (rule.span == Span::TwiceMean) as u32;
            p.by_row = (rule.segment == Segment::Row) as u32;
            p.two_level =
                matches!(layer.form.layout, Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }))
                    as u32;
            if let Some(scale) = rule.fixed_scale {
                (p.fixed, p.fixed_scale) = (1, scale);
            }
            match input.scales {
                RowScales::Own => {}
                RowScales::One(scales) => (p.fixed, p.scales_in) = (2, scales),
                RowScales::Each(scales) => (p.fixed, p.scales_in) = (3, scales),
            }
        }
    }
    emit(&Launch {
        module: Module::Prepare,
        function: c"bl_prepare",
        grid: [narrow(space.blocks), 1, 1],
        block: 256,
        shared: narrow(space.shared),
        params: Params::Prepare(&p),
    })
}

/// What all layers of a call have in common: what is chosen for one suits all, so that they share what is made of x.
#[derive(Clone, Copy)]
struct Call<'a> {
    m: usize,
    /// Of all layers together.
    outputs: usize,
    gpu: &'a Gpu,
    family: Family,
}

/// A kernel for a product, and all that its grid depends on beside the outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kernel {
    module: Module,
    /// Index into the module's functions.
    function: usize,
    /// Rows of W of a block, rows of x of a block.
    tile: (usize, usize),
    threads: usize,
    shared: usize,
    /// Records that a block keeps sums of at a time, and the bytes that each of them takes.
    chunk: usize,
    record: usize,
    /// Stages of copies.
    stages: usize,
    /// Units of a row, as far as x goes.
    units: usize,
    /// Whether it takes codes of x as images.
    image: bool,
    cut: Cut,
}

impl Kernel {
    fn choose(target: &Target<'_>, call: &Call<'_>) -> Result<Kernel> {
        let Call { m, outputs, gpu, family } = *call;
        let (form, cut) = (target.form()?, target.weight_cut()?);
        let module = Module::of(&form.layout, target.layer.rule);
        let kernel = Kernel {
            module,
            function: 0,
            tile: (STRIP, 0),
            threads: WARPS * 32,
            shared: 0,
            chunk: cut.records,
            record: 0,
            stages: 0,
            units: form.units,
            image: false,
            cut,
        };
        let coded = match (&form.layout, target.layer.rule) {
            (Layout::Coded(coded), Some(rule)) => {
                if (rule.width == Width::Uint8) != form.unsigned {
                    return Err(fail!(
                        Internal,
                        "weights on a device without the sums that their rule needs"
                    ));
                }
                coded
            }
            _ => {
                // A tile of weights and one of x, which has a column more (`kernels/float.cu`).
                let shared = |rows: usize, columns: usize, depth: usize| 4 * depth * (rows + columns + 1);
                return Ok(match m {
                    ..=16 => {
                        Kernel { tile: (STRIP, 8), threads: 128, shared: shared(STRIP, 8, 64), ..kernel }
                    }
                    _ => Kernel { function: 1, tile: (64, 64), shared: shared(64, 64, 32), ..kernel },
                });
            }
        };
        let few = kernel.few(coded, &form, m, gpu);
        if family == Family::Few || family == Family::Auto && m <= FEW_ROWS {
            return few;
        }
        let mut candidates = [None; 5];
        if family != Family::Warps && gpu.capability == (9, 0) {
            for (i, candidate) in candidates.iter_mut().take(3).enumerate() {
                *candidate = kernel.wgmma(coded, &form, m, gpu, target.layer.rule, i);
            }
        }
        if family != Family::Warpgroups || candidates[0].is_none() {
            candidates[3] = kernel.gemm(coded, &form, gpu);
        }
        if family == Family::Auto {
            candidates[4] = few.ok();
        }
        let cost = |kernel: &Kernel| kernel.cost(outputs, m, gpu);
        let best = candidates.into_iter().flatten().min_by(|a, b| cost(a).total_cmp(&cost(b)));
        best.map_or_else(|| kernel.few(coded, &form, m, gpu), Ok)
    }

    /// One launch for both: kernels that differ at most in what a record takes (minima).
    fn join(&self, other: &Kernel) -> Option<Kernel> {
        let (chunk, record) = (self.chunk.min(other.chunk), self.record.max(other.record));
        let shared = self.shared - self.chunk * self.record + chunk * record;
        let both = Kernel { chunk, record, shared, ..*self };
        (both == Kernel { chunk, record, shared, ..*other }).then_some(both)
    }

    /// Cycles for 32 columns, estimated: `mma.sync` of m16n8k32 takes 2 of a multiprocessor, `wgmma` does as much in
    /// 1.25; the kernels for few rows wait for shared memory as long again, smaller tiles of warpgroups a little.
    /// Blocks of the others come in waves.
    fn cost(&self, outputs: usize, m: usize, gpu: &Gpu) -> f64 {
        let multiprocessors = gpu.multiprocessors.max(1) as usize;
        let (rows, columns) = self.tile;
        let blocks = outputs.div_ceil(rows) * m.div_ceil(columns);
        let products = (rows / 16 * columns / 8) as f64;
        let waves = blocks.div_ceil(multiprocessors) as f64;
        match (self.image, columns) {
            (true, 64) => waves * products * 1.25 * 1.25,
            (true, 128) => waves * products * 1.25 * 1.1,
            (true, _) => waves * products * 1.25,
            _ if self.stages > 0 => waves * products * 2.0,
            _ => blocks as f64 / multiprocessors as f64 * products * 4.0,
        }
    }

    /// The kernel of warpgroups. None where there is none for these weights, or its stages do not fit.
    fn wgmma(
        self,
        coded: &Coded,
        form: &Form,
        m: usize,
        gpu: &Gpu,
        rule: Option<Rule>,
        function: usize,
    ) -> Option<Kernel> {
        let module = Module::hopper(&form.layout, rule)?;
        let columns = 64 << function;
        if form.record_groups > 1 || m.div_ceil(columns) > GRID_Y {
            return None;
        }
        let depth = unit_columns(coded.bits).max(128);
        let stage = columns * depth + GEMM_ROWS * depth * coded.bits as usize / 8;
        // Tiles of wgmma begin at multiples of 1024 bytes; results go out through 40 KB of the stages.
        let stages = [4, 3, 2].into_iter().find(|n| 1024 + n * stage <= gpu.dynamic_shared())?;
        Some(Kernel {
            module,
            function,
            tile: (GEMM_ROWS, columns),
            threads: 256,
            shared: 1024 + (stages * stage).max(40 << 10),
            stages,
            image: true,
            ..self
        })
    }

    /// The tensor-core kernel whose warps walk all of k. None where its sums do not fit an int32, or its
    /// stages not the shared memory.
    fn gemm(self, coded: &Coded, form: &Form, gpu: &Gpu) -> Option<Kernel> {
        let two_level = matches!(coded.scales, Scales::TwoLevel { .. });
        if !two_level && form.record_groups > 1 {
            return None;
        }
        let (function, columns) = match coded.scales {
            Scales::Row if coded.bases == 1 => (3, 128),
            Scales::Row | Scales::Group { .. } => (4, 64),
            Scales::TwoLevel { .. } => (5, 64),
        };
        let depth = unit_columns(coded.bits).max(128);
        let stage = columns * depth + GEMM_ROWS * depth * coded.bits as usize / 8;
        let stages = [3, 2].into_iter().find(|n| n * stage <= gpu.dynamic_shared())?;
        Some(Kernel { function, tile: (GEMM_ROWS, columns), shared: stages * stage, stages, ..self })
    }

    /// The tensor-core kernel for few rows: the warps of a block share a strip's columns.
    fn few(self, coded: &Coded, form: &Form, m: usize, gpu: &Gpu) -> Result<Kernel> {
        let ring = WARPS * ring(form) * form.unit_bytes;
        let minimum = matches!(
            coded.scales,
            Scales::Group { offset: Offset::Minimum, .. } | Scales::TwoLevel { minimum: true, .. }
        );
        let records = self.cut.records;
        let largest = if m <= 8 {
            0
        } else if m <= 16 {
            1
        } else {
            2
        };
        for function in (0..=largest).rev() {
            let columns = 8usize << function;
            // What a record takes: the sums of its groups, its scale, and its minimum's factors.
            let outputs = STRIP * m.next_power_of_two().min(columns);
            let record = outputs * 4 * (form.record_groups + 1 + 2 * minimum as usize);
            let room = |shared: usize| shared.saturating_sub(ring) / record;
            let all = gpu.dynamic_shared();
            // Half of the shared memory, so that two blocks are there at a time, unless that keeps warps idle.
            let half = room((all / 2).max(all.min(48 << 10)));
            let enough = (WARPS * form.unit).div_ceil(self.cut.record_padded);
            let chunk = if half >= records.min(enough) { half } else { room(all) }.min(records);
            if chunk == 0 {
                continue;
            }
            // Whole units where that is possible: a unit of two chunks is read twice.
            let whole = form.unit / gcd(form.unit, self.cut.record_padded);
            let chunk = if chunk < records && chunk >= whole { chunk - chunk % whole } else { chunk };
            let shared = ring + chunk * record;
            return Ok(Kernel { function, tile: (STRIP, columns), shared, chunk, record, ..self });
        }
        Err(fail!(Unsupported, "{} columns in one group on a CUDA device", self.cut.record))
    }
}

/// Units that a warp of the few-rows kernels has under way: 4 KB of them, at least two. `kernels/few.cuh`
/// has the same formula.
fn ring(form: &Form) -> usize {
    (4096 / form.unit_bytes).max(2)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn product(
    kernel: &Kernel,
    targets: &[Target<'_>],
    m: usize,
    space: &Space,
    workspace: u64,
    emit: &mut dyn FnMut(&Launch<'_>) -> Result<()>,
) -> Result<()> {
    let at = |offset: usize| workspace + offset as u64;
    let float = kernel.module == Module::Float;
    let cut = &kernel.cut;
    let tiles = m.div_ceil(kernel.tile.1);
    let mut p = Product {
        x: at(if float { space.floats } else { space.codes }),
        x_stride: if kernel.image { space.image_rows * 128 } else { space.stride } as u64,
        scales: at(space.scales),
        sums: at(space.sums),
        pitch: space.pitch as u64,
        m: narrow(m),
        columns: narrow(cut.columns),
        record: narrow(cut.record),
        record_padded: narrow(cut.record_padded),
        records: narrow(cut.records),
        group: narrow(cut.group),
        record_groups: narrow(cut.record_groups),
        groups: narrow(cut.groups),
        units: narrow(kernel.units),
        code_bias: targets[0].layer.rule.map_or(0, |rule| rule.width.bias()),
        chunk: narrow(kernel.chunk),
        stages: narrow(kernel.stages),
        count: narrow(targets.len()),
        tiles: narrow(tiles),
        ..Product::default()
    };
    let mut blocks = 0;
    for (target, layer) in targets.iter().zip(&mut p.layers) {
        *layer = describe(target, blocks);
        blocks += target.outputs.div_ceil(kernel.tile.0);
    }
    if blocks > i32::MAX as usize {
        return Err(fail!(Unsupported, "{blocks} blocks of outputs in one call"));
    }
    emit(&Launch {
        module: kernel.module,
        function: kernel.module.functions()[kernel.function],
        grid: [narrow(blocks), narrow(tiles.min(GRID_Y)), 1],
        block: narrow(kernel.threads),
        shared: narrow(kernel.shared),
        params: Params::Product(&p),
    })
}

fn describe(target: &Target<'_>, first_block: usize) -> Layer {
    let (placed, form) = (target.layer, &target.layer.form);
    let mut layer = Layer {
        weights: placed.weights,
        strip_bytes: form.strip_bytes as u64,
        base_bytes: (form.units * form.unit_bytes) as u64,
        heads: form.heads as u64,
        sums: if form.unsigned { form.sums as u64 } else { 0 },
        bias: placed.bias,
        y: target.y,
        y_stride: target.y_stride as u64,
        outputs: narrow(target.outputs),
        first_block: narrow(first_block),
        head_bytes: narrow(form.head_bytes),
        factor: 1,
        bases: 1,
        scaled: placed.product_scale.is_some() as u32,
        product_scale: placed.product_scale.unwrap_or(1.0),
        epilogue: target.epilogue.number(),
        threshold: if let Epilogue::Relu { threshold } = target.epilogue { threshold } else { 0.0 },
        y_type: float_type(target.y_type),
        accumulate: target.accumulate as u32,
        ..Layer::default()
    };
    let coded = match &form.layout {
        Layout::Dense(float) => {
            layer.values = float_type(*float);
            return layer;
        }
        Layout::Coded(coded) => coded,
    };
    layer.bits = coded.bits as u32;
    layer.bases = coded.bases as u32;
    layer.scheme = match coded.scales {
        Scales::Row => params::SCHEME_ROW,
        Scales::Group { offset: Offset::None, .. } => params::SCHEME_GROUP,
        Scales::Group { offset: Offset::Minimum, .. } => params::SCHEME_GROUP_MINIMUM,
        Scales::Group { offset: Offset::Zero, .. } => params::SCHEME_GROUP_ZERO,
        Scales::TwoLevel { minimum: false, .. } => params::SCHEME_LEVEL,
        Scales::TwoLevel { minimum: true, .. } => params::SCHEME_LEVEL_MINIMUM,
    };
    layer.scale_type = match (coded.scales, coded.scale_type) {
        (Scales::Row, _) | (_, ScaleType::F32) => params::SCALE_F32,
        (_, ScaleType::F16) => params::SCALE_F16,
        (_, ScaleType::Bf16) => params::SCALE_BF16,
        (_, ScaleType::E8m0) => params::SCALE_E8M0,
    };
    match coded.values {
        // Codes of 8 bits are stored less 128.
        Values::Offset(zero) => {
            layer.correction = if coded.bits == 8 { 128 } else { 0 } - zero as i32;
        }
        Values::Sign => (layer.factor, layer.correction) = (2, -1),
        Values::Table(table) => {
            layer.values = 1;
            for (word, bytes) in layer.table.iter_mut().zip(table.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(bytes.map(|b| b as u8));
            }
        }
    }
    layer
}
