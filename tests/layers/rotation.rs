//! Files that declare rotated weights (`prism.hadamard.*`).

use crate::c::*;
use crate::gguf_writer::{File, Kv};

const NAMED: &str = "blk.0.attn_q";
const TABLE: &str = "token_embd";
const OTHER: &str = "blk.0.ffn_up";

/// A file of three layers; `change` may replace (or, with `None`, leave out) a key.
fn file(change: Option<(&str, Option<Kv>)>) -> Vec<u8> {
    let text = |text: &str| Kv::Bytes(text.as_bytes().to_vec());
    let mut keys = vec![
        ("version", Kv::U32(1)),
        ("block_size", Kv::U32(32)),
        ("transform", text("normalized-sylvester-walsh-hadamard")),
        ("axis", text("input-last-dimension")),
        ("sign_mode", text("identity")),
        ("weight_names", Kv::Strings(vec!["blk.0.attn_q.weight"])),
        ("inverse_weight_names", Kv::Strings(vec!["token_embd.weight"])),
    ];
    match change {
        Some((key, Some(value))) => {
            keys.retain(|(k, _)| *k != key);
            keys.push((Box::leak(key.to_owned().into_boxed_str()), value));
        }
        Some((key, None)) => keys.retain(|(k, _)| *k != key),
        None => {}
    }
    let mut file = File::new();
    for (key, value) in keys {
        file = file.kv(&format!("prism.hadamard.{key}"), value);
    }
    for name in [NAMED, OTHER, TABLE] {
        file = file.tensor(&format!("{name}.weight"), &[32, 4], 2, 4 * 18);
    }
    file.build()
}

#[test]
fn rotated_layers_are_rotated_and_others_are_not() {
    let model = Model::memory(&file(None), 0).unwrap();
    assert!(model.layers().iter().all(|layer| layer.info.status.0 == 0));
    for (name, block) in [(NAMED, 32), (TABLE, 32), (OTHER, 0)] {
        for name in [name.to_owned(), format!("{name}.weight")] {
            let layer = model.open(&name, &options()).unwrap();
            assert_eq!(layer.info().rotation_block, block, "{name}");
        }
    }
}

#[test]
fn a_declaration_that_is_not_understood_closes_the_file() {
    let text = |text: &str| Some(Kv::Bytes(text.as_bytes().to_vec()));
    for (key, value) in [
        ("version", Some(Kv::U32(2))),
        ("version", text("1")),
        ("version", None),
        ("block_size", Some(Kv::U32(48))),
        ("block_size", Some(Kv::U32(0))),
        ("block_size", None),
        ("transform", text("normalized-fwht")),
        ("transform", None),
        ("axis", text("output")),
        ("axis", Some(Kv::U8(0))),
        ("sign_mode", text("random")),
        ("weight_names", None),
        ("weight_names", text("blk.0.attn_q.weight")),
        ("weight_names", Some(Kv::Strings(vec!["blk.0.attn_q"]))), // no tensor: it means something else
        ("weight_names", Some(Kv::Nested(1))),
        ("inverse_weight_names", Some(Kv::Strings(vec!["elsewhere"]))),
    ] {
        let model = Model::memory(&file(Some((key, value))), 0).unwrap();
        for name in [NAMED, OTHER, TABLE, "blk.0.ffn_up.weight"] {
            let failure = model.refused(name, &options());
            assert_eq!(failure.0, bl_status::BL_ERROR_UNSUPPORTED);
            assert!(failure.1.contains(&format!("prism.hadamard.{key}")), "{failure:?}");
            assert!(failure.1.contains(name), "{failure:?}");
        }
        assert!(model.layers().iter().all(|l| l.info.status.0 == bl_status::BL_ERROR_UNSUPPORTED as u32));
    }
    // Without tables and with signs it is understood.
    let model = Model::memory(&file(Some(("inverse_weight_names", None))), 0).unwrap();
    model.open(TABLE, &options()).unwrap();
    let signs = file(Some(("sign_mode", text("explicit"))));
    let model = Model::memory(&signs, 0).unwrap();
    model.open(OTHER, &options()).unwrap();
    // The signs themselves are missing: who needs them is broken.
    for name in [NAMED, TABLE] {
        assert_eq!(model.refused(name, &options()).0, bl_status::BL_ERROR_BAD_FILE);
        assert_eq!(model.named(name).unwrap().info.status.0, bl_status::BL_ERROR_BAD_FILE as u32);
    }
}
