//! How much memory a model takes: burn_dragon's estimates, and beside them the exact bytes of the
//! weights as this library packs them.
//!
//! ```text
//! Lp = latent / heads   hw = heads embd Lp   dt = latent embd   tokens = batch time
//! pk(n, r) = ceil(n r) + 4                                  n values of r bytes, and a scale
//! master      4 hw for x, 4 hw for y, 4 dt for residual     those that are quantised
//! execution   pk(hw, x) + pk(hw, y) + pk(dt, residual)
//! shell       pk(tokens embd) for x, pk(tokens heads embd) for y, pk(tokens heads Lp) for residual
//! saved       pk(tokens layers embd 3, saved) * (0 disabled, 1 cache, 1/2 recompute)
//! rho         pk(batch layers heads Lp embd, r): blocks 9/8, 3/8, 1/4; fp32 4, bf16 2, others 1
//! workspace   shell / 2, and shell / 4 more with recompute
//! ```
//! All in u64 that saturates.

use super::{Config, LowBit, RhoCompression, RhoPrecision, Role, Saved};
use crate::error::{Result, fail};
use crate::layout::{Layout, Packed, Values};
use crate::limits::FEATURES_MAX;

/// The size of a model and of what it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub batch: u64,
    /// Tokens of each.
    pub time: u64,
    /// Layers.
    pub layers: u64,
    /// Heads.
    pub heads: u64,
    /// Features of a token.
    pub embd: u64,
    /// Latent features of all heads.
    pub latent: u64,
}

impl Shape {
    fn latent_per_head(&self) -> u64 {
        self.latent / self.heads.max(1)
    }

    /// The weights of a projection: heads, rows and columns of each head as this library packs them.
    fn weights(&self, role: Role) -> [u64; 3] {
        match role {
            Role::X | Role::Y => [self.heads, self.latent_per_head(), self.embd],
            Role::Residual => [1, self.embd, self.latent],
        }
    }
}

/// Bytes by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// f32 weights.
    pub master: u64,
    /// Packed weights, estimated.
    pub execution: u64,
    /// Activations between projections.
    pub shell: u64,
    /// Activations kept for the backward pass.
    pub saved: u64,
    /// Recurrent state.
    pub rho: u64,
    /// What calls need for a while.
    pub workspace: u64,
}

impl Buckets {
    /// All of them.
    pub fn total(&self) -> u64 {
        [self.master, self.execution, self.shell, self.saved, self.rho, self.workspace]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |n, f| n.saturating_mul(*f))
}

/// `n` values of a fraction of bytes, and a scale.
fn packed(n: u64, (num, den): (u64, u64)) -> u64 {
    n.saturating_mul(num).div_ceil(den).saturating_add(4)
}

/// The estimate; all zero where nothing is quantised.
pub fn estimate(config: &Config, shape: &Shape) -> Buckets {
    let mut buckets = Buckets::default();
    if !config.enable {
        return buckets;
    }
    let Shape { batch, time, layers, heads, embd, latent } = *shape;
    let per_head = shape.latent_per_head();
    let tokens = product(&[batch, time]);
    for role in Role::ALL {
        let Some((weights, activations)) = config.formats(role) else { continue };
        let (elements, inputs) = match role {
            Role::X => (product(&[heads, embd, per_head]), product(&[tokens, embd])),
            Role::Y => (product(&[heads, embd, per_head]), product(&[tokens, heads, embd])),
            Role::Residual => (product(&[latent, embd]), product(&[tokens, heads, per_head])),
        };
        buckets.master = buckets.master.saturating_add(elements.saturating_mul(4));
        buckets.execution = buckets.execution.saturating_add(packed(elements, weights.bytes()));
        buckets.shell = buckets.shell.saturating_add(packed(inputs, activations.bytes()));
    }
    let saved = packed(product(&[tokens, layers, embd, 3]), config.saved_format().bytes());
    (buckets.saved, buckets.workspace) = match config.saved {
        Saved::Disabled => (0, buckets.shell / 2),
        Saved::Cache => (saved, buckets.shell / 2),
        Saved::Recompute => (saved / 2, (buckets.shell / 2).saturating_add(buckets.shell / 4)),
    };
    let rate = match (config.rho.compression, config.rho.precision) {
        (RhoCompression::Int8Block, _) => (9, 8),
        (RhoCompression::TernaryBlock, _) => (3, 8),
        (RhoCompression::BinaryBlock, _) => (1, 4),
        (_, RhoPrecision::Fp32) => (4, 1),
        (_, RhoPrecision::Bf16) => (2, 1),
        _ => (1, 1),
    };
    buckets.rho = packed(product(&[batch, layers, heads, per_head, embd]), rate);
    buckets
}

/// Bytes of the quantised weights as `heads::Projection` packs them, to the byte.
pub fn exact_weights(config: &Config, shape: &Shape) -> Result<u64> {
    let mut total = 0u64;
    for role in Role::ALL {
        let Some((format, _)) = config.formats(role) else { continue };
        let Some(layout) = layout(format) else { continue };
        let [heads, rows, columns] = shape.weights(role);
        if heads > FEATURES_MAX || rows > FEATURES_MAX || columns > FEATURES_MAX {
            return Err(fail!(
                InvalidArgument,
                "{heads} heads of {rows} x {columns}: at most {FEATURES_MAX}"
            ));
        }
        let columns = match role {
            Role::Residual => crate::heads::tail_columns(shape.heads as usize, columns as usize)?,
            _ => columns as usize,
        };
        let bytes = Packed::size(&layout, rows as usize, columns)? as u64;
        total = total.saturating_add(bytes.saturating_mul(heads));
    }
    Ok(total)
}

/// How weights of that format lie in memory; none where they are not packed.
pub fn layout(format: LowBit) -> Option<Layout> {
    match format {
        LowBit::Sign1 => Some(Layout::rows(1, Values::Sign)),
        LowBit::Ternary158 | LowBit::Packed2 => Some(Layout::rows(2, Values::Offset(1))),
        LowBit::Int8 => Some(Layout::rows(8, Values::Offset(128))),
        _ => None,
    }
}

/// An activation that is kept for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedTensor {
    /// The projection that it is the input of.
    pub role: Role,
    /// Batch, heads, time, features.
    pub shape: [u64; 4],
    /// Values.
    pub elements: u64,
    /// Estimated bytes.
    pub bytes: u64,
}

/// What is kept for the backward pass, in the order of the roles.
pub fn saved(config: &Config, shape: &Shape) -> impl Iterator<Item = SavedTensor> {
    let (config, shape) = (*config, *shape);
    let on = config.enable && config.saved != Saved::Disabled;
    Role::ALL.into_iter().filter(move |role| on && config.formats(*role).is_some()).map(move |role| {
        let features = match role {
            Role::X | Role::Y => shape.embd,
            Role::Residual => shape.latent_per_head(),
        };
        let shape = [shape.batch, shape.heads, shape.time, features];
        let elements = product(&shape);
        SavedTensor { role, shape, elements, bytes: packed(elements, config.saved_format().bytes()) }
    })
}
