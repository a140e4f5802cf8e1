//! Packed files: all layers are made as a program opens them, then saved. They are held until the file is
//! written.

use std::io;
use std::path::Path;

use super::choose::Target;
use super::source::Plain;
use super::{Job, Progress, Report, Step, What};
use crate::container::Quoted;
use crate::error::{Result, fail};
use crate::layer::{Linear, Options as LayerOptions};
use crate::layout::Matrix;
use crate::memory::{Heap, filled, reserve};
use crate::model::Plan;
use crate::quantize::{RoundedRows, Rounding};
use crate::rotation::{Rotation, Spec};
use crate::save::{Named, save};
use crate::types::Type;

impl<'a> Job<'a> {
    /// Makes all layers and saves them: they are held until the file is written.
    pub(super) fn pack(
        &self,
        path: &Path,
        steps: Vec<Step<'a>>,
        report: &mut Report,
        progress: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<()> {
        let heap = Heap::default();
        let (total, weights_total) = (steps.len() as u64, steps.iter().map(|s| s.weights).sum());
        let mut weights_done = 0;
        let mut made: Vec<(String, Linear, Type)> = Vec::new();
        reserve(&mut made, steps.len(), "layers")?;
        let largest = self.files.directory.tensors.iter().map(|t| t.bytes).max().unwrap_or(0);
        for (done, step) in steps.into_iter().enumerate() {
            let now = Progress { name: &step.name, done: done as u64, total, weights_done, weights_total };
            if !progress(&now) {
                return Err(fail!(Cancelled, "stopped before {}", Quoted(step.name.as_bytes())));
            }
            let What::Round { plan, target, kept, rotation, .. } = step.what else { continue };
            let linear = self
                .linear(&step.name, &plan, &target, kept, rotation, &heap, largest)
                .map_err(|e| e.within(format_args!("{}", Quoted(step.name.as_bytes()))))?;
            if let Some((tensor, ..)) = plan.rows {
                self.read(tensor, tensor.bytes as usize);
            }
            weights_done += step.weights;
            made.push((step.name, linear, target.ty));
        }
        if !progress(&Progress { name: "", done: total, total, weights_done, weights_total }) {
            return Err(fail!(Cancelled, "stopped before the file was written"));
        }
        let mut named = Vec::new();
        reserve(&mut named, made.len(), "layers")?;
        named.extend(made.iter().map(|(name, linear, ty)| Named { name, linear, ty: *ty }));
        save(path, &named, self.options.texts)?;
        let io = |e: io::Error| fail!(Io, "{}: {e}", path.display());
        report.bytes_written = std::fs::metadata(path).map_err(io)?.len();
        Ok(())
    }

    fn linear(
        &self,
        name: &str,
        plan: &Plan<'_>,
        target: &Target,
        kept: bool,
        rotation: Option<Rotation>,
        heap: &Heap,
        largest: u64,
    ) -> Result<Linear> {
        let matrix = plan.matrix()?;
        let (bias, norm) = (plan.bias()?, plan.norm()?);
        let mut signs = filled(if rotation.is_some() { plan.in_features } else { 0 }, 0.0, "signs")?;
        if let Some(rotation) = &rotation {
            signs.iter_mut().enumerate().for_each(|(k, sign)| *sign = rotation.sign(k));
        }
        let declared = plan.rotation.as_ref().map(|declared| declared.spec());
        let own = rotation.as_ref().map(|r| Spec {
            block: r.block(),
            signs: Some(&signs).filter(|_| r.has_signs()).map(|s| &s[..]),
        });
        let options = LayerOptions {
            activation: Default::default(),
            product_scale: plan.product_scale,
            bias: bias.as_deref(),
            norm: plan.norm_epsilon().map(|epsilon| crate::norm::Spec {
                kind: crate::norm::Kind::Rms,
                epsilon,
                weight: norm.as_deref(),
                bias: None,
            }),
            rotation: own.or(declared),
            epilogue: Default::default(),
            activation_scale: None,
        };
        if kept {
            return Linear::new(&*matrix, &options, self.isa, heap);
        }
        let moments = self.moments(name, rotation.as_ref())?;
        self.check_memory(plan, None, moments.as_ref(), largest)?;
        let plain = Plain::new(&*matrix, rotation.as_ref(), self.isa);
        let method = self.method(target, moments.as_ref());
        let rounding = Rounding::new(self.isa, self.executor, &plain, &method)?;
        let rows = RoundedRows::all(&rounding, self.executor)?;
        Linear::new(&rows as &dyn Matrix, &options, self.isa, heap)
    }
}
