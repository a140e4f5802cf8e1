//! Loops that do nothing but read or multiply and add: how fast a machine is at that. Shared by
//! benches/roofline.rs and benches/peers. x86-64.

use core::arch::x86_64::*;

use std::hint::black_box;

/// A loop of multiply-adds in registers that this CPU can run.
pub(crate) struct Loop {
    /// The instructions.
    pub(crate) by: &'static str,
    /// Multiply-adds of a step.
    pub(crate) macs: usize,
    /// Runs so many steps.
    pub(crate) run: fn(usize),
}

/// A loop whose function needs features that were asked for.
macro_rules! checked {
    ($by:expr, $macs:expr, $function:ident) => {
        Loop {
            by: $by,
            macs: $macs,
            run: |steps| {
                // SAFETY: the macro is used where the features are known to be there.
                black_box(unsafe { $function(black_box(steps)) });
            },
        }
    };
}

fn avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// The best sequence for bytes whose sums are exact in 32 bits.
pub(crate) fn integer() -> Option<Loop> {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        return Some(checked!("vpdpbusd, 512 bits", 16 * 64, vnni512));
    }
    if avx2() && is_x86_feature_detected!("avxvnni") {
        return Some(checked!("vpdpbusd, 256 bits", 12 * 32, vnni256));
    }
    avx2().then_some(checked!("vpmaddubsw + vpmaddwd + vpaddd, 256 bits", 12 * 32, madd))
}

/// What sums of 16 bits allow.
#[allow(dead_code)] // one of the two programs shows it
pub(crate) fn integer_16() -> Option<Loop> {
    avx2().then_some(checked!("vpmaddubsw + vpaddw, 256 bits", 12 * 32, madd16))
}

/// f32.
pub(crate) fn float() -> Option<Loop> {
    if is_x86_feature_detected!("avx512f") {
        return Some(checked!("vfmadd, 512 bits", 16 * 16, fma512));
    }
    avx2().then_some(checked!("vfmadd, 256 bits", 12 * 8, fma256))
}

/// Reads all bytes, one after another.
pub(crate) fn read() -> Option<fn(&[u8])> {
    let read = |bytes: &[u8]| {
        // SAFETY: handed out where AVX2 is there.
        black_box(unsafe { sum(bytes) });
    };
    avx2().then_some(read)
}

/// Keeps the compiler from computing the loop beforehand, at no instruction.
macro_rules! opaque {
    ($class:ident, $v:expr) => {
        // SAFETY: no instruction.
        unsafe { core::arch::asm!("/* {0} */", inout($class) $v, options(nomem, nostack, preserves_flags)) }
    };
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni512(steps: usize) -> i32 {
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
fn vnni256(steps: usize) -> i32 {
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
fn madd(steps: usize) -> i32 {
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
fn madd16(steps: usize) -> i32 {
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
fn fma512(steps: usize) -> f32 {
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
fn fma256(steps: usize) -> f32 {
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
fn sum(bytes: &[u8]) -> i64 {
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
