//! What stands around a product: the same on every device.

use super::{Activation, Options, Settings};
use crate::activation::Rule;
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::layout::Layout;
use crate::memory::{copied, filled};
use crate::norm::Norm;
use crate::rotation::Rotation;

/// What stands around a product: options, checked and copied.
pub struct Around {
    /// Whether integers are made of x, and by which rule.
    pub rule: Option<Rule>,
    /// What the product is multiplied with.
    pub product_scale: Option<f32>,
    /// The values added to an output.
    pub bias: Option<Vec<f32>>,
    /// Done to each row of x first.
    pub norm: Option<Norm>,
    /// Done to it then.
    pub rotation: Option<Rotation>,
    /// Done to each output last.
    pub epilogue: Epilogue,
}

impl Around {
    /// For a matrix of that layout, `rows` and `columns`.
    pub fn new(options: &Options<'_>, layout: &Layout, rows: usize, columns: usize) -> Result<Around> {
        let rule = options.activation.resolve(layout, columns, options.activation_scale)?;
        if let Some(s) = options.activation_scale {
            if rule.is_none() {
                return Err(fail!(InvalidArgument, "activation_scale is set, but x is taken as floats"));
            }
            if !(s > 0.0 && s.is_finite() && (1.0 / s).is_finite()) {
                return Err(fail!(
                    InvalidArgument,
                    "activation_scale is {s}: it and its inverse above 0 and finite expected"
                ));
            }
        }
        let norm = options.norm.map(|spec| Norm::new(&spec, columns)).transpose()?;
        let rotation = options.rotation.map(|spec| Rotation::new(&spec, columns)).transpose()?;
        let bias = match options.bias {
            Some(bias) if bias.len() != rows => {
                return Err(fail!(
                    InvalidArgument,
                    "bias has {} values, the layer {rows} outputs",
                    bias.len()
                ));
            }
            bias => bias.map(|bias| copied(bias, "bias")).transpose()?,
        };
        let (product_scale, epilogue) = (options.product_scale, options.epilogue);
        Ok(Around { rule, product_scale, bias, norm, rotation, epilogue })
    }

    /// Whether rows of x are changed before they are taken.
    pub fn has_front(&self) -> bool {
        self.norm.is_some() || self.rotation.is_some()
    }

    /// Makes integer activations use that scale for all of x, or again what they find in it.
    pub fn fix_scale(&mut self, scale: Option<f32>) {
        if let Some(rule) = &mut self.rule {
            rule.fixed_scale = scale;
        }
    }

    /// How x is taken, resolved: never `Auto`.
    pub fn activation(&self, layout: &Layout) -> Activation {
        Activation::of(self.rule, layout)
    }

    /// The settings that make it again.
    pub fn settings(&self, layout: &Layout) -> Result<Settings> {
        let some = |values: Option<&[f32]>, what| values.map(|values| copied(values, what)).transpose();
        let norm = self.norm.as_ref().map(Norm::spec);
        let signs = self.rotation.as_ref().filter(|rotation| rotation.has_signs());
        let signs = match signs {
            None => None,
            Some(rotation) => {
                let mut signs = filled(rotation.columns(), 0.0f32, "signs")?;
                signs.iter_mut().enumerate().for_each(|(k, sign)| *sign = rotation.sign(k));
                Some(signs)
            }
        };
        Ok(Settings {
            activation: self.activation(layout),
            product_scale: self.product_scale,
            bias: some(self.bias.as_deref(), "bias")?,
            norm: norm.map(|norm| (norm.kind, norm.epsilon)),
            norm_weight: some(norm.and_then(|norm| norm.weight), "norm weight")?,
            norm_bias: some(norm.and_then(|norm| norm.bias), "norm bias")?,
            rotation: self.rotation.as_ref().map(Rotation::block),
            rotation_signs: signs,
            epilogue: self.epilogue,
            activation_scale: self.rule.and_then(|rule| rule.fixed_scale),
        })
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> usize {
        self.bias.as_ref().map_or(0, |b| b.len() * 4)
            + self.norm.as_ref().map_or(0, Norm::bytes)
            + self.rotation.as_ref().map_or(0, Rotation::bytes)
    }
}
