//! 4-bit codes that go through a table of 16 integers: ggml's IQ4_NL, IQ4_XS and MXFP4.
//!
//! ```text
//! IQ4_NL,  18 bytes for 32    d f16 | qs[16]                                    w = d t(q)
//! IQ4_XS, 136 bytes for 256   d f16 | scales_h u16 | scales_l[4] | qs[128]      w = (d sc) t(q)
//! MXFP4,   17 bytes for 32    e u8 | qs[16]                                     w = 2^(e-128) t(q)
//!
//! nibbles, in each 16 bytes: low = elements 0..16, high = elements 16..32
//! sc of group g: low 4 bits: scales_l[g / 2], nibble g % 2; high 2 bits: scales_h, bits 2 g; minus 32
//! ```
//! MXFP4's values are those of E2M1 doubled, so that they are integers, and its scale is halved for
//! it; the halves of the two smallest powers of two are subnormal and exact.
//!
//! Source: ggml `ggml-quants.c` and `ggml-common.h` (commit d99724f2), checked against
//! `gguf.quants` 0.19. Every bit pattern is legal (ggml reads the exponent byte 255, a NaN in OCP's
//! text, as 2^127).

use super::bits::{pack_nibbles, unpack_nibbles};
use super::blocks::{Blocks, abs_max, half_at, put_exact_half, super_blocks};
use crate::error::fail;
use crate::layout::head::{e8m0, e8m0_of};
use crate::layout::{Coded, Layout, Offset, SUPER_BLOCK, ScaleType, Scales, Values};
use crate::types::Type;

/// The values of IQ4_NL and IQ4_XS.
static NON_LINEAR: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
static E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The name of a table in packed files.
pub fn name(table: &[i8; 16]) -> Option<&'static str> {
    TABLES.iter().find(|(_, known)| *known == table).map(|(name, _)| *name)
}

/// The table of that name.
pub fn find(name: &str) -> Option<&'static [i8; 16]> {
    TABLES.iter().find(|(known, _)| *known == name).map(|(_, table)| *table)
}

static TABLES: [(&str, &[i8; 16]); 2] = [("iq4", &NON_LINEAR), ("e2m1", &E2M1_DOUBLED)];

/// The code whose value times `d` is nearest to `w`; the smallest of several.
fn nearest(table: &[i8; 16], d: f32, w: f32) -> u8 {
    let mut best = (0, f32::INFINITY);
    for (code, &v) in table.iter().enumerate() {
        let error = (v as f32 * d - w).abs();
        if error < best.1 {
            best = (code as u8, error);
        }
    }
    best.0
}

const fn layout(table: &'static [i8; 16], scales: Scales, scale_type: ScaleType) -> Layout {
    Layout::Coded(Coded { bits: 4, values: Values::Table(table), scales, scale_type, bases: 1 })
}

const GROUPS: Scales = Scales::Group { len: 32, offset: Offset::None };

pub(super) static IQ4_NL: Blocks = Blocks {
    ty: Type::Iq4Nl,
    layout: layout(&NON_LINEAR, GROUPS, ScaleType::F16),
    decode: |bytes, row| {
        let places = row.codes.as_chunks_mut().0.iter_mut().zip(&mut row.scales);
        for (block, (codes, scale)) in bytes.as_chunks::<18>().0.iter().zip(places) {
            *scale = half_at(block, 0);
            unpack_nibbles(block.last_chunk().unwrap_or(&[0; 16]), codes);
        }
    },
    encode: None,
    store: Some(|row, bytes| {
        let parts = row.codes.as_chunks::<32>().0.iter().zip(&row.scales);
        for ((codes, scale), block) in parts.zip(bytes.as_chunks_mut::<18>().0) {
            put_exact_half(block, 0, *scale)?;
            pack_nibbles(codes, &mut block[2..]);
        }
        Ok(())
    }),
};

pub(super) static IQ4_XS: Blocks = Blocks {
    ty: Type::Iq4Xs,
    layout: layout(&NON_LINEAR, Scales::TwoLevel { len: 32, minimum: false }, ScaleType::F16),
    decode: |bytes, row| {
        let (codes, scales) = (&mut row.codes, &mut row.scales);
        for block in super_blocks::<136, 8>(bytes, codes, scales, &mut row.sub_scales) {
            *block.scale = half_at(block.bytes, 0);
            let high = u16::from_le_bytes([block.bytes[2], block.bytes[3]]);
            for (g, sub) in block.sub_scales.iter_mut().enumerate() {
                let low = block.bytes[4 + g / 2] >> (4 * (g % 2)) & 15;
                *sub = (low as i8 | ((high >> (2 * g) & 3) as i8) << 4) - 32;
            }
            let groups = block.codes.as_chunks_mut().0.iter_mut();
            for (qs, codes) in block.bytes[8..].as_chunks().0.iter().zip(groups) {
                unpack_nibbles(qs, codes);
            }
        }
    },
    encode: None,
    store: Some(|row, bytes| {
        for (b, block) in bytes.as_chunks_mut::<136>().0.iter_mut().enumerate() {
            put_exact_half(block, 0, row.scales[b])?;
            let mut high = 0u16;
            block[4..8].fill(0);
            for (g, sub) in row.sub_scales[8 * b..][..8].iter().enumerate() {
                let sub = (sub + 32) as u8;
                block[4 + g / 2] |= (sub & 15) << (4 * (g % 2));
                high |= ((sub >> 4) as u16) << (2 * g);
            }
            block[2..4].copy_from_slice(&high.to_le_bytes());
            let codes = row.codes[SUPER_BLOCK * b..][..SUPER_BLOCK].as_chunks().0;
            for (codes, qs) in codes.iter().zip(block[8..].as_chunks_mut::<16>().0) {
                pack_nibbles(codes, qs);
            }
        }
        Ok(())
    }),
};

pub(super) static MXFP4: Blocks = Blocks {
    ty: Type::Mxfp4,
    layout: layout(&E2M1_DOUBLED, GROUPS, ScaleType::E8m0),
    decode: |bytes, row| {
        let places = row.codes.as_chunks_mut().0.iter_mut().zip(&mut row.scales);
        for (block, (codes, scale)) in bytes.as_chunks::<17>().0.iter().zip(places) {
            *scale = e8m0(block[0]);
            unpack_nibbles(block.last_chunk().unwrap_or(&[0; 16]), codes);
        }
    },
    // Nearest of E2M1 under the exponent of the largest magnitude, ties to the smaller code: OCP's
    // conversion, as ggml's `quantize_row_mxfp4_ref` has it.
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<17>().0) {
            let largest = abs_max(w);
            let exponent = if largest > 0.0 { largest.log2().floor() as i32 - 2 + 127 } else { 0 };
            block[0] = exponent.clamp(0, 254) as u8;
            let d = e8m0(block[0]);
            let codes = w.map(|w| nearest(&E2M1_DOUBLED, d, w));
            pack_nibbles(&codes, &mut block[1..]);
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        let parts = row.codes.as_chunks::<32>().0.iter().zip(&row.scales);
        for ((codes, scale), block) in parts.zip(bytes.as_chunks_mut::<17>().0) {
            block[0] = e8m0_of(*scale);
            if e8m0(block[0]) != *scale {
                return Err(fail!(InvalidArgument, "a scale of {scale} is no power of two of the format"));
            }
            pack_nibbles(codes, &mut block[1..]);
        }
        Ok(())
    }),
};
