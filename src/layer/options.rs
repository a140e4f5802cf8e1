//! What a layer is asked for: options of a call, and their copies from a file.

use std::ops::Range;

use crate::activation::{Rule, Segment, Span, Width};
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::layout::{Coded, Layout, Part, Scales};
use crate::norm;
use crate::rotation;

/// What the kernels multiply the weights with; the numbers are those of `bl_activation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// Integers with one scale for each segment of the weights (row, group or super-block); floats
    /// where the weights are floats.
    #[default]
    Auto = 0,
    /// Floats.
    F32 = 1,
    /// Int8 with one scale for each row of x.
    Int8Row = 2,
    /// Int8 with one scale for each group (or super-block) of the weights.
    Int8Group = 3,
    /// -7 .. 7, scales as `Auto`.
    Int4 = 4,
    /// 0 .. 255, scales as `Auto`; values below 0 become 0.
    Uint8Positive = 5,
    /// Int8 that spans twice the mean magnitude of the row.
    Int8MeanRange = 6,
    /// -7 .. 7, the same.
    Int4MeanRange = 7,
    /// 0 .. 255, the same of the values above 0.
    Uint8PositiveMeanRange = 8,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 9] = [
        Activation::Auto,
        Activation::F32,
        Activation::Int8Row,
        Activation::Int8Group,
        Activation::Int4,
        Activation::Uint8Positive,
        Activation::Int8MeanRange,
        Activation::Int4MeanRange,
        Activation::Uint8PositiveMeanRange,
    ];

    /// What it means for weights of that layout: `None` is float.
    pub(super) fn resolve(
        self,
        layout: &Layout,
        in_features: usize,
        fixed_scale: Option<f32>,
    ) -> Result<Option<Rule>> {
        let Layout::Coded(coded) = layout else {
            return match self {
                Activation::Auto | Activation::F32 => Ok(None),
                _ => {
                    Err(fail!(Unsupported, "integer activations need packed weights; these are plain floats"))
                }
            };
        };
        let row = coded.scales == Scales::Row;
        let own = if row { Segment::Row } else { Segment::Record };
        let (width, span, segment) = match self {
            Activation::F32 => return Ok(None),
            Activation::Auto => (Width::Int8, Span::Largest, own),
            Activation::Int8Row => (Width::Int8, Span::Largest, Segment::Row),
            Activation::Int8Group if row => {
                return Err(fail!(
                    Unsupported,
                    "activations by group need weights with groups; these have one scale a row"
                ));
            }
            Activation::Int8Group => (Width::Int8, Span::Largest, Segment::Record),
            Activation::Int4 => (Width::Int4, Span::Largest, own),
            Activation::Uint8Positive => (Width::Uint8, Span::Largest, own),
            Activation::Int8MeanRange => (Width::Int8, Span::TwiceMean, Segment::Row),
            Activation::Int4MeanRange => (Width::Int4, Span::TwiceMean, Segment::Row),
            Activation::Uint8PositiveMeanRange => (Width::Uint8, Span::TwiceMean, Segment::Row),
        };
        // Sums of an int32: 65 536 products of 255 and 128, or 32 768 of 255 and 255.
        if width == Width::Uint8 && coded.values_reach() > 128 && coded.group_len(in_features) > 1 << 15 {
            return Err(fail!(
                Unsupported,
                "activations of 0..255 with weights of {} bits from a zero point: groups of at most 32768 columns expected, these have {}",
                coded.bits,
                coded.group_len(in_features)
            ));
        }
        Ok(Some(Rule { width, span, segment, fixed_scale }))
    }

    /// The choice that gives this rule: never `Auto`.
    pub(super) fn of(rule: Option<Rule>, layout: &Layout) -> Activation {
        let row = matches!(layout, Layout::Coded(Coded { scales: Scales::Row, .. }));
        match rule.map(|rule| (rule.width, rule.span, rule.segment)) {
            None => Activation::F32,
            Some((Width::Int8, Span::Largest, Segment::Record)) if !row => Activation::Int8Group,
            Some((Width::Int8, Span::Largest, _)) => Activation::Int8Row,
            Some((Width::Int4, Span::Largest, _)) => Activation::Int4,
            Some((Width::Uint8, Span::Largest, _)) => Activation::Uint8Positive,
            Some((Width::Int8, Span::TwiceMean, _)) => Activation::Int8MeanRange,
            Some((Width::Int4, Span::TwiceMean, _)) => Activation::Int4MeanRange,
            Some((Width::Uint8, Span::TwiceMean, _)) => Activation::Uint8PositiveMeanRange,
        }
    }
}

/// What makes a layer beside its weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// How x is taken.
    pub activation: Activation,
    /// What the product is multiplied with before the bias is added: one f32 rounding.
    pub product_scale: Option<f32>,
    /// `out_features` values to add, copied.
    pub bias: Option<&'a [f32]>,
    /// Done to each row of x first.
    pub norm: Option<norm::Spec<'a>>,
    /// Done to each row of x after the norm.
    pub rotation: Option<rotation::Spec<'a>>,
    /// Done to each output after the bias.
    pub epilogue: Epilogue,
    /// Integer activations: a scale for every segment, instead of each segment's own. Finite and above
    /// 0, and so is 1 / it.
    pub activation_scale: Option<f32>,
}

/// The same with its own copies: what a file or a caller says of a layer.
#[derive(Default)]
pub struct Settings {
    /// See [`Options`].
    pub activation: Activation,
    /// See [`Options`].
    pub product_scale: Option<f32>,
    /// See [`Options`].
    pub bias: Option<Vec<f32>>,
    /// Kind and epsilon of the norm.
    pub norm: Option<(norm::Kind, f32)>,
    /// Its factors.
    pub norm_weight: Option<Vec<f32>>,
    /// What it adds.
    pub norm_bias: Option<Vec<f32>>,
    /// Block of the rotation.
    pub rotation: Option<usize>,
    /// Its signs.
    pub rotation_signs: Option<Vec<f32>>,
    /// See [`Options`].
    pub epilogue: Epilogue,
    /// See [`Options`].
    pub activation_scale: Option<f32>,
}

impl Settings {
    /// The options for the whole matrix.
    pub fn options(&self) -> Options<'_> {
        Options {
            activation: self.activation,
            product_scale: self.product_scale,
            bias: self.bias.as_deref(),
            norm: self.norm.map(|(kind, epsilon)| norm::Spec {
                kind,
                epsilon,
                weight: self.norm_weight.as_deref(),
                bias: self.norm_bias.as_deref(),
            }),
            rotation: self
                .rotation
                .map(|block| rotation::Spec { block, signs: self.rotation_signs.as_deref() }),
            epilogue: self.epilogue,
            activation_scale: self.activation_scale,
        }
    }

    /// The options for a part of the matrix: its rows and columns, and which part they are.
    pub fn options_of(&self, part: Part, rows: Range<usize>, columns: Range<usize>) -> Result<Options<'_>> {
        let mut options = self.options();
        match part {
            Part::Whole => {}
            Part::Rows { .. } => options.bias = options.bias.and_then(|bias| bias.get(rows)),
            Part::Columns { rank, .. } => {
                if options.norm.is_some() || options.epilogue != Epilogue::None {
                    return Err(fail!(
                        Unsupported,
                        "a shard of columns has not all of x, which a norm needs, nor the whole sum, which an epilogue needs"
                    ));
                }
                options.bias = options.bias.filter(|_| rank == 0);
                if let Some(rotation) = &mut options.rotation {
                    if !columns.start.is_multiple_of(rotation.block) {
                        return Err(fail!(
                            Unsupported,
                            "columns from {} on: a shard begins with a block of {} columns that are rotated",
                            columns.start,
                            rotation.block
                        ));
                    }
                    rotation.signs = rotation.signs.and_then(|signs| signs.get(columns));
                }
            }
        }
        Ok(options)
    }
}
