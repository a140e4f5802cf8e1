//! Ternary and sign blocks with one f16 scale: ggml's TQ1_0, TQ2_0, Q1_0 and Q2_0, the older blocks
//! of Q2_0, and PrismML's PQ2_0 and PTQ1_0.
//!
//! ```text
//! TQ1_0,  54 bytes for 256   qs[48] | qh[4] | d f16   base-3 digits, stages of 32, 16 and 4 bytes
//! TQ2_0,  66 bytes for 256   qs[64] | d f16           e: qs[32 (e / 128) + e % 32], bits 2 (e % 128 / 32)
//! PTQ1_0, 28 bytes for 128   qs[24] | qh[2] | d f16   base-3 digits, stages of 16, 8 and 2 bytes
//! Q1_0,   18 bytes for 128   d f16 | bits[16]         1 = +d, 0 = -d, the lowest bit first
//! Q2_0,   18 bytes for 64    d f16 | qs[16]           e: qs[e / 4], bits 2 (e % 4)
//! PQ2_0,  34 bytes for 128   d f16 | qs[32]           as Q2_0; Q2_0 itself in older files
//!
//! w = d (code - 1)
//! ```
//! The 2-bit code 3 (+2 d) is legal: no tool writes it for ternary weights, all read it so. Every
//! byte is a legal group of base-3 digits.
//!
//! Source: ggml `ggml-quants.c` (commit d99724f2), `quantize_row_*_ref` and `dequantize_row_*`;
//! PrismML's published contract of PQ2_0 and PTQ1_0 (llama.cpp issue 29058).

use super::bits::{
    has_code_three, pack_bits, pack_pairs, pack_signs, pack_trits, unpack_bits, unpack_pairs, unpack_shifted,
    unpack_trits,
};
use super::blocks::{Blocks, abs_max, half_at, inverse, put_exact_half, put_half, ternary_code};
use crate::error::{Result, fail};
use crate::layout::{Coded, Layout, Offset, Row, SUPER_BLOCK, ScaleType, Scales, Values};
use crate::types::Type;

pub(super) static TQ1_0: Blocks = Blocks {
    ty: Type::Tq1_0,
    layout: Layout::groups(2, 1, SUPER_BLOCK, Offset::None),
    decode: |bytes, row| {
        for (block, codes, scale) in blocks::<54, 256>(bytes, row) {
            *scale = half_at(block, 52);
            unpack_trits::<32, 16, 4, 64>(block, codes);
        }
    },
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks::<256>().0.iter().zip(bytes.as_chunks_mut::<54>().0) {
            let codes = encode_ternary(w, block, 52)?;
            encode_stages::<32, 16>(&codes, &mut block[..52]);
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        for (codes, scale, block) in stored_blocks::<54, 256>(row, bytes) {
            check_ternary(codes)?;
            put_exact_half(block, 52, scale)?;
            encode_stages::<32, 16>(codes, &mut block[..52]);
        }
        Ok(())
    }),
};

pub(super) static TQ2_0: Blocks = Blocks {
    ty: Type::Tq2_0,
    layout: Layout::groups(2, 1, SUPER_BLOCK, Offset::None),
    decode: |bytes, row| {
        for (block, codes, scale) in blocks::<66, 256>(bytes, row) {
            *scale = half_at(block, 64);
            for (codes, qs) in codes.as_chunks_mut::<128>().0.iter_mut().zip(block.as_chunks::<32>().0) {
                for (t, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    unpack_shifted(qs, 2 * t as u32, codes);
                }
            }
        }
    },
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks::<256>().0.iter().zip(bytes.as_chunks_mut::<66>().0) {
            let codes = encode_ternary(w, block, 64)?;
            pack_runs(&codes, block);
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        for (codes, scale, block) in stored_blocks::<66, 256>(row, bytes) {
            put_exact_half(block, 64, scale)?;
            pack_runs(codes, block);
        }
        Ok(())
    }),
};

pub(super) static PTQ1_0: Blocks = Blocks {
    ty: Type::Ptq1_0,
    layout: Layout::groups(2, 1, 128, Offset::None),
    decode: |bytes, row| {
        for (block, codes, scale) in blocks::<28, 128>(bytes, row) {
            *scale = half_at(block, 26);
            unpack_trits::<16, 8, 2, 32>(block, codes);
        }
    },
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks::<128>().0.iter().zip(bytes.as_chunks_mut::<28>().0) {
            let codes = encode_ternary(w, block, 26)?;
            encode_stages::<16, 8>(&codes, &mut block[..26]);
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        for (codes, scale, block) in stored_blocks::<28, 128>(row, bytes) {
            check_ternary(codes)?;
            put_exact_half(block, 26, scale)?;
            encode_stages::<16, 8>(codes, &mut block[..26]);
        }
        Ok(())
    }),
};

pub(super) static Q1_0: Blocks = Blocks {
    ty: Type::Q1_0,
    layout: Layout::Coded(Coded {
        bits: 1,
        values: Values::Sign,
        scales: Scales::Group { len: 128, offset: Offset::None },
        scale_type: ScaleType::F16,
        bases: 1,
    }),
    decode: |bytes, row| {
        for (block, codes, scale) in blocks::<18, 128>(bytes, row) {
            *scale = half_at(block, 0);
            unpack_bits(&block[2..], codes);
        }
    },
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks::<128>().0.iter().zip(bytes.as_chunks_mut::<18>().0) {
            // Added in order, as the C reference does: the order decides the last bit.
            let sum = w.iter().fold(0.0f32, |sum, w| sum + w.abs());
            put_half(block, 0, sum / 128.0)?;
            pack_signs(w, &mut block[2..]);
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        for (codes, scale, block) in stored_blocks::<18, 128>(row, bytes) {
            put_exact_half(block, 0, scale)?;
            pack_bits(codes, &mut block[2..]);
        }
        Ok(())
    }),
};

pub(super) static Q2_0: Blocks = Blocks {
    ty: Type::Q2_0,
    layout: Layout::groups(2, 1, 64, Offset::None),
    decode: decode_q2::<18, 64>,
    encode: Some(encode_q2::<18, 64>),
    store: Some(store_q2::<18, 64>),
};

pub(super) static Q2_0_LEGACY: Blocks = Blocks {
    ty: Type::Q2_0Legacy,
    layout: Layout::groups(2, 1, 128, Offset::None),
    decode: decode_q2::<34, 128>,
    encode: Some(encode_q2::<34, 128>),
    store: Some(store_q2::<34, 128>),
};

pub(super) static PQ2_0: Blocks = Blocks {
    ty: Type::Pq2_0,
    layout: Layout::groups(2, 1, 128, Offset::None),
    decode: decode_q2::<34, 128>,
    encode: Some(encode_q2::<34, 128>),
    store: Some(store_q2::<34, 128>),
};

/// The blocks of a row beside the codes and the scale they decode into.
fn blocks<'a, const BYTES: usize, const LEN: usize>(
    bytes: &'a [u8],
    row: &'a mut Row,
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [u8; LEN], &'a mut f32)> {
    let places = row.codes.as_chunks_mut().0.iter_mut().zip(&mut row.scales);
    bytes.as_chunks().0.iter().zip(places).map(|(block, (codes, scale))| (block, codes, scale))
}

/// The codes and the scale of each block beside its place.
fn stored_blocks<'a, const BYTES: usize, const LEN: usize>(
    row: &'a Row,
    bytes: &'a mut [u8],
) -> impl Iterator<Item = (&'a [u8; LEN], f32, &'a mut [u8; BYTES])> {
    let parts = row.codes.as_chunks().0.iter().zip(&row.scales);
    parts.zip(bytes.as_chunks_mut().0).map(|((codes, scale), block)| (codes, *scale, block))
}

/// A base-3 digit holds no 3.
fn check_ternary(codes: &[u8]) -> Result<()> {
    if has_code_three(codes) {
        return Err(fail!(InvalidArgument, "the code 3 among ternary codes"));
    }
    Ok(())
}

/// The 2-bit codes of TQ2_0.
fn pack_runs(codes: &[u8; 256], block: &mut [u8]) {
    for (codes, qs) in codes.as_chunks::<128>().0.iter().zip(block.as_chunks_mut::<32>().0) {
        for (m, q) in qs.iter_mut().enumerate() {
            *q = codes[m] | codes[m + 32] << 2 | codes[m + 64] << 4 | codes[m + 96] << 6;
        }
    }
}

/// Writes `max |w|` at byte `at` as the scale, and gives the codes.
fn encode_ternary<const LEN: usize>(w: &[f32; LEN], block: &mut [u8], at: usize) -> Result<[u8; LEN]> {
    let d = abs_max(w);
    let id = inverse(d);
    put_half(block, at, d)?;
    Ok(w.map(|w| ternary_code(w, id)))
}

/// Base-3 digits in three stages, as [`unpack_trits`] splits them.
fn encode_stages<const A: usize, const B: usize>(codes: &[u8], bytes: &mut [u8]) {
    let (first, rest) = bytes.split_at_mut(A);
    let (second, last) = rest.split_at_mut(B);
    pack_trits(&codes[..5 * A], first);
    pack_trits(&codes[5 * A..5 * (A + B)], second);
    pack_trits(&codes[5 * (A + B)..], last);
}

fn decode_q2<const BYTES: usize, const LEN: usize>(bytes: &[u8], row: &mut Row) {
    for (block, codes, scale) in blocks::<BYTES, LEN>(bytes, row) {
        *scale = half_at(block, 0);
        unpack_pairs(&block[2..], codes);
    }
}

fn encode_q2<const BYTES: usize, const LEN: usize>(weights: &[f32], bytes: &mut [u8]) -> Result<()> {
    for (w, block) in weights.as_chunks::<LEN>().0.iter().zip(bytes.as_chunks_mut::<BYTES>().0) {
        let codes = encode_ternary(w, block, 0)?;
        pack_pairs(&codes, &mut block[2..]);
    }
    Ok(())
}

fn store_q2<const BYTES: usize, const LEN: usize>(row: &Row, bytes: &mut [u8]) -> Result<()> {
    for (codes, scale, block) in stored_blocks::<BYTES, LEN>(row, bytes) {
        put_exact_half(block, 0, scale)?;
        pack_pairs(codes, &mut block[2..]);
    }
    Ok(())
}
