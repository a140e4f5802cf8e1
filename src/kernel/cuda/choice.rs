//! Which kernel a product runs on: those for few rows of x, those of `mma.sync` and of `wgmma` for many, by an
//! estimate of cycles; and the shared memory that they take.

use super::launch::Target;
use super::module::{Gpu, Module};
use super::space::Cut;
use super::weights::{Form, STRIP, unit_columns};
use crate::activation::{Rule, Width};
use crate::error::{Result, fail};
use crate::layout::{Coded, Layout, Offset, Scales};

/// Warps of a block of the few-rows kernels and of the gemm kernels.
const WARPS: usize = 8;

/// Rows of W of a gemm block.
const GEMM_ROWS: usize = 128;

/// Batches of more rows may run on kernels that walk all of k in one warp.
const FEW_ROWS: usize = 64;

/// Most blocks in y: the driver's limit. Kernels walk on in strides of the grid.
pub(super) const GRID_Y: usize = 65_535;

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

/// What all layers of a call have in common: what is chosen for one suits all, so that they share what is made of x.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) m: usize,
    /// Of all layers together.
    pub(super) outputs: usize,
    pub(super) gpu: &'a Gpu,
    pub(super) family: Family,
}

/// A kernel for a product, and all that its grid depends on beside the outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kernel {
    pub(super) module: Module,
    /// Index into the module's functions.
    pub(super) function: usize,
    /// Rows of W of a block, rows of x of a block.
    pub(super) tile: (usize, usize),
    pub(super) threads: usize,
    pub(super) shared: usize,
    /// Records that a block keeps sums of at a time, and the bytes that each of them takes.
    pub(super) chunk: usize,
    pub(super) record: usize,
    /// Stages of copies.
    pub(super) stages: usize,
    /// Units of a row, as far as x goes.
    pub(super) units: usize,
    /// Whether it takes codes of x as images.
    pub(super) image: bool,
    pub(super) cut: Cut,
}

impl Kernel {
    pub(super) fn choose(target: &Target<'_>, call: &Call<'_>) -> Result<Kernel> {
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
    pub(super) fn join(&self, other: &Kernel) -> Option<Kernel> {
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
