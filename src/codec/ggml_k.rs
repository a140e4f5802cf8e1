//! ggml's K-quants: super-blocks of 256 with integer scales (and minima) for 16 or 32 columns.
//!
//! ```text
//! Q2_K,  84 bytes   scales[16] | qs[64] | d f16 | dmin f16               groups of 16, minima
//! Q3_K, 110 bytes   hmask[32] | qs[64] | scales[12] | d f16              groups of 16
//! Q4_K, 144 bytes   d f16 | dmin f16 | scales[12] | qs[128]              groups of 32, minima
//! Q5_K, 176 bytes   d f16 | dmin f16 | scales[12] | qh[32] | qs[128]     groups of 32, minima
//! Q6_K, 210 bytes   ql[128] | qh[64] | scales i8[16] | d f16             groups of 16
//!
//! w = (d sc) q - (dmin mn)
//!
//! two bits, element e (h = e / 128, r = e % 128):  qs[32 h + r % 32], bits 2 (r / 32)
//! nibbles of Q4_K and Q5_K (c = e / 64):           qs[32 c + e % 32], low where e % 64 < 32
//! nibbles of Q6_K (t = r / 32):                    ql[64 h + 32 (t & 1) + r % 32], low where t < 2
//! single high bits of Q3_K and Q5_K:               byte e % 32, bit e / 32
//! ```
//! Source: ggml `ggml-quants.c` (commit d99724f2), `dequantize_row_q*_K`. Every bit pattern is legal.
//! Their quantisers are searches, not a fixed rule: `quantize` finds codes and scales, and what stands
//! here writes them.

use super::bits::{add_bit, add_nibbles, each, high_nibbles, low_nibbles, unpack_shifted};
use super::blocks::{Blocks, half_at, put_exact_half, super_blocks, super_blocks_with_minima};
use crate::layout::{Layout, Row, SUPER_BLOCK};
use crate::types::Type;

pub(super) static Q2_K: Blocks = Blocks {
    ty: Type::Q2K,
    layout: Layout::two_level(2, 0, 16, true),
    decode: |bytes, row| {
        for (block, minimum, sub_minimums) in super_blocks_with_minima::<84, 16>(bytes, row) {
            *block.scale = half_at(block.bytes, 80);
            *minimum = half_at(block.bytes, 82);
            let places = block.sub_scales.as_chunks_mut().0.iter_mut().zip(sub_minimums.as_chunks_mut().0);
            for (bytes, (scales, minimums)) in block.bytes[..16].as_chunks().0.iter().zip(places) {
                let word = u64::from_le_bytes(*bytes);
                *scales = signed(word & each(15));
                *minimums = signed(word >> 4 & each(15));
            }
            unpack_two_bits(&block.bytes[16..80], block.codes);
        }
    },
    encode: None,
    store: Some(|row, bytes| {
        for (b, block) in bytes.as_chunks_mut::<84>().0.iter_mut().enumerate() {
            let (scales, minima) = (&row.sub_scales[16 * b..][..16], &row.sub_minimums[16 * b..][..16]);
            for ((byte, sc), mn) in block.iter_mut().zip(scales).zip(minima) {
                *byte = *sc as u8 | (*mn as u8) << 4;
            }
            pack_two_bits(codes(row, b), &mut block[16..80]);
            put_exact_half(block, 80, row.scales[b])?;
            put_exact_half(block, 82, row.minimums[b])?;
        }
        Ok(())
    }),
};

pub(super) static Q3_K: Blocks = Blocks {
    ty: Type::Q3K,
    layout: Layout::two_level(3, 4, 16, false),
    decode: |bytes, row| {
        let (codes, scales) = (&mut row.codes, &mut row.scales);
        for block in super_blocks::<110, 16>(bytes, codes, scales, &mut row.sub_scales) {
            *block.scale = half_at(block.bytes, 108);
            unpack_signed_six_bits(&block.bytes[96..108], block.sub_scales);
            unpack_two_bits(&block.bytes[32..96], block.codes);
            // A set bit is 4 more, a clear one -4 in q = code - 4: the third bit of the code.
            add_high_bits(&block.bytes[..32], 2, block.codes);
        }
    },
    encode: None,
    store: Some(|row, bytes| {
        for (b, block) in bytes.as_chunks_mut::<110>().0.iter_mut().enumerate() {
            let codes = codes(row, b);
            put_high_bits(codes, 2, &mut block[..32]);
            pack_two_bits(&codes.map(|q| q & 3), &mut block[32..96]);
            let scales = &mut block[96..108];
            scales.fill(0);
            for (k, sub) in row.sub_scales[16 * b..][..16].iter().enumerate() {
                let sub = (sub + 32) as u8;
                scales[k % 8] |= (sub & 15) << (4 * (k / 8));
                scales[8 + k % 4] |= (sub >> 4) << (2 * (k / 4));
            }
            put_exact_half(block, 108, row.scales[b])?;
        }
        Ok(())
    }),
};

pub(super) static Q4_K: Blocks = Blocks {
    ty: Type::Q4K,
    layout: Layout::two_level(4, 0, 32, true),
    decode: |bytes, row| {
        for (block, minimum, sub_minimums) in super_blocks_with_minima::<144, 8>(bytes, row) {
            *block.scale = half_at(block.bytes, 0);
            *minimum = half_at(block.bytes, 2);
            unpack_six_bits(&block.bytes[4..16], block.sub_scales, sub_minimums);
            unpack_nibble_runs(&block.bytes[16..], block.codes);
        }
    },
    encode: None,
    store: Some(|row, bytes| {
        for (b, block) in bytes.as_chunks_mut::<144>().0.iter_mut().enumerate() {
            put_exact_half(block, 0, row.scales[b])?;
            put_exact_half(block, 2, row.minimums[b])?;
            pack_six_bits(&row.sub_scales[8 * b..][..8], &row.sub_minimums[8 * b..][..8], &mut block[4..16]);
            pack_nibble_runs(codes(row, b), &mut block[16..]);
        }
        Ok(())
    }),
};

pub(super) static Q5_K: Blocks = Blocks {
    ty: Type::Q5K,
    layout: Layout::two_level(5, 0, 32, true),
    decode: |bytes, row| {
        for (block, minimum, sub_minimums) in super_blocks_with_minima::<176, 8>(bytes, row) {
            *block.scale = half_at(block.bytes, 0);
            *minimum = half_at(block.bytes, 2);
            unpack_six_bits(&block.bytes[4..16], block.sub_scales, sub_minimums);
            unpack_nibble_runs(&block.bytes[48..], block.codes);
            add_high_bits(&block.bytes[16..48], 4, block.codes);
        }
    },
    encode: None,
    store: Some(|row, bytes| {
        for (b, block) in bytes.as_chunks_mut::<176>().0.iter_mut().enumerate() {
            put_exact_half(block, 0, row.scales[b])?;
            put_exact_half(block, 2, row.minimums[b])?;
            pack_six_bits(&row.sub_scales[8 * b..][..8], &row.sub_minimums[8 * b..][..8], &mut block[4..16]);
            put_high_bits(codes(row, b), 4, &mut block[16..48]);
            pack_nibble_runs(&codes(row, b).map(|q| q & 15), &mut block[48..]);
        }
        Ok(())
    }),
};

pub(super) static Q6_K: Blocks = Blocks {
    ty: Type::Q6K,
    layout: Layout::two_level(6, 32, 16, false),
    decode: |bytes, row| {
        let (codes, scales) = (&mut row.codes, &mut row.scales);
        for block in super_blocks::<210, 16>(bytes, codes, scales, &mut row.sub_scales) {
            *block.scale = half_at(block.bytes, 208);
            *block.sub_scales = std::array::from_fn(|j| block.bytes[192 + j] as i8);
            // The high pairs lie as the low ones of Q2_K do; the nibbles come in below them.
            unpack_two_bits(&block.bytes[128..192], block.codes);
            let halves = block.codes.as_chunks_mut::<128>().0;
            for (codes, ql) in halves.iter_mut().zip(block.bytes[..128].as_chunks::<64>().0) {
                let (low, high) = codes.split_at_mut(64);
                add_nibbles(ql, 0, low);
                add_nibbles(ql, 4, high);
            }
        }
    },
    encode: None,
    store: Some(|row, bytes| {
        for (b, block) in bytes.as_chunks_mut::<210>().0.iter_mut().enumerate() {
            let codes = codes(row, b);
            for (codes, ql) in codes.as_chunks::<128>().0.iter().zip(block[..128].as_chunks_mut::<64>().0) {
                for (i, q) in ql.iter_mut().enumerate() {
                    *q = codes[i] & 15 | codes[i + 64] << 4;
                }
            }
            pack_two_bits(&codes.map(|q| q >> 4), &mut block[128..192]);
            for (byte, sub) in block[192..208].iter_mut().zip(&row.sub_scales[16 * b..][..16]) {
                *byte = *sub as u8;
            }
            put_exact_half(block, 208, row.scales[b])?;
        }
        Ok(())
    }),
};

/// 64 bytes of two-bit codes: two halves of 32 bytes, four runs of 32 columns each.
fn unpack_two_bits(qs: &[u8], codes: &mut [u8; SUPER_BLOCK]) {
    let halves = codes.as_chunks_mut::<128>().0;
    for (codes, qs) in halves.iter_mut().zip(qs.as_chunks::<32>().0) {
        for (t, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            unpack_shifted(qs, 2 * t as u32, codes);
        }
    }
}

/// 128 bytes of nibbles: 32 bytes hold 32 columns in their low and the next 32 in their high halves.
fn unpack_nibble_runs(qs: &[u8], codes: &mut [u8; SUPER_BLOCK]) {
    for (codes, qs) in codes.as_chunks_mut::<64>().0.iter_mut().zip(qs.as_chunks::<32>().0) {
        let (low, high) = codes.split_at_mut(32);
        low_nibbles(qs, low);
        high_nibbles(qs, high);
    }
}

/// Adds bit `e / 32` of byte `e % 32` to the code of element `e` as its bit `at`.
fn add_high_bits(bits: &[u8], at: u32, codes: &mut [u8; SUPER_BLOCK]) {
    for (run, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        add_bit(bits, run as u32, at, codes);
    }
}

/// The 12 bytes that hold eight 6-bit scales and eight 6-bit minima: the first four of each lie in
/// the low six bits of bytes 0..4 and 4..8, the others in nibbles of bytes 8..12 with their two high
/// bits on top of the first.
fn unpack_six_bits(s: &[u8], scales: &mut [i8; 8], minima: &mut [i8; 8]) {
    for k in 0..4 {
        scales[k] = (s[k] & 63) as i8;
        minima[k] = (s[k + 4] & 63) as i8;
        scales[k + 4] = (s[k + 8] & 15 | s[k] >> 6 << 4) as i8;
        minima[k + 4] = (s[k + 8] >> 4 | s[k + 4] >> 6 << 4) as i8;
    }
}

/// The 12 bytes of Q3_K that hold sixteen 6-bit scales, 32 more than they stand for: nibbles in the first eight, low
/// ones first, and pairs of high bits in the last four, four pairs of the same place after another.
fn unpack_signed_six_bits(s: &[u8], scales: &mut [i8; 16]) {
    let Some((nibbles, &[a, b, c, d])) = s.split_first_chunk::<8>() else { return };
    let nibbles = u64::from_le_bytes(*nibbles);
    let pairs = u32::from_le_bytes([a, b, c, d]) as u64;
    let pairs = pairs | pairs << 30;
    for (half, scales) in scales.as_chunks_mut().0.iter_mut().enumerate() {
        let stored = nibbles >> (4 * half) & each(15) | (pairs >> (4 * half) & each(3)) << 4;
        // Less 32 in each byte: the top bit, which is free, keeps it from borrowing.
        *scales = signed(((stored | each(0x80)) - each(32)) ^ each(0x80));
    }
}

/// The bytes of a word as integers.
#[inline(always)]
fn signed(word: u64) -> [i8; 8] {
    word.to_le_bytes().map(|byte| byte as i8)
}

/// The codes of super-block `b` of a row of whole super-blocks.
fn codes<'a>(row: &'a Row, b: usize) -> &'a [u8; SUPER_BLOCK] {
    &row.codes.as_chunks().0[b]
}

/// The inverse of [`unpack_two_bits`].
fn pack_two_bits(codes: &[u8; SUPER_BLOCK], qs: &mut [u8]) {
    for (codes, qs) in codes.as_chunks::<128>().0.iter().zip(qs.as_chunks_mut::<32>().0) {
        for (m, q) in qs.iter_mut().enumerate() {
            *q = codes[m] | codes[m + 32] << 2 | codes[m + 64] << 4 | codes[m + 96] << 6;
        }
    }
}

/// The inverse of [`unpack_nibble_runs`].
fn pack_nibble_runs(codes: &[u8; SUPER_BLOCK], qs: &mut [u8]) {
    for (codes, qs) in codes.as_chunks::<64>().0.iter().zip(qs.as_chunks_mut::<32>().0) {
        for (m, q) in qs.iter_mut().enumerate() {
            *q = codes[m] | codes[m + 32] << 4;
        }
    }
}

/// The inverse of [`add_high_bits`].
fn put_high_bits(codes: &[u8; SUPER_BLOCK], at: u32, bits: &mut [u8]) {
    for (m, byte) in bits.iter_mut().enumerate() {
        *byte = (0..8).fold(0, |byte, run| byte | (codes[32 * run + m] >> at & 1) << run);
    }
}

/// The inverse of [`unpack_six_bits`].
fn pack_six_bits(scales: &[i8], minima: &[i8], s: &mut [u8]) {
    let byte = |v: i8| v as u8;
    for k in 0..4 {
        s[k] = byte(scales[k]) | byte(scales[k + 4]) >> 4 << 6;
        s[k + 4] = byte(minima[k]) | byte(minima[k + 4]) >> 4 << 6;
        s[k + 8] = byte(scales[k + 4]) & 15 | byte(minima[k + 4]) << 4;
    }
}
