//! How to make the matrix of a layer: everything checked, nothing but small tensors read.

use super::Role;
use super::parts::{Parts, expect, size};
use super::rotation::Declared;
use crate::codec::bitnet_hf::{BitnetHf, BitnetOnline, WeightScale};
use crate::codec::burn_dragon::{Artifact, View};
use crate::codec::gptq::{Awq, Gptq, GptqVersion};
use crate::codec::int4_rows::{CompressedTensors, Mlx};
use crate::codec::transposed::Transposed;
use crate::codec::{self, Floats, cortex, ruvllm};
use crate::container::Tensor;
use crate::error::{Result, fail};
use crate::layout::Matrix;
use crate::memory::filled;
use crate::types::Type;

/// What a caller wants, where the files leave a choice.
#[derive(Clone, Copy, Default)]
pub struct Request<'a> {
    /// The format: which of several, or which variant of I2_S, or that floats be ternarised.
    pub ty: Option<Type>,
    /// What BitNet's `weight_scale` means; else `config.json` says it.
    pub weight_scale: Option<WeightScale>,
    /// How GPTQ's zero points are stored; else `config.json` says it.
    pub gptq: Option<GptqVersion>,
    /// Columns of a group; 0: what the file says.
    pub group_size: usize,
    /// Which matrix of a tensor of three dimensions.
    pub slice: usize,
    /// All of them, one below the other.
    pub all_slices: bool,
    /// The caller applies the norm that the file has.
    pub without_norm: bool,
    /// The tensor is stored `[in_features, out_features]`.
    pub transposed: bool,
    /// Columns and rows, where packed weights do not tell them; 0: they do.
    pub in_features: usize,
    /// See `in_features`.
    pub out_features: usize,
    /// Scales in place of the file's.
    pub scales: Option<Floats<'a>>,
    /// A bias is given: the file's is not read.
    pub has_bias: bool,
}

/// `rms_norm_eps` where config.json does not have it: the default of transformers' BitNet.
const RMS_EPSILON: f32 = 1e-6;

/// Which options of a [`Request`] a plan made use of.
#[derive(Clone, Copy, Default)]
pub(super) struct Used {
    pub(super) group_size: bool,
    pub(super) features: bool,
    pub(super) scales: bool,
    pub(super) transposed: bool,
}

/// A layer whose parts were found and fit together.
pub struct Plan<'a> {
    /// The format of the weights.
    pub ty: Type,
    /// Rows.
    pub out_features: usize,
    /// Columns.
    pub in_features: usize,
    /// Matrices of the tensor.
    pub slices: usize,
    /// Where the rows lie one after another: the tensor, the first byte in it and the bytes of a row.
    pub rows: Option<(&'a Tensor, usize, usize)>,
    /// What the product is multiplied with before the bias is added.
    pub product_scale: Option<f32>,
    pub(super) slice: usize,
    pub(super) all_slices: bool,
    pub(super) recipe: Recipe<'a>,
    pub(super) used: Used,
    /// What the file declares to be done to x first, after a norm.
    pub rotation: Option<Declared>,
    bias: Option<Floats<'a>>,
    /// The weight of an RMS norm before the layer, and its epsilon.
    norm: Option<(Floats<'a>, f32)>,
}

/// The arguments of a codec's constructor.
pub(super) enum Recipe<'a> {
    Whole(&'a [u8]),
    Transposed(&'a [u8]),
    BitnetHf(&'a [u8], Floats<'a>, WeightScale),
    Online(Floats<'a>),
    Ternary(Type, &'a [u8], Floats<'a>),
    TernaryBlock(usize, &'a [u8], Floats<'a>),
    Int4(usize, &'a [u8], Floats<'a>),
    Artifact(View, &'a [u8], f32),
    Gptq {
        version: GptqVersion,
        words: Words<'a>,
        g_idx: Option<&'a [u8]>,
    },
    Awq(Words<'a>),
    CompressedTensors {
        words: Words<'a>,
        g_idx: Option<&'a [u8]>,
    },
    Mlx {
        words: Words<'a>,
        biases: Floats<'a>,
    },
    /// Panels are used in place: there is no matrix to read.
    Saved,
}

/// Groups of codes in 32-bit words.
pub(super) struct Words<'a> {
    pub(super) group_len: usize,
    pub(super) packed: &'a [u8],
    pub(super) scales: Floats<'a>,
    pub(super) zeros: Option<&'a [u8]>,
}

impl<'a> Plan<'a> {
    /// A plan of one matrix.
    pub(super) fn new(ty: Type, out_features: usize, in_features: usize, recipe: Recipe<'a>) -> Plan<'a> {
        Plan {
            ty,
            out_features,
            in_features,
            slices: 1,
            rows: None,
            product_scale: None,
            slice: 0,
            all_slices: false,
            recipe,
            used: Used::default(),
            rotation: None,
            bias: None,
            norm: None,
        }
    }

    /// The matrix. Online weights are read once here, for their mean.
    pub fn matrix(&self) -> Result<Box<dyn Matrix + 'a>> {
        let (rows, columns) = (self.out_features, self.in_features);
        Ok(match &self.recipe {
            Recipe::Whole(bytes) => codec::open(self.ty, rows, columns, bytes)?,
            Recipe::Transposed(bytes) => Box::new(Transposed::new(self.ty, rows, columns, bytes)?),
            Recipe::BitnetHf(packed, scale, meaning) => {
                Box::new(BitnetHf::new(rows, columns, packed, *scale, *meaning)?)
            }
            Recipe::Online(masters) => Box::new(BitnetOnline::new(rows, columns, *masters)?),
            Recipe::Ternary(ty, packed, scales) => {
                Box::new(cortex::Ternary::new(rows, columns, *ty, packed, *scales)?)
            }
            Recipe::TernaryBlock(block, codes, scales) => {
                Box::new(ruvllm::Ternary::new(rows, columns, *block, codes, *scales)?)
            }
            Recipe::Int4(group, packed, scales) => {
                Box::new(cortex::Int4::new(rows, columns, *group, packed, *scales)?)
            }
            Recipe::Artifact(view, packed, scale) => Box::new(Artifact::new(self.ty, *view, packed, *scale)?),
            Recipe::Gptq { version, words: w, g_idx } => {
                let zeros = w.zeros.unwrap_or(&[]);
                let (group, packed) = (w.group_len, w.packed);
                Box::new(Gptq::new(*version, rows, columns, group, packed, zeros, w.scales, *g_idx)?)
            }
            Recipe::Awq(w) => {
                let zeros = w.zeros.unwrap_or(&[]);
                Box::new(Awq::new(rows, columns, w.group_len, w.packed, zeros, w.scales)?)
            }
            Recipe::CompressedTensors { words: w, g_idx } => {
                let (group, packed) = (w.group_len, w.packed);
                Box::new(CompressedTensors::new(rows, columns, group, packed, w.scales, w.zeros, *g_idx)?)
            }
            Recipe::Saved => return Err(fail!(Internal, "a layer of panels is not packed again")),
            Recipe::Mlx { words: w, biases } => {
                Box::new(Mlx::new(rows, columns, w.group_len, w.packed, w.scales, *biases)?)
            }
        })
    }

    /// Refuses tensors that are too small, as far as that shows without reading them.
    pub fn check_sizes(&self) -> Result<()> {
        match &self.recipe {
            Recipe::Saved | Recipe::Online(_) | Recipe::Gptq { g_idx: Some(_), .. } => Ok(()),
            Recipe::CompressedTensors { g_idx: Some(_), .. } => Ok(()),
            _ => self.matrix().map(drop),
        }
    }

    /// The bias that the file has for the rows of the plan.
    pub fn bias(&self) -> Result<Option<Vec<f32>>> {
        let Some(floats) = self.bias else { return Ok(None) };
        let first = if self.all_slices { 0 } else { self.slice * self.out_features };
        let mut bias = filled(self.out_features, 0.0f32, "bias")?;
        for (o, b) in bias.iter_mut().enumerate() {
            *b = floats.get(first + o);
        }
        Ok(Some(bias))
    }

    /// Finds the bias, where none is given.
    pub(super) fn add_bias(&mut self, parts: &Parts<'a, '_>, request: &Request<'_>) -> Result<()> {
        let Some(tensor) = parts.get(Role::Bias).filter(|_| !request.has_bias) else { return Ok(()) };
        let matrices = if self.all_slices { 1 } else { self.slices };
        let mut count = 1usize;
        for n in &tensor.shape {
            count = count.saturating_mul(size(*n)?);
        }
        if count != self.out_features.saturating_mul(matrices) {
            let (found, rows) = (super::parts::shape(tensor), self.out_features);
            return Err(fail!(BadFile, "bias: {rows} values for each matrix expected, found {found:?}"));
        }
        self.bias = Some(parts.floats(tensor, "bias")?);
        Ok(())
    }

    /// The weight of the RMS norm that the file has before the layer.
    pub fn norm(&self) -> Result<Option<Vec<f32>>> {
        let Some((floats, _)) = self.norm else { return Ok(None) };
        let mut weight = filled(self.in_features, 0.0f32, "norm")?;
        for (k, w) in weight.iter_mut().enumerate() {
            *w = floats.get(k);
        }
        Ok(Some(weight))
    }

    /// Its epsilon.
    pub fn norm_epsilon(&self) -> Option<f32> {
        self.norm.map(|(_, epsilon)| epsilon)
    }

    /// Finds the norm before the layer, where the caller does not apply it.
    pub(super) fn add_norm(&mut self, parts: &Parts<'a, '_>, request: &Request<'_>) -> Result<()> {
        let Some(tensor) = parts.get(Role::Norm).filter(|_| !request.without_norm) else { return Ok(()) };
        expect(tensor, "rms_norm.weight", &[self.in_features])?;
        let config =
            parts.config().and_then(|config| config.number(&["quantization_config", "rms_norm_eps"]));
        let epsilon = config.map_or(RMS_EPSILON, |epsilon| epsilon as f32);
        self.norm = Some((parts.floats(tensor, "rms_norm.weight")?, epsilon));
        Ok(())
    }

    /// Refuses options that say nothing about this layer.
    pub(super) fn check_request(&self, request: &Request<'_>) -> Result<()> {
        if request.slice >= self.slices && request.slice != 0 {
            return Err(fail!(InvalidArgument, "slice {} of {} matrices", request.slice, self.slices));
        }
        let name = self.ty.name();
        let given = [
            ("group_size", request.group_size != 0, self.used.group_size),
            ("in_features", request.in_features != 0, self.used.features),
            ("out_features", request.out_features != 0, self.used.features),
            ("scales", request.scales.is_some(), self.used.scales),
            ("flags: BL_LAYER_TRANSPOSED", request.transposed, self.used.transposed),
        ];
        match given.iter().find(|(_, given, used)| *given && !used) {
            None => Ok(()),
            Some((option, ..)) => {
                Err(fail!(InvalidArgument, "bl_layer_options.{option} says nothing about {name} weights"))
            }
        }
    }

    /// Takes the slice that is wanted of `slices` matrices.
    pub(super) fn sliced(&mut self, slices: usize, request: &Request<'_>) -> Result<()> {
        if request.slice >= slices {
            return Err(fail!(InvalidArgument, "slice {} of {slices} matrices", request.slice));
        }
        (self.slices, self.slice, self.all_slices) = (slices, request.slice, request.all_slices);
        Ok(())
    }
}

/// The wanted type must be the stored one: nothing is quantised again.
pub(super) fn same(stored: Type, request: &Request<'_>) -> Result<()> {
    match request.ty {
        Some(ty) if ty != stored => Err(fail!(
            Unsupported,
            "packing {} weights to {} needs a conversion that this version lacks",
            stored.name(),
            ty.name()
        )),
        _ => Ok(()),
    }
}
