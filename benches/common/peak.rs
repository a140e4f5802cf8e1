//! Loops that do nothing but read or multiply and add: how fast a machine is at that. Shared by
//! benches/roofline.rs and benches/peers. x86-64.

use core::arch::x86_64::*;

/// Multiply-adds of a step of each.
pub(crate) const VNNI512: usize = 16 * 64;
pub(crate) const VNNI256: usize = 12 * 32;
pub(crate) const MADD: usize = 12 * 32;
pub(crate) const FMA512: usize = 16 * 16;
pub(crate) const FMA256: usize = 12 * 8;

/// Keeps the compiler from computing the loop beforehand, at no instruction.
macro_rules! opaque {
    ($class:ident, $v:expr) => {
        // SAFETY: no instruction.
        unsafe { core::arch::asm!("/* {0} */", inout($class) $v, options(nomem, nostack, preserves_flags)) }
    };
}

#[target_feature(enable = "avx512f,avx512vnni")]
pub(crate) fn vnni512(steps: usize) -> i32 {
    let (a, b) = (_mm512_set1_epi8(3), _mm512_set1_epi8(5));
    let mut acc = [_mm512_setzero_si512(); 16];
    for _ in 0..steps {
        for acc in &mut acc {
            *acc = _mm512_dpbusd_epi32(*acc, a, b);
        }
    }
    acc.iter().fold(0, |s, v| s.wrapping_add(_mm512_reduce_add_epi32(*v)))
}

#[target_feature(enable = "avx2,avxvnni")]
pub(crate) fn vnni256(steps: usize) -> i32 {
    let (a, b) = (_mm256_set1_epi8(3), _mm256_set1_epi8(5));
    let mut acc = [_mm256_setzero_si256(); 12];
    for _ in 0..steps {
        for acc in &mut acc {
            *acc = _mm256_dpbusd_avx_epi32(*acc, a, b);
        }
    }
    acc.iter().fold(0, |s, v| s.wrapping_add(_mm256_extract_epi32::<0>(*v)))
}

/// vpmaddubsw, vpmaddwd with ones, vpaddd: exact for all codes of 7 bits and bytes of x.
#[target_feature(enable = "avx2")]
pub(crate) fn madd(steps: usize) -> i32 {
    let (mut a, b, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi8(5), _mm256_set1_epi16(1));
    let mut acc = [_mm256_setzero_si256(); 12];
    for _ in 0..steps {
        for acc in &mut acc {
            opaque!(ymm_reg, a);
            *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    }
    acc.iter().fold(0, |s, v| s.wrapping_add(_mm256_extract_epi32::<0>(*v)))
}

/// vpmaddubsw, vpaddw: as long as 16-bit sums hold.
#[target_feature(enable = "avx2")]
pub(crate) fn madd16(steps: usize) -> i32 {
    let (mut a, b) = (_mm256_set1_epi8(3), _mm256_set1_epi8(5));
    let mut acc = [_mm256_setzero_si256(); 12];
    for _ in 0..steps {
        for acc in &mut acc {
            opaque!(ymm_reg, a);
            *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(a, b));
        }
    }
    acc.iter().fold(0, |s, v| s.wrapping_add(_mm256_extract_epi32::<0>(*v)))
}

#[target_feature(enable = "avx512f")]
pub(crate) fn fma512(steps: usize) -> f32 {
    let (a, b) = (_mm512_set1_ps(1.000_001), _mm512_set1_ps(1e-9));
    let mut acc = [_mm512_set1_ps(1.0); 16];
    for _ in 0..steps {
        for acc in &mut acc {
            *acc = _mm512_fmadd_ps(*acc, a, b);
        }
    }
    acc.iter().fold(0.0, |s, v| s + _mm512_reduce_add_ps(*v))
}

#[target_feature(enable = "avx2,fma")]
pub(crate) fn fma256(steps: usize) -> f32 {
    let (a, b) = (_mm256_set1_ps(1.000_001), _mm256_set1_ps(1e-9));
    let mut acc = [_mm256_set1_ps(1.0); 12];
    for _ in 0..steps {
        for acc in &mut acc {
            *acc = _mm256_fmadd_ps(*acc, a, b);
        }
    }
    acc.iter().fold(0.0, |s, v| s + _mm256_cvtss_f32(*v))
}

/// One sequential stream, its lines asked for 4 KiB ahead.
#[target_feature(enable = "avx2")]
pub(crate) fn sum(bytes: &[u8]) -> i64 {
    let mut acc = [_mm256_setzero_si256(); 8];
    for lines in bytes.as_chunks::<256>().0 {
        for line in 0..4 {
            // wrapping_add: the address may lie beyond the end; a prefetch of it does nothing.
            let ahead = lines.as_ptr().wrapping_add(4096 + 64 * line);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        for (acc, part) in acc.iter_mut().zip(lines.as_chunks::<32>().0) {
            // SAFETY: `part` is 32 bytes.
            *acc = _mm256_add_epi64(*acc, unsafe { _mm256_loadu_si256(part.as_ptr().cast()) });
        }
    }
    acc.iter().fold(0, |s, v| s.wrapping_add(_mm256_extract_epi64::<0>(*v)))
}
