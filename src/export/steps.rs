//! What becomes of each layer and tensor, before anything is written: the steps of an export.

use super::choose::{self, Target};
use super::source::signs;
use super::store::Store;
use super::{Job, Report, Step, What, is_float, product, shape, text};
use crate::container::{Kind, Quoted, Tensor};
use crate::error::{Error, Result, fail};
use crate::layout::{Coded, Float, Layout, Values};
use crate::memory::{filled, reserve};
use crate::model::{self, Plan, Request, Role};
use crate::rotation::{Rotation, Spec};
use crate::types::Type;

impl<'a> Job<'a> {
    /// What becomes of each layer and tensor.
    pub(super) fn steps(&self) -> Result<(Vec<Step<'a>>, Report)> {
        let directory = &self.files.directory;
        let options = self.options;
        let mut report = Report::default();
        // Which layer takes each tensor; tensors of chosen layers but bias, norm and factor go with it.
        let mut owner = filled(directory.tensors.len(), u32::MAX, "tensors of layers")?;
        // Packed files: the first layer whose weights are in each tensor.
        let packed = options.kind == Kind::Packed;
        let whose = if packed { directory.tensors.len() } else { 0 };
        let mut whose = filled(whose, u32::MAX, "layers of tensors")?;
        let mut targets = filled(self.layers.list().len(), None, "targets of layers")?;
        for (number, layer) in self.layers.list().iter().enumerate() {
            let weight = layer.index(Role::Weight).and_then(|index| whose.get_mut(index as usize));
            if let Some(place) = weight
                && *place == u32::MAX
            {
                *place = number as u32;
            }
            if layer.tensor(self.files, Role::Weight).is_some_and(|weight| product(shape(weight)) == 0) {
                continue; // nothing to quantise: kept as any other tensor
            }
            let name = text(self.layers.name(layer))?;
            let special = options.types.iter().find(|(pattern, _)| name.contains(pattern));
            let target = match special {
                Some((_, target)) => Some(*target),
                None => choose::chosen(options.layers, options.patterns, &name).then_some(options.target),
            };
            let Some(target) = target else { continue };
            targets[number] = Some(target);
            for role in [Role::Weight, Role::Scales, Role::Zeros, Role::GroupIndex, Role::Shape] {
                if let Some(index) = layer.index(role) {
                    owner[index as usize] = number as u32;
                }
            }
        }
        let mut steps = Vec::new();
        reserve(&mut steps, directory.tensors.len(), "steps")?;
        for (index, tensor) in directory.tensors.iter().enumerate() {
            report.bytes_read += tensor.bytes;
            let name = text(directory.name(tensor))?;
            let within = |e: Error| e.within(format_args!("{}", Quoted(directory.name(tensor))));
            if let Some(layer) = self.layers.list().get(owner[index] as usize) {
                if layer.index(Role::Weight) != Some(index as u32) {
                    continue;
                }
                let (Some(target), name) = (targets[owner[index] as usize], text(self.layers.name(layer))?)
                else {
                    continue;
                };
                let step = self.round_step(layer, target, name, tensor, &mut report).map_err(within)?;
                steps.push(step);
                continue;
            }
            if packed {
                if product(shape(tensor)) == 0 {
                    continue; // no layer that a packed file has
                }
                if let Some(layer) = self.layers.list().get(whose[index] as usize) {
                    let request = Request { all_slices: true, ..Request::default() };
                    let plan = self.layers.plan(self.files, layer, &request).map_err(within)?;
                    let ty = options.rest.filter(|_| is_float(plan.ty)).unwrap_or(plan.ty);
                    let target = Target { ty, group: 0, bases: 0, rule: Default::default() };
                    let weights = plan.out_features as u64 * plan.in_features as u64;
                    let kept = ty == plan.ty;
                    let what =
                        What::Round { plan, target, kept, rotation: None, store: None, at: Vec::new() };
                    steps.push(Step { name: text(self.layers.name(layer))?, weights, what });
                    report.kept += 1;
                }
                continue;
            }
            let float = is_float(tensor.ty);
            let what = match options.rest.filter(|ty| float && tensor.dims >= 2 && *ty != tensor.ty) {
                Some(ty) => What::Convert { tensor, ty, at: 0 },
                None => What::Copy { tensor, at: 0 },
            };
            report.kept += 1;
            steps.push(Step { name, weights: product(shape(tensor)), what });
        }
        Ok((steps, report))
    }

    fn round_step(
        &self,
        layer: &model::Layer,
        mut target: Target,
        name: String,
        tensor: &'a Tensor,
        report: &mut Report,
    ) -> Result<Step<'a>> {
        let options = self.options;
        let request = Request { all_slices: true, ..Request::default() };
        let plan = self.layers.plan(self.files, layer, &request)?;
        if !is_float(plan.ty) && !options.requantize {
            return Err(fail!(
                InvalidArgument,
                "these weights are {} already: quantising them again (BL_QUANTIZE_AGAIN) loses more, or leave the layer out",
                plan.ty.name()
            ));
        }
        let info = target.ty.info();
        if info.block > 1 && !plan.in_features.is_multiple_of(info.block as usize) {
            let fallback = options.fallback.ok_or_else(|| {
                fail!(
                    Unsupported,
                    "{} has blocks of {}, and {} columns are no multiple of it: set bl_quantize_options.fallback",
                    info.name(),
                    info.block,
                    plan.in_features
                )
            })?;
            target = Target { ty: fallback, group: 0, bases: 0, rule: Default::default() };
            report.fallback += 1;
        }
        let rotation = match options.rotation {
            None => None,
            Some(_) if plan.rotation.is_some() => {
                return Err(fail!(InvalidArgument, "these weights are rotated already"));
            }
            Some((block, seed)) => {
                let signs = signs(seed, plan.in_features)?;
                Some(Rotation::new(&Spec { block, signs: signs.as_deref() }, plan.in_features)?)
            }
        };
        if let Some(calibration) = options.calibration
            && calibration.find(&name).is_some()
        {
            report.calibrated += 1;
        }
        if options.compensate && options.calibration.is_some_and(|c| c.find(&name).is_none()) {
            return Err(fail!(NotFound, "calibration knows nothing of this layer's input"));
        }
        report.quantized += 1;
        let weights = product(shape(tensor)).max(plan.out_features as u64 * plan.in_features as u64);
        report.weights += weights;
        let store = match options.kind {
            Kind::Packed => None,
            _ => {
                let layout = layout(&plan, &target);
                Some(Store::new(options.kind, target.ty, &layout, plan.out_features, plan.in_features)?)
            }
        };
        let what = What::Round { plan, target, kept: false, rotation, store, at: Vec::new() };
        Ok(Step { name, weights, what })
    }
}

/// The layout that a target gives, as far as how it is stored depends on it.
fn layout(plan: &Plan<'_>, target: &Target) -> Layout {
    let bases = target.bases.max(1) as u8;
    match target.ty {
        Type::Ternary if target.group == 0 => match Layout::rows(2, Values::Offset(1)) {
            Layout::Coded(coded) => Layout::Coded(Coded { bases, ..coded }),
            dense => dense,
        },
        Type::Int4 | Type::Ternary => {
            crate::quantize::group_layout(target.ty, plan.in_features, target.group)
        }
        _ => Layout::Dense(Float::F32),
    }
}
