//! Small codes in bytes: nibbles, 2-bit codes, single bits and base-3 digits.
//!
//! Plain loops over arrays that the compiler turns into vector code: reading a row must be limited by
//! memory, not by this.

/// Splits 16 bytes into 32 nibbles: the low ones first.
pub(super) fn unpack_nibbles(qs: &[u8; 16], codes: &mut [u8; 32]) {
    let (low, high) = codes.split_at_mut(16);
    for ((q, l), h) in qs.iter().zip(low).zip(high) {
        *l = q & 15;
        *h = q >> 4;
    }
}

/// Joins 32 nibbles into 16 bytes, as [`unpack_nibbles`] splits them.
pub(super) fn pack_nibbles(codes: &[u8; 32], qs: &mut [u8]) {
    for (j, q) in qs.iter_mut().enumerate() {
        *q = codes[j] | codes[j + 16] << 4;
    }
}

/// Splits bytes into eight 1-bit codes each, the lowest bit first.
pub(super) fn unpack_bits(bits: &[u8], codes: &mut [u8]) {
    for (bits, codes) in bits.iter().zip(codes.as_chunks_mut::<8>().0) {
        *codes = std::array::from_fn(|j| bits >> j & 1);
    }
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
pub(super) fn unpack_pairs(qs: &[u8], codes: &mut [u8]) {
    for (q, codes) in qs.iter().zip(codes.as_chunks_mut::<4>().0) {
        *codes = [q & 3, q >> 2 & 3, q >> 4 & 3, q >> 6];
    }
}

/// Joins four 2-bit codes a byte, as [`unpack_pairs`] splits them.
pub(super) fn pack_pairs(codes: &[u8], qs: &mut [u8]) {
    for (codes, q) in codes.as_chunks::<4>().0.iter().zip(qs) {
        *q = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6;
    }
}

/// Splits bytes into base-3 digits. A byte is `ceil(v * 256 / 243)` of a number `v` of five digits,
/// the most significant first, so that multiplying it by 3 carries the next digit out at the top.
/// Digit `n` of byte `m` belongs to column `n * C + m`; `codes` says how many digits there are.
pub(super) fn unpack_trits<const C: usize>(bytes: &[u8], codes: &mut [u8]) {
    let mut rest = [0; C];
    rest.copy_from_slice(bytes);
    for codes in codes.as_chunks_mut::<C>().0 {
        for (code, rest) in codes.iter_mut().zip(&mut rest) {
            *code = ((*rest as u16 * 3) >> 8) as u8;
            *rest = rest.wrapping_mul(3);
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

/// The 2-bit code at bit `shift` of each byte.
pub(super) fn unpack_shifted(qs: &[u8], shift: u32, codes: &mut [u8]) {
    for (q, code) in qs.iter().zip(codes) {
        *code = q >> shift & 3;
    }
}

/// Whether a 2-bit code is 3, which no ternary tool writes.
pub(super) fn has_code_three(codes: &[u8]) -> bool {
    codes.iter().fold(0, |any, c| any | (c & (c >> 1))) & 1 != 0
}

/// Reads the 2-bit code 3 as 1, that is the weight 0, as the formats' own readers do.
pub(super) fn three_is_zero(codes: &mut [u8]) {
    for code in codes {
        *code ^= (*code & (*code >> 1)) << 1;
    }
}
