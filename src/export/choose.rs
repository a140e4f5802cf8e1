//! Which layers are quantised, and to what.
//!
//! ```text
//! protected   routers, embeddings, the head, norms: kept, unless a pattern names them
//! experts     names with gate_proj, up_proj or down_proj, or "experts" with .w1., .w2. or .w3.; in GGUF
//!             ffn_gate, ffn_up, ffn_down: the feed-forward weights, shared or of experts
//! all         every layer that is not protected
//! patterns    layers whose name holds one of the texts; nothing is protected
//! ```
//! Source of experts and all: ruvllm's layer mask.

use crate::error::{Result, fail};
use crate::quantize::Kind as Rule;
use crate::types::Type;

/// Which layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// All but routers, embeddings, the head and norms.
    #[default]
    All,
    /// Feed-forward weights.
    Experts,
    /// Those that a pattern names.
    Patterns,
}

/// What a layer becomes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The type.
    pub ty: Type,
    /// Columns of a group, 0: the type's own.
    pub group: usize,
    /// Ternary: how many bases; 0 and 1: one.
    pub bases: usize,
    /// Which fixed rule.
    pub rule: Rule,
}

/// Routers, embeddings, heads and norms.
pub fn is_protected(name: &str) -> bool {
    let name = Framed(name);
    let anywhere = ["router", "embed", "embd", "norm", "lm_head", "ffn_gate_inp", "token_types"];
    anywhere.iter().any(|part| name.0.contains(part))
        || name.has_word("gate")
        || name.0 == "output"
        || name.0 == "output.weight"
}

/// Feed-forward weights.
pub fn is_expert(name: &str) -> bool {
    let parts = ["gate_proj", "up_proj", "down_proj", "ffn_gate", "ffn_up", "ffn_down"];
    let numbered = ["w1", "w2", "w3"];
    !is_protected(name)
        && (parts.iter().any(|part| name.contains(part))
            || name.contains("experts") && numbered.iter().any(|part| Framed(name).has_word(part)))
}

/// A name whose parts stand between dots.
struct Framed<'a>(&'a str);

impl Framed<'_> {
    fn has_word(&self, word: &str) -> bool {
        self.0.split('.').any(|part| part == word)
    }
}

/// Whether the layer of that name is chosen.
pub(super) fn chosen(layers: Layers, patterns: &[&str], name: &str) -> bool {
    match layers {
        Layers::All => !is_protected(name),
        Layers::Experts => is_expert(name),
        Layers::Patterns => patterns.iter().any(|pattern| name.contains(pattern)),
    }
}

/// Refuses masks that cannot be meant.
pub(super) fn check(layers: Layers, patterns: &[&str]) -> Result<()> {
    match (layers, patterns) {
        (Layers::Patterns, []) => Err(fail!(InvalidArgument, "layers by patterns, but no pattern is given")),
        (Layers::Patterns, _) | (_, []) => Ok(()),
        _ => Err(fail!(InvalidArgument, "patterns are given, but layers are not chosen by them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_models_have_them() {
        for name in [
            "model.layers.0.block_sparse_moe.experts.7.w3",
            "model.layers.3.mlp.gate_proj",
            "model.layers.3.mlp.experts.1.up_proj",
            "blk.0.ffn_down",
            "blk.0.ffn_gate_exps",
        ] {
            assert!(is_expert(name) && !is_protected(name), "{name}");
        }
        for name in [
            "model.layers.0.block_sparse_moe.gate",
            "model.layers.0.mlp.gate.weight",
            "model.layers.0.router.weight",
            "model.embed_tokens",
            "lm_head",
            "output",
            "token_embd",
            "position_embd",
            "embeddings.word_embeddings",
            "blk.0.ffn_gate_inp",
            "blk.0.attn_norm",
        ] {
            assert!(is_protected(name) && !is_expert(name), "{name}");
        }
        for name in ["blk.0.attn_output", "model.layers.0.self_attn.o_proj", "encoder.layer.0.output.dense"] {
            assert!(!is_protected(name) && !is_expert(name), "{name}");
        }
        assert!(chosen(Layers::Patterns, &["embd", "x"], "token_embd"));
        assert!(check(Layers::Patterns, &[]).is_err() && check(Layers::All, &["x"]).is_err());
    }
}
