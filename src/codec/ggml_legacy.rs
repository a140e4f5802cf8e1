//! ggml's blocks of 32 with one f16 scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! ```text
//! Q4_0, 18 bytes   d f16 | qs[16]                    w = d (q - 8)
//! Q4_1, 20 bytes   d f16 | m f16 | qs[16]            w = d q + m
//! Q5_0, 22 bytes   d f16 | qh u32 | qs[16]           w = d (q - 16)
//! Q5_1, 24 bytes   d f16 | m f16 | qh u32 | qs[16]   w = d q + m
//! Q8_0, 34 bytes   d f16 | q i8[32]                  w = d q
//!                  qs[j]: low nibble = element j, high nibble = element j + 16
//!                  qh: bit j = fifth bit of element j
//! ```
//! Source: the GGUF format's reference, ggml `ggml-quants.c` (commit d99724f2): `dequantize_row_*`
//! for the meaning, `quantize_row_*_ref` for the rounding. Encoding is byte for byte theirs.

use std::cmp::Ordering;

use super::bits::{flip_signs, pack_nibbles, spread, unpack_nibbles};
use super::blocks::{Blocks, abs_max, half_at, inverse, put_exact_half, put_half};
use crate::error::Result;
use crate::layout::{Layout, Offset, Row};
use crate::nearest;
use crate::types::Type;

const BLOCK: usize = 32;
/// The sign of a float. Without it, magnitudes are in the order of their bits.
const SIGN: u32 = 1 << 31;

pub(super) static Q4_0: Blocks = Blocks {
    ty: Type::Q4_0,
    layout: Layout::groups(4, 8, BLOCK, Offset::None),
    decode: |bytes, row| {
        for ((block, codes), scale) in blocks::<18>(bytes, &mut row.codes).zip(&mut row.scales) {
            *scale = half_at(block, 0);
            unpack_nibbles(tail(block), codes);
        }
    },
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks().0.iter().zip(bytes.as_chunks_mut::<18>().0) {
            let codes = encode_symmetric(w, 8, block)?;
            pack_nibbles(&codes, &mut block[2..]);
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        for (codes, scale, block) in stored_blocks::<18>(row, bytes) {
            put_exact_half(block, 0, scale)?;
            pack_nibbles(codes, &mut block[2..]);
        }
        Ok(())
    }),
};

pub(super) static Q4_1: Blocks = Blocks {
    ty: Type::Q4_1,
    layout: Layout::groups(4, 0, BLOCK, Offset::Minimum),
    decode: |bytes, row| {
        let scales = row.scales.iter_mut().zip(&mut row.minimums);
        for ((block, codes), (scale, minimum)) in blocks::<20>(bytes, &mut row.codes).zip(scales) {
            *scale = half_at(block, 0);
            *minimum = half_at(block, 2);
            unpack_nibbles(tail(block), codes);
        }
    },
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks().0.iter().zip(bytes.as_chunks_mut::<20>().0) {
            let codes = encode_affine(w, 15, block)?;
            pack_nibbles(&codes, &mut block[4..]);
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        for ((codes, scale, block), minimum) in stored_blocks::<20>(row, bytes).zip(&row.minimums) {
            put_exact_half(block, 0, scale)?;
            put_exact_half(block, 2, *minimum)?;
            pack_nibbles(codes, &mut block[4..]);
        }
        Ok(())
    }),
};

pub(super) static Q5_0: Blocks = Blocks {
    ty: Type::Q5_0,
    layout: Layout::groups(5, 16, BLOCK, Offset::None),
    decode: |bytes, row| {
        for ((block, codes), scale) in blocks::<22>(bytes, &mut row.codes).zip(&mut row.scales) {
            *scale = half_at(block, 0);
            unpack_nibbles(tail(block), codes);
            add_fifth_bits([block[2], block[3], block[4], block[5]], codes);
        }
    },
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks().0.iter().zip(bytes.as_chunks_mut::<22>().0) {
            let codes = encode_symmetric(w, 16, block)?;
            put_five_bits(&codes, &mut block[2..]);
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        for (codes, scale, block) in stored_blocks::<22>(row, bytes) {
            put_exact_half(block, 0, scale)?;
            put_five_bits(codes, &mut block[2..]);
        }
        Ok(())
    }),
};

pub(super) static Q5_1: Blocks = Blocks {
    ty: Type::Q5_1,
    layout: Layout::groups(5, 0, BLOCK, Offset::Minimum),
    decode: |bytes, row| {
        let scales = row.scales.iter_mut().zip(&mut row.minimums);
        for ((block, codes), (scale, minimum)) in blocks::<24>(bytes, &mut row.codes).zip(scales) {
            *scale = half_at(block, 0);
            *minimum = half_at(block, 2);
            unpack_nibbles(tail(block), codes);
            add_fifth_bits([block[4], block[5], block[6], block[7]], codes);
        }
    },
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks().0.iter().zip(bytes.as_chunks_mut::<24>().0) {
            let codes = encode_affine(w, 31, block)?;
            put_five_bits(&codes, &mut block[4..]);
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        for ((codes, scale, block), minimum) in stored_blocks::<24>(row, bytes).zip(&row.minimums) {
            put_exact_half(block, 0, scale)?;
            put_exact_half(block, 2, *minimum)?;
            put_five_bits(codes, &mut block[4..]);
        }
        Ok(())
    }),
};

pub(super) static Q8_0: Blocks = Blocks {
    ty: Type::Q8_0,
    layout: Layout::groups(8, 128, BLOCK, Offset::None),
    decode: |bytes, row| {
        for ((block, codes), scale) in blocks::<34>(bytes, &mut row.codes).zip(&mut row.scales) {
            *scale = half_at(block, 0);
            flip_signs(&block[2..], codes); // signed q to unsigned q + 128
        }
    },
    encode: Some(|weights, bytes| {
        for (w, block) in weights.as_chunks::<BLOCK>().0.iter().zip(bytes.as_chunks_mut::<34>().0) {
            let d = abs_max(w) / 127.0;
            let id = inverse(d);
            put_half(block, 0, d)?;
            for (v, q) in w.iter().zip(&mut block[2..]) {
                *q = nearest::byte(nearest::half_away((v * id).clamp(-128.0, 127.0)));
            }
        }
        Ok(())
    }),
    store: Some(|row, bytes| {
        for (codes, scale, block) in stored_blocks::<34>(row, bytes) {
            put_exact_half(block, 0, scale)?;
            for (q, code) in block[2..].iter_mut().zip(codes) {
                *q = code ^ 0x80;
            }
        }
        Ok(())
    }),
};

/// The blocks of a row beside the codes they decode into.
fn blocks<'a, const BYTES: usize>(
    bytes: &'a [u8],
    codes: &'a mut [u8],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [u8; BLOCK])> {
    bytes.as_chunks().0.iter().zip(codes.as_chunks_mut().0)
}

/// The codes and the scale of each block beside its place.
fn stored_blocks<'a, const BYTES: usize>(
    row: &'a Row,
    bytes: &'a mut [u8],
) -> impl Iterator<Item = (&'a [u8; BLOCK], f32, &'a mut [u8; BYTES])> {
    let parts = row.codes.as_chunks().0.iter().zip(&row.scales);
    parts.zip(bytes.as_chunks_mut().0).map(|((codes, scale), block)| (codes, *scale, block))
}

/// The nibbles: the last 16 bytes of a block.
fn tail<const BYTES: usize>(block: &[u8; BYTES]) -> &[u8; 16] {
    const { assert!(BYTES >= 16) };
    block.last_chunk().unwrap_or(&[0; 16])
}

fn add_fifth_bits(qh: [u8; 4], codes: &mut [u8; BLOCK]) {
    for (codes, bits) in codes.as_chunks_mut::<8>().0.iter_mut().zip(qh) {
        *codes = (u64::from_le_bytes(*codes) | spread(bits) << 4).to_le_bytes();
    }
}

/// Writes 5-bit codes as `qh` and `qs`.
fn put_five_bits(codes: &[u8; BLOCK], bytes: &mut [u8]) {
    let qh = (0..BLOCK).fold(0u32, |qh, j| qh | (codes[j] as u32 >> 4) << j);
    bytes[..4].copy_from_slice(&qh.to_le_bytes());
    pack_nibbles(&codes.map(|q| q & 15), &mut bytes[4..]);
}

/// Writes the scale, and gives the codes `q + zero`, of which there are `2 * zero`.
fn encode_symmetric(w: &[f32; BLOCK], zero: u8, block: &mut [u8]) -> Result<[u8; BLOCK]> {
    // The signed value of largest magnitude becomes code 0: it uses the range -zero..zero-1 best.
    let largest = w.iter().fold(0i32, |max, v| max.max(v.to_bits() as i32));
    let least = w.iter().fold(0i32, |max, v| max.max((v.to_bits() ^ SIGN) as i32));
    let extreme = match largest.cmp(&least) {
        Ordering::Greater => f32::from_bits(largest as u32),
        Ordering::Less => f32::from_bits(least as u32 ^ SIGN),
        _ if largest == 0 => 0.0,
        // Both are there: the first one.
        _ => w.iter().copied().find(|v| v.to_bits() & !SIGN == largest as u32).unwrap_or(0.0),
    };
    let d = extreme / -(zero as f32);
    let id = inverse(d);
    put_half(block, 0, d)?;
    let (middle, top) = (zero as f32 + 0.5, 2.0 * zero as f32 - 1.0);
    let mut codes = [0; BLOCK];
    for (v, code) in w.iter().zip(&mut codes) {
        *code = nearest::byte(nearest::floor((v * id + middle).clamp(0.0, top)));
    }
    Ok(codes)
}

/// Writes scale and minimum, and gives the codes 0..=levels.
fn encode_affine(w: &[f32; BLOCK], levels: u8, block: &mut [u8]) -> Result<[u8; BLOCK]> {
    let min = w.iter().copied().fold(f32::MAX, |a, v| if v < a { v } else { a });
    let max = w.iter().copied().fold(-f32::MAX, |a, v| if v > a { v } else { a });
    let d = (max - min) / levels as f32;
    let id = inverse(d);
    put_half(block, 0, d)?;
    put_half(block, 2, min)?;
    let top = levels as f32;
    let mut codes = [0; BLOCK];
    for (v, code) in w.iter().zip(&mut codes) {
        *code = nearest::byte(nearest::floor(((v - min) * id + 0.5).clamp(0.0, top)));
    }
    Ok(codes)
}
