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

use super::choice::{Call, GRID_Y, Kernel};
use super::params::{self, Layer, Prepare, Product};
use super::space::Space;
use super::weights::Form;
use crate::activation::{Rule, Segment, Span};
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::layout::{Coded, Float, Layout, Offset, ScaleType, Scales, Values};
use crate::limits::LAYERS_MAX;
use crate::matrix::Gather;
use crate::norm;

pub use super::choice::Family;
pub use super::module::{Gpu, Module};
pub use super::space::{ALIGNMENT, workspace};

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

impl Target<'_> {
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
