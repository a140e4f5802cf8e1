//! Small codes in bytes: nibbles, 2-bit codes, single bits and base-3 digits.
//!
//! Reading a row must be limited by memory, not by this. Runs of 32 bytes are plain loops, which compilers turn into
//! vectors; they unroll shorter ones into single bytes, so eight of those at a time are taken apart in one 64-bit word.

/// A byte in each of the eight places of a word.
pub(super) const fn each(byte: u8) -> u64 {
    byte as u64 * 0x0101_0101_0101_0101
}

/// Bytes of a run that compilers make vectors of.
const RUN: usize = 32;

/// `code = f(byte)`, as many as both have: `f` works on each byte of a word in its place.
#[inline(always)]
pub(super) fn map(bytes: &[u8], codes: &mut [u8], f: impl Fn(u64) -> u64) {
    let len = bytes.len().min(codes.len());
    let (runs, bytes) = bytes[..len].as_chunks::<RUN>();
    let (code_runs, codes) = codes[..len].as_chunks_mut::<RUN>();
    for (bytes, codes) in runs.iter().zip(code_runs) {
        for (byte, code) in bytes.iter().zip(codes) {
            *code = f(*byte as u64) as u8;
        }
    }
    let (bytes, last_bytes) = bytes.as_chunks::<8>();
    let (codes, last_codes) = codes.as_chunks_mut::<8>();
    for (bytes, codes) in bytes.iter().zip(codes) {
        *codes = f(u64::from_le_bytes(*bytes)).to_le_bytes();
    }
    if !last_bytes.is_empty() {
        let mut word = [0; 8];
        word[..last_bytes.len()].copy_from_slice(last_bytes);
        last_codes.copy_from_slice(&f(u64::from_le_bytes(word)).to_le_bytes()[..last_bytes.len()]);
    }
}

/// As [`map`] in whole runs, with the codes that are there: `code = f(byte, code)`.
#[inline(always)]
pub(super) fn map_onto(bytes: &[u8], codes: &mut [u8], f: impl Fn(u8, u8) -> u8) {
    for (bytes, codes) in bytes.as_chunks::<RUN>().0.iter().zip(codes.as_chunks_mut::<RUN>().0) {
        for (byte, code) in bytes.iter().zip(codes) {
            *code = f(*byte, *code);
        }
    }
}

/// The low nibbles of bytes.
#[inline(always)]
pub(super) fn low_nibbles(bytes: &[u8], codes: &mut [u8]) {
    map(bytes, codes, |q| q & each(15));
}

/// The high nibbles of bytes.
#[inline(always)]
pub(super) fn high_nibbles(bytes: &[u8], codes: &mut [u8]) {
    map(bytes, codes, |q| q >> 4 & each(15));
}

/// Splits 16 bytes into 32 nibbles: the low ones first.
#[inline]
pub(super) fn unpack_nibbles(qs: &[u8; 16], codes: &mut [u8; 32]) {
    let (low, high) = codes.split_at_mut(16);
    low_nibbles(qs, low);
    high_nibbles(qs, high);
}

/// Joins 32 nibbles into 16 bytes, as [`unpack_nibbles`] splits them.
pub(super) fn pack_nibbles(codes: &[u8; 32], qs: &mut [u8]) {
    for (j, q) in qs.iter_mut().enumerate() {
        *q = codes[j] | codes[j + 16] << 4;
    }
}

/// Splits bytes into eight 1-bit codes each, the lowest bit first.
#[inline]
pub(super) fn unpack_bits(bits: &[u8], codes: &mut [u8]) {
    for (bits, codes) in bits.iter().zip(codes.as_chunks_mut::<8>().0) {
        *codes = SPREAD[*bits as usize].to_le_bytes();
    }
}

/// [`spread`] of every byte.
static SPREAD: [u64; 256] = {
    let mut table = [0; 256];
    let mut bits = 0;
    while bits < 256 {
        table[bits] = spread(bits as u8);
        bits += 1;
    }
    table
};

/// Bit j of a byte as byte j.
#[inline(always)]
pub(super) const fn spread(bits: u8) -> u64 {
    // Byte j keeps bit j alone, and carries it to its top: at most 0x80 + 0x7f.
    ((each(bits) & 0x8040_2010_0804_0201) + each(0x7f)) >> 7 & each(1)
}

/// Joins the signs of weights, 1 for `w >= 0`, as [`unpack_bits`] splits them.
pub(super) fn pack_signs(weights: &[f32], bits: &mut [u8]) {
    for (weights, bits) in weights.chunks(8).zip(bits) {
        *bits = weights.iter().enumerate().fold(0, |bits, (j, w)| bits | ((*w >= 0.0) as u8) << j);
    }
}

/// Joins eight 1-bit codes a byte, as [`unpack_bits`] splits them.
pub(super) fn pack_bits(codes: &[u8], bits: &mut [u8]) {
    for (codes, bits) in codes.as_chunks::<8>().0.iter().zip(bits) {
        *bits = (0..8).fold(0, |bits, j| bits | codes[j] << j);
    }
}

/// Splits bytes into four 2-bit codes each, the lowest bits first.
#[inline]
pub(super) fn unpack_pairs(qs: &[u8], codes: &mut [u8]) {
    let pair = |a: u8, b: u8| {
        let word = a as u64 | (b as u64) << 32;
        (word | word << 6 | word << 12 | word << 18) & each(3)
    };
    // Bytes past the last code would shift what stands in the remainder.
    let (pairs, rest) = qs[..qs.len().min(codes.len() / 4)].as_chunks::<2>();
    let mut codes = codes.chunks_exact_mut(8);
    for (&[a, b], codes) in pairs.iter().zip(&mut codes) {
        codes.copy_from_slice(&pair(a, b).to_le_bytes());
    }
    for (q, codes) in rest.iter().zip(codes.into_remainder().as_chunks_mut::<4>().0) {
        codes.copy_from_slice(&pair(*q, 0).to_le_bytes()[..4]);
    }
}

/// Joins four 2-bit codes a byte, as [`unpack_pairs`] splits them.
pub(super) fn pack_pairs(codes: &[u8], qs: &mut [u8]) {
    for (codes, q) in codes.as_chunks::<4>().0.iter().zip(qs) {
        *q = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6;
    }
}

/// Splits `A + B + C` bytes into base-3 digits. A byte is `ceil(v * 256 / 243)` of a number `v` of five digits,
/// the most significant first, so that multiplying it by 3 carries the next digit out at the top: 1 from 86 on,
/// 2 from 171 on. The bytes are three stages: digit `n` of byte `m` of the first belongs to column `n * A + m`, those
/// of the others follow likewise. Bytes of the last stage have four digits, the others five.
///
/// All stages go together, in `PADDED` bytes: a whole number of runs (see above).
#[inline]
pub(super) fn unpack_trits<const A: usize, const B: usize, const C: usize, const PADDED: usize>(
    bytes: &[u8],
    codes: &mut [u8],
) {
    const { assert!(A + B + C <= PADDED && PADDED.is_multiple_of(RUN)) };
    let (first, codes) = codes.split_at_mut(5 * A);
    let (second, third) = codes.split_at_mut(5 * B);
    let mut stages = [(first, A), (second, B), (third, C)].map(|(codes, len)| codes.chunks_exact_mut(len));
    let mut rest = [0; PADDED];
    rest[..A + B + C].copy_from_slice(&bytes[..A + B + C]);
    for _ in 0..5 {
        let mut digits = [0; PADDED];
        for (digit, rest) in digits.iter_mut().zip(&mut rest) {
            *digit = (*rest >= 86) as u8 + (*rest >= 171) as u8;
            *rest = rest.wrapping_mul(3);
        }
        let mut digits = &digits[..];
        for stage in &mut stages {
            let Some(codes) = stage.next() else { break };
            let (of_stage, others) = digits.split_at(codes.len());
            codes.copy_from_slice(of_stage);
            digits = others;
        }
    }
}

/// Joins base-3 digits, as [`unpack_trits`] splits them; a missing fifth digit is 0.
pub(super) fn pack_trits(codes: &[u8], bytes: &mut [u8]) {
    let count = bytes.len();
    for (m, byte) in bytes.iter_mut().enumerate() {
        let digit = |n: usize| codes.get(n * count + m).copied().unwrap_or(0) as u32;
        let v = (0..5).fold(0, |v, n| v * 3 + digit(n));
        *byte = (v * 256).div_ceil(243) as u8;
    }
}

/// Splits bytes into two 4-bit codes each, the low one first; an odd last code has the low half.
pub(super) fn unpack_nibble_stream(qs: &[u8], codes: &mut [u8]) {
    let whole = codes.len() / 2;
    let (pairs, odd) = codes.as_chunks_mut::<2>();
    for (q, pair) in qs.iter().zip(pairs) {
        *pair = [q & 15, q >> 4];
    }
    if let ([last], Some(q)) = (odd, qs.get(whole)) {
        *last = q & 15;
    }
}

/// Bytes with their top bit flipped.
#[inline(always)]
pub(super) fn flip_signs(qs: &[u8], codes: &mut [u8]) {
    map(qs, codes, |q| q ^ each(0x80));
}

/// The 2-bit code at bit `shift` of each byte.
#[inline(always)]
pub(super) fn unpack_shifted(qs: &[u8], shift: u32, codes: &mut [u8]) {
    map(qs, codes, |q| q >> shift & each(3));
}

/// The same, and whether none of the codes is 3.
pub(super) fn unpack_ternary(qs: &[u8], shift: u32, codes: &mut [u8]) -> bool {
    let mut threes = 0;
    for (q, code) in qs.iter().zip(codes) {
        *code = q >> shift & 3;
        threes |= *code & *code >> 1;
    }
    threes == 0
}

/// Adds bit `from` of each byte to its code as bit `to`, which is 0 there.
#[inline(always)]
pub(super) fn add_bit(bits: &[u8], from: u32, to: u32, codes: &mut [u8]) {
    map_onto(bits, codes, |bits, code| code | (bits >> from & 1) << to);
}

/// Puts the nibble at bit `from` of each byte below its code, which is at most 15.
#[inline(always)]
pub(super) fn add_nibbles(qs: &[u8], from: u32, codes: &mut [u8]) {
    map_onto(qs, codes, |q, code| code << 4 | q >> from & 15);
}

/// Whether a 2-bit code is 3, which no ternary tool writes.
pub(super) fn has_code_three(codes: &[u8]) -> bool {
    let (words, rest) = codes.as_chunks::<8>();
    let any = words.iter().map(|word| u64::from_le_bytes(*word)).fold(0, |any, c| any | (c & (c >> 1)));
    any & each(1) != 0 || rest.iter().any(|c| c & (c >> 1) & 1 != 0)
}

/// Reads the 2-bit code 3 as 1, that is the weight 0, as the formats' own readers do: in bytes of one code.
pub(super) fn three_is_zero(codes: &mut [u8]) {
    let (words, rest) = codes.as_chunks_mut::<8>();
    for word in words {
        *word = threes_to_ones(u64::from_le_bytes(*word)).to_le_bytes();
    }
    for code in rest {
        *code = threes_to_ones(*code as u64) as u8;
    }
}

/// The same for words of four codes a byte.
#[inline(always)]
pub(super) fn threes_to_ones(qs: u64) -> u64 {
    qs ^ (qs & qs >> 1 & each(0x55)) << 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of which any two neighbours differ in many bits.
    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
    }

    #[test]
    fn words_take_bytes_apart_one_by_one() {
        for len in 0..75 {
            let qs = bytes(len);
            for shift in [0, 2, 4, 6] {
                let mut codes = vec![9; len];
                let mut checked = codes.clone();
                unpack_shifted(&qs, shift, &mut codes);
                assert!(qs.iter().zip(&codes).all(|(q, c)| *c == q >> shift & 3), "{len} {shift}");
                assert_eq!(has_code_three(&codes), codes.contains(&3), "{len} {shift}");
                assert_eq!(unpack_ternary(&qs, shift, &mut checked), !codes.contains(&3), "{len} {shift}");
                assert_eq!(checked, codes, "{len} {shift}");
                let before = codes.clone();
                three_is_zero(&mut codes);
                assert!(before.iter().zip(&codes).all(|(b, c)| *c == if *b == 3 { 1 } else { *b }));
            }
            let (mut nibbles, mut pairs, mut bits) = (vec![9; len], vec![9; 4 * len], vec![9; 8 * len]);
            high_nibbles(&qs, &mut nibbles);
            assert!(qs.iter().zip(&nibbles).all(|(q, c)| *c == q >> 4));
            low_nibbles(&qs, &mut nibbles);
            assert!(qs.iter().zip(&nibbles).all(|(q, c)| *c == q & 15));
            unpack_pairs(&qs, &mut pairs);
            assert!(pairs.iter().enumerate().all(|(i, c)| *c == qs[i / 4] >> (2 * (i % 4)) & 3));
            unpack_bits(&qs, &mut bits);
            assert!(bits.iter().enumerate().all(|(i, c)| *c == qs[i / 8] >> (i % 8) & 1));
        }
        let (qs, mut codes) = (bytes(32), [5; 32]);
        add_bit(&qs, 3, 1, &mut codes);
        assert!(qs.iter().zip(codes).all(|(q, c)| c == 5 | (q >> 3 & 1) << 1));
    }

    fn digits<const A: usize, const B: usize, const C: usize, const PADDED: usize>() {
        // Miri would take two minutes for all of them.
        for first in (0..=255u8).step_by(if cfg!(miri) { 15 } else { 1 }) {
            let qs: Vec<u8> =
                (0..A + B + C).map(|m| first.wrapping_add(37u8.wrapping_mul(m as u8))).collect();
            let mut codes = vec![9; 5 * (A + B) + 4 * C];
            unpack_trits::<A, B, C, PADDED>(&qs, &mut codes);
            let mut stages = (&qs[..], &codes[..]);
            for (len, digits) in [(A, 5), (B, 5), (C, 4)] {
                let ((qs, later_qs), (codes, later_codes)) =
                    (stages.0.split_at(len), stages.1.split_at(digits * len));
                stages = (later_qs, later_codes);
                for (m, q) in qs.iter().enumerate() {
                    let mut rest = *q as u32;
                    for n in 0..digits {
                        assert_eq!(codes[n * len + m] as u32, (3 * rest) >> 8, "{len} {q} {n}");
                        rest = (3 * rest) & 255;
                    }
                }
            }
        }
    }

    #[test]
    fn digits_come_out_at_the_top_of_every_byte() {
        digits::<32, 16, 4, 64>();
        digits::<16, 8, 2, 32>();
    }
}
