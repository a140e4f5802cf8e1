//! A matrix of floats to codes and scales by any method: the fixed rules, a search for scales, and
//! rounding by calibration. Panels of sixteen rows are independent, so that threads share them.

use std::sync::Mutex;

use super::compensate::{Coder, Levels, Panel, Scratch, refines};
use super::fit::Fit;
use super::moments::{Factor, Moments};
use super::search::{LANES, Lane};
use super::{Rule, check_finite, rule_of};
use crate::codec;
use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::exec::Executor;
use crate::layout::{Coded, Layout, Matrix, Row, ScaleType, Scales, Values};
use crate::memory::{filled, reserve};
use crate::types::Type;

/// Rows that are rounded together.
pub const PANEL_ROWS: usize = LANES;
/// [`Method::damping`] where nobody says: least error of MiniLM on sentences that calibration did not see
/// (docs/quantize.md).
pub const DAMPING: f32 = 0.03;
/// Most bases that a search or calibration handles: `3^4` levels.
const SEARCHED_BASES_MAX: usize = 4;
/// Times that the one scale of a tensor and the codes under it are refitted to one another.
const PASSES: usize = 12;

/// Which fixed rule rounds, where a type has several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The type's own: ternary by BitNet's absmean, int8 by the largest of the row, ...
    #[default]
    Usual,
    /// Ternary: `max |w| + 1e-6` of the tensor, halves away from zero: what cortex' code does.
    Absmax,
    /// Ternary: `mean |w|` of the tensor, 0 below it: burn_dragon.
    Threshold,
    /// Int8: `2 mean |w| / 127` of the tensor, larger weights are cut: burn_dragon.
    MeanRange,
    /// Signs: `mean |w|` of the tensor instead of the row: burn_dragon.
    Tensor,
}

/// How a matrix is rounded.
#[derive(Clone, Copy)]
pub struct Method<'a> {
    /// To which type.
    pub target: Type,
    /// Columns of a group, where the type leaves them open; 0: its default.
    pub group: usize,
    /// Ternary: code matrices that are summed; 0 and 1: one.
    pub bases: usize,
    /// Which fixed rule.
    pub kind: Kind,
    /// Scales of least square error instead of the rule's. K-quants always have them.
    pub search: bool,
    /// What is known of the input: errors count by what they do to the output.
    pub moments: Option<&'a Moments>,
    /// Each column's error is made up for by those after it. Needs moments in blocks.
    pub compensate: bool,
    /// Part of the mean of the moments' diagonal that is added to it.
    pub damping: f32,
}

impl<'a> Method<'a> {
    /// The fixed rule of a type.
    pub fn plain(target: Type) -> Method<'a> {
        Method {
            target,
            group: 0,
            bases: 1,
            kind: Kind::Usual,
            search: false,
            moments: None,
            compensate: false,
            damping: DAMPING,
        }
    }
}

enum How<'a> {
    Rule(Box<dyn Rule + 'a>),
    Fit { fit: Fit, importance: Vec<f32>, factor: Option<Factor>, moments: Option<&'a Moments> },
    Levels { levels: Levels, importance: Vec<f32>, factor: Option<Factor> },
}

/// A matrix that is rounded panel by panel.
pub struct Rounding<'a> {
    isa: Isa,
    source: &'a dyn Matrix,
    target: Type,
    layout: Layout,
    how: How<'a>,
    resting: Mutex<Vec<Room>>,
}

/// What rounding a panel needs.
struct Room {
    source: Row<'static>,
    bytes: Vec<u8>,
    weights: Vec<Lane>,
    scratch: Option<Scratch>,
    rows: Vec<Row<'static>>,
}

impl<'a> Rounding<'a> {
    /// Checks the method and finds what the whole matrix has in common: the scales of a tensor.
    pub fn new(
        isa: Isa,
        executor: &Executor,
        source: &'a dyn Matrix,
        method: &Method<'a>,
    ) -> Result<Rounding<'a>> {
        let (target, columns) = (method.target, source.in_features());
        let within = |e: crate::error::Error| e.within(format_args!("rounding to {}", target.name()));
        let calibrated = method.moments.is_some();
        if let Some(moments) = method.moments
            && moments.columns() != columns
        {
            return Err(fail!(
                InvalidArgument,
                "calibration of {} columns for weights of {columns}",
                moments.columns()
            ));
        }
        if method.compensate && method.moments.is_none_or(|m| m.block() == 1 && columns > 1) {
            return Err(fail!(
                InvalidArgument,
                "making up for errors needs calibration with products of columns, not the diagonal alone"
            ));
        }
        if !(method.damping >= 0.0 && method.damping.is_finite()) {
            return Err(fail!(InvalidArgument, "a damping of {}", method.damping));
        }
        let rounds = |layout: Layout, how: How<'a>| Rounding {
            isa,
            source,
            target,
            layout,
            how,
            resting: Mutex::default(),
        };
        let searched = method.search || calibrated;
        if !searched && !matches!(target, Type::Q2K | Type::Q3K | Type::Q4K | Type::Q5K | Type::Q6K) {
            let rule = rule_of(source, method).map_err(within)?;
            return Ok(rounds(rule.layout(), How::Rule(rule)));
        }
        if method.kind != Kind::Usual {
            return Err(fail!(
                InvalidArgument,
                "the rule {:?} is a fixed one: it needs BL_QUANTIZE_FIXED, no search",
                method.kind
            ));
        }
        let mut importance = filled(columns, 1.0f32, "importance of columns")?;
        if let Some(moments) = method.moments {
            // In units of the mean, so that sums keep their size; a column that was always 0 still
            // counts a little.
            let diagonal = |k: usize| moments.diagonal(k) as f64;
            let mean = (0..columns).map(diagonal).sum::<f64>() / columns as f64;
            for (k, weight) in importance.iter_mut().enumerate() {
                *weight = if mean > 0.0 { (diagonal(k) / mean) as f32 + 1e-3 } else { 1.0 };
            }
        }
        let factor = match method.moments.filter(|_| method.compensate) {
            Some(moments) => Some(Factor::new(isa, moments, method.damping)?),
            None => None,
        };
        if let Some(bases) = tensor_bases(method)? {
            let mut fixed = rounds(
                Layout::Coded(Coded {
                    bits: 2,
                    values: Values::Offset(1),
                    scales: Scales::Row,
                    scale_type: ScaleType::F32,
                    bases: bases as u8,
                }),
                How::Levels { levels: Levels::new(&[0.0])?, importance, factor },
            );
            fixed.find_tensor_scales(executor, bases).map_err(within)?;
            return Ok(fixed);
        }
        let layout = searched_layout(target, columns, method.group).map_err(within)?;
        let fit = Fit::new(isa, layout, columns).map_err(within)?;
        Ok(rounds(layout, How::Fit { fit, importance, factor, moments: method.moments }))
    }

    /// What rows become.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Rows.
    pub fn out_features(&self) -> usize {
        self.source.out_features()
    }

    /// Columns.
    pub fn in_features(&self) -> usize {
        self.source.in_features()
    }

    /// The scales that all rows have in common, one for each base; none where rows have their own.
    pub fn tensor_scales(&self) -> Option<&[f32]> {
        match &self.how {
            How::Levels { levels, .. } => Some(&levels.scales),
            How::Rule(rule) => rule.tensor_scales(),
            How::Fit { .. } => None,
        }
    }

    /// Rounds the rows from `first` on, at most [`PANEL_ROWS`], and hands each to `take`.
    pub fn panel(
        &self,
        first: usize,
        count: usize,
        take: &mut dyn FnMut(usize, &Row) -> Result<()>,
    ) -> Result<()> {
        let mut room = self.room()?;
        self.round(first, count, &mut room)?;
        for (n, row) in room.rows[..count].iter().enumerate() {
            take(first + n, row)?;
        }
        self.give_back(room);
        Ok(())
    }

    fn room(&self) -> Result<Room> {
        let resting = self.resting.lock().unwrap_or_else(|e| e.into_inner()).pop();
        if let Some(room) = resting {
            return Ok(room);
        }
        let columns = self.in_features();
        let mut rows = Vec::new();
        reserve(&mut rows, PANEL_ROWS, "rounded rows")?;
        for _ in 0..PANEL_ROWS {
            rows.push(Row::new(self.layout, columns)?);
        }
        let (bytes, panel) = match &self.how {
            How::Rule(rule) => (rule.bytes(), 0),
            _ => (0, columns),
        };
        Ok(Room {
            source: Row::new(self.source.layout(), columns)?,
            bytes: filled(bytes, 0, "a packed row")?,
            weights: filled(panel, [0.0; LANES], "a panel of weights")?,
            scratch: if panel > 0 { Some(Scratch::new(columns)?) } else { None },
            rows,
        })
    }

    fn give_back(&self, room: Room) {
        let mut resting = self.resting.lock().unwrap_or_else(|e| e.into_inner());
        if resting.try_reserve(1).is_ok() {
            resting.push(room);
        }
    }

    /// Reads weights into the lanes; checked.
    fn load(&self, first: usize, count: usize, room: &mut Room) -> Result<()> {
        for lane in 0..LANES {
            if lane >= count {
                room.weights.iter_mut().for_each(|w| w[lane] = 0.0);
                continue;
            }
            self.source.read_row(first + lane, &mut room.source)?;
            check_finite(first + lane, &room.source.floats, self.target)?;
            for (w, v) in room.weights.iter_mut().zip(&room.source.floats) {
                w[lane] = *v;
            }
        }
        Ok(())
    }

    fn round(&self, first: usize, count: usize, room: &mut Room) -> Result<()> {
        if let How::Rule(rule) = &self.how {
            for n in 0..count {
                self.source.read_row(first + n, &mut room.source)?;
                let weights = &room.source.floats;
                if !rule.takes_all() {
                    check_finite(first + n, weights, self.target)?;
                }
                rule.round_at(first + n, weights, &mut room.bytes, &mut room.rows[n])
                    .map_err(|e| e.within(format_args!("row {}", first + n)))?;
            }
            return Ok(());
        }
        self.load(first, count, room)?;
        let Room { weights, scratch: Some(scratch), rows, .. } = room else {
            return Err(fail!(Internal, "a panel without room"));
        };
        let rows = &mut rows[..count];
        match &self.how {
            How::Fit { fit, importance, factor, moments } => {
                let panel =
                    Panel { isa: self.isa, coder: Coder::Fit(fit), importance, factor: factor.as_ref() };
                panel.round(weights, rows, scratch)?;
                if let Some(moments) = moments.filter(|m| m.block() > 1 && refines(&fit.coded().scales)) {
                    panel.refine(fit, moments, rows, scratch);
                }
            }
            How::Levels { levels, importance, factor } => {
                let coder = Coder::Levels(levels);
                let panel = Panel { isa: self.isa, coder, importance, factor: factor.as_ref() };
                panel.round(weights, rows, scratch)?;
            }
            How::Rule(_) => {}
        }
        Ok(())
    }

    /// Scales of a ternary tensor: of least weighted square error under the nearest codes. (Scales of least
    /// output error under the codes that calibration gives are smaller, and with them whole models do worse.)
    fn find_tensor_scales(&mut self, executor: &Executor, bases: usize) -> Result<()> {
        let mut scales = self.residual_means(bases)?;
        for _ in 0..PASSES {
            let refitted = self.refit(executor, &scales)?;
            let moved = refitted.iter().zip(&scales).any(|(a, b)| (a - b).abs() > 1e-4 * b.abs());
            scales = refitted;
            if !moved {
                break;
            }
        }
        if let How::Levels { levels, .. } = &mut self.how {
            *levels = Levels::new(&scales)?;
        }
        Ok(())
    }

    /// Where the search for scales begins: each base the mean magnitude of what the ones before leave.
    fn residual_means(&self, bases: usize) -> Result<Vec<f32>> {
        super::ternary::residual_scales(self.source, bases, super::ternary::SCALE_MIN)
    }

    /// Codes under `scales`, and the scales of least error under these codes.
    fn refit(&mut self, executor: &Executor, scales: &[f32]) -> Result<Vec<f32>> {
        let bases = scales.len();
        if let How::Levels { levels, .. } = &mut self.how {
            *levels = Levels::new(scales)?;
        }
        let mut system = self.system(executor, bases)?;
        let mut refitted = filled(bases, 0.0f32, "scales")?;
        solve(&mut system, bases, &mut refitted);
        // A system without a solution (codes that are all 0) keeps what there was.
        for (new, old) in refitted.iter_mut().zip(scales) {
            if !new.is_finite() || *new <= 0.0 {
                *new = *old;
            }
        }
        Ok(refitted)
    }

    /// Normal equations under the levels: products of the bases' codes with one another and with the weights.
    fn system(&self, executor: &Executor, bases: usize) -> Result<Vec<f64>> {
        let How::Levels { levels, importance, .. } = &self.how else {
            return Err(fail!(Internal, "scales of a tensor without levels"));
        };
        let (rows, columns) = (self.out_features(), self.in_features());
        let pieces = rows.div_ceil(PANEL_ROWS);
        // Each piece has sums of its own, which are added in order: the same for any number of threads.
        let size = bases * (bases + 1);
        let mut parts = filled(pieces * size, 0.0f64, "sums of scales")?;
        let mut places = Vec::new();
        reserve(&mut places, pieces, "sums of scales")?;
        places.extend(parts.chunks_mut(size).map(Mutex::new));
        executor.run(pieces, &|_, piece| {
            let first = piece * PANEL_ROWS;
            let count = PANEL_ROWS.min(rows - first);
            let mut room = self.room()?;
            self.load(first, count, &mut room)?;
            let Room { weights, scratch: Some(scratch), rows, .. } = &mut room else {
                return Err(fail!(Internal, "a panel without room"));
            };
            let panel = Panel { isa: self.isa, coder: Coder::Levels(levels), importance, factor: None };
            panel.round(weights, &mut rows[..count], scratch)?;
            let mut own = [0.0f64; SEARCHED_BASES_MAX * (SEARCHED_BASES_MAX + 1)];
            let value = |row: &Row, base: usize, k: usize| row.codes[base * columns + k] as f32 - 1.0;
            for (lane, row) in rows[..count].iter().enumerate() {
                for a in 0..bases {
                    for k in 0..columns {
                        let va = value(row, a, k);
                        if va == 0.0 {
                            continue;
                        }
                        let w = (importance[k] * va) as f64;
                        for b in 0..bases {
                            own[a * (bases + 1) + b] += w * value(row, b, k) as f64;
                        }
                        own[a * (bases + 1) + bases] += w * weights[k][lane] as f64;
                    }
                }
            }
            places[piece].lock().unwrap_or_else(|e| e.into_inner()).copy_from_slice(&own[..size]);
            self.give_back(room);
            Ok(())
        })?;
        drop(places);
        let mut sums = filled(size, 0.0f64, "sums of scales")?;
        for part in parts.chunks(size) {
            sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        Ok(sums)
    }
}

/// Solves the rows `[a_0 .. a_n | b]` by elimination; NaN where there is no solution.
fn solve(system: &mut [f64], n: usize, out: &mut [f32]) {
    let width = n + 1;
    for pivot in 0..n {
        let best = (pivot..n)
            .max_by(|&a, &b| system[a * width + pivot].abs().total_cmp(&system[b * width + pivot].abs()));
        for j in 0..width {
            system.swap(pivot * width + j, best.unwrap_or(pivot) * width + j);
        }
        for i in 0..n {
            if i != pivot {
                let factor = system[i * width + pivot] / system[pivot * width + pivot];
                for j in pivot..width {
                    system[i * width + j] -= factor * system[pivot * width + j];
                }
            }
        }
    }
    for (i, out) in out.iter_mut().enumerate() {
        *out = (system[i * width + n] / system[i * width + i]) as f32;
    }
}

/// How many bases of one scale each the target has, if its scales are the whole tensor's.
fn tensor_bases(method: &Method<'_>) -> Result<Option<usize>> {
    let bases = method.bases.max(1);
    let tensor = matches!(method.target, Type::Ternary | Type::BitnetHf | Type::I2S | Type::Ternary2);
    if bases > 1 && method.target != Type::Ternary {
        return Err(fail!(
            InvalidArgument,
            "{bases} bases of {}: only ternary has more than 1",
            method.target.name()
        ));
    }
    if bases > SEARCHED_BASES_MAX {
        return Err(fail!(
            Unsupported,
            "scales of {bases} bases are found for at most {SEARCHED_BASES_MAX}; without search there may be {}",
            codec::cortex::BASES_MAX
        ));
    }
    if method.target == Type::Ternary && method.group != 0 {
        if bases > 1 {
            return Err(fail!(
                InvalidArgument,
                "{bases} bases in groups of {}: ternary has one or the other",
                method.group
            ));
        }
        return Ok(None);
    }
    Ok(tensor.then_some(bases))
}

/// The layout of a target whose scales are searched for.
fn searched_layout(target: Type, columns: usize, group: usize) -> Result<Layout> {
    match target {
        Type::Int4 => Ok(super::int4::layout(columns, group)),
        Type::Ternary => Ok(super::ternary::group_layout(columns, group)),
        Type::Int8 => Ok(Layout::rows(8, Values::Offset(128))),
        Type::Binary => Ok(Layout::rows(1, Values::Sign)),
        Type::F32 | Type::F16 | Type::Bf16 => {
            Err(fail!(InvalidArgument, "{} has no scales to search for", target.name()))
        }
        Type::Iq1S => Err(fail!(Unsupported, "iq1_s cannot be written")),
        _ => {
            if group != 0 {
                return Err(fail!(InvalidArgument, "group_size {group}: the groups are fixed"));
            }
            let codec = codec::find(target)?;
            codec.layout(columns).map_err(|e| fail!(Unsupported, "{}", e.text()))
        }
    }
}

/// A rounded matrix, all of it: a byte for each code.
pub struct Rounded {
    layout: Layout,
    columns: usize,
    rows: Vec<Row<'static>>,
}

impl Rounded {
    /// Rounds all rows.
    pub fn all(rounding: &Rounding<'_>, executor: &Executor) -> Result<Rounded> {
        let (count, columns, layout) = (rounding.out_features(), rounding.in_features(), rounding.layout());
        let mut rows = Vec::new();
        reserve(&mut rows, count, "rounded rows")?;
        for _ in 0..count {
            rows.push(Row::new(layout, columns)?);
        }
        let mut panels = Vec::new();
        reserve(&mut panels, count.div_ceil(PANEL_ROWS), "panels")?;
        panels.extend(rows.chunks_mut(PANEL_ROWS).map(Mutex::new));
        executor.run(panels.len(), &|_, piece| {
            let mut panel = panels[piece].lock().unwrap_or_else(|e| e.into_inner());
            let (first, count) = (piece * PANEL_ROWS, panel.len());
            rounding.panel(first, count, &mut |index, row| {
                panel[index - first].copy_from(row);
                Ok(())
            })
        })?;
        drop(panels);
        Ok(Rounded { layout, columns, rows })
    }
}

impl Matrix for Rounded {
    fn layout(&self) -> Layout {
        self.layout
    }
    fn out_features(&self) -> usize {
        self.rows.len()
    }
    fn in_features(&self) -> usize {
        self.columns
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        let found = self.rows.get(index).ok_or_else(|| fail!(Internal, "row {index} of a rounded matrix"))?;
        row.clone_from(found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::layout::Float;

    const COLUMNS: usize = 96;
    const ROWS: usize = 8 * PANEL_ROWS;

    fn noise(k: usize) -> f32 {
        ((k * 7919 + k / 7 * 104_729) % 100_003) as f32 / 50_001.0 - 1.0
    }

    /// Weights whose first panel is there last, where `late` says so.
    struct Late {
        late: AtomicBool,
        others: AtomicUsize,
    }

    impl Matrix for Late {
        fn layout(&self) -> Layout {
            Layout::Dense(Float::F32)
        }
        fn out_features(&self) -> usize {
            ROWS
        }
        fn in_features(&self) -> usize {
            COLUMNS
        }
        fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
            if index >= PANEL_ROWS {
                self.others.fetch_add(1, Ordering::SeqCst);
            } else if index == 0 && self.late.load(Ordering::SeqCst) {
                // With one processor there is nobody else to read the others.
                let begin = Instant::now();
                let waits = || begin.elapsed() < Duration::from_secs(2);
                while self.others.load(Ordering::SeqCst) < ROWS - PANEL_ROWS && waits() {
                    std::thread::yield_now();
                }
            }
            row.floats.iter_mut().enumerate().for_each(|(k, w)| *w = noise(index * COLUMNS + k));
            Ok(())
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes there, and nothing but arithmetic")]
    fn sums_of_scales_are_those_of_one_thread() {
        let mut moments = Moments::new(COLUMNS, 1).unwrap();
        let x: Vec<f32> = (0..COLUMNS).map(|k| noise(31 * k + 5)).collect();
        moments.add(Isa::best(), &x).unwrap();
        moments.settle(Isa::best());
        let source = Late { late: AtomicBool::new(false), others: AtomicUsize::new(0) };
        let method =
            Method { search: true, bases: 2, moments: Some(&moments), ..Method::plain(Type::Ternary) };
        let rounding = Rounding::new(Isa::best(), &Executor::Serial, &source, &method).unwrap();
        let one = rounding.system(&Executor::Serial, 2).unwrap();
        source.others.store(0, Ordering::SeqCst);
        source.late.store(true, Ordering::SeqCst);
        let two = rounding.system(&Executor::with_threads(2).unwrap(), 2).unwrap();
        assert!(one.iter().all(|sum| *sum != 0.0));
        assert_eq!(
            one.iter().map(|s| s.to_bits()).collect::<Vec<_>>(),
            two.iter().map(|s| s.to_bits()).collect::<Vec<_>>()
        );
    }
}
