//! Products of f32 matrices for gradients: the crate matrixmultiply, run in pieces on a context's threads.
//!
//! ```text
//! c [m, n]  =  factor * a [m, k] b [k, n]  (+ c, where its view accumulates)
//! ```
//! An element of c is a sum over k in stretches of the crate's choice, each a chain of multiply-adds. The
//! stretches do not depend on m, on n or on where in c the element lies, so that cutting c into pieces
//! changes no bit: gradients are the same for any number of threads. From CPU to CPU they may differ in the
//! last bits: the crate chooses its kernel by the CPU (with or without fused multiply-adds).
//!
//! The crate packs both matrices into one buffer that it allocates infallibly. In the C library that buffer
//! is memory taken fallibly here and lent to the allocator (`reserve::lend`), so that out of memory is a
//! status as everywhere.

use std::hint::black_box;
use std::sync::Mutex;

use crate::error::Result;
use crate::exec::{Executor, SHARE_FROM};
use crate::matrix::MatrixMut;
use crate::memory::{ALIGNMENT, Buffer, Heap, filled};
use crate::reserve;

/// A matrix of f32 to read: element `[r, c]` is `values[r * steps[0] + c * steps[1]]`.
#[derive(Clone, Copy)]
pub struct Floats<'a> {
    values: &'a [f32],
    shape: [usize; 2],
    steps: [usize; 2],
}

impl<'a> Floats<'a> {
    /// Rows of `columns` elements that touch. Panics where there are not so many elements.
    pub fn new(values: &'a [f32], [rows, columns]: [usize; 2]) -> Floats<'a> {
        let values = &values[..rows * columns];
        Floats { values, shape: [rows, columns], steps: [columns, 1] }
    }

    /// Rows as columns.
    pub fn transposed(self) -> Floats<'a> {
        let ([rows, columns], [row, column]) = (self.shape, self.steps);
        Floats { shape: [columns, rows], steps: [column, row], ..self }
    }
}

/// Rows or columns of c that a piece has at least: with fewer, packing would cost more than multiplying.
const PIECE: usize = 64;

/// What the crate packs at a time is at most so many rows of a, so many of k and so many columns of b, each
/// filled up to a panel of at most 16 (matrixmultiply 0.3: `archparam_defaults.rs`, `kernel.rs`).
const BLOCK: [usize; 3] = [64, 256, 1024];
const PANEL: usize = 16;

/// More bytes than the thread-local memory of this library, of which a buffer of the crate's is a part. In a
/// thread that uses it first glibc allocates it (of a library that was opened with dlopen), and ends the process
/// where there is no memory: `product` asks for as much just before.
const THREAD_LOCAL: usize = 4096;

/// Bytes of the crate's buffer for one product.
fn packing([m, k, n]: [usize; 3]) -> usize {
    let [m, k, n] = [m.min(BLOCK[0]), k.min(BLOCK[1]), n.min(BLOCK[2])];
    k * (m.next_multiple_of(PANEL) + n.next_multiple_of(PANEL)) * size_of::<f32>()
}

/// `c = factor * a b`, or `c += factor * a b` where c accumulates. Panics where shapes do not fit.
///
/// Where c is not aligned to its elements the product goes through memory of its own.
pub fn product(
    factor: f32,
    a: Floats<'_>,
    b: Floats<'_>,
    c: MatrixMut<'_>,
    heap: &Heap,
    executor: &Executor,
) -> Result<()> {
    let ([m, k], [inner, n]) = (a.shape, b.shape);
    assert!(k == inner && c.holds(m, n), "[{m}, {k}] times [{inner}, {n}]");
    if m == 0 || n == 0 {
        return Ok(());
    }
    let Some((start, stride)) = c.floats() else {
        let mut out = filled(m.saturating_mul(n), 0.0f32, "a product")?;
        product(factor, a, b, MatrixMut::of(&mut out, n), heap, executor)?;
        out.chunks_exact(n).enumerate().for_each(|(r, row)| c.write(r, 0, row));
        return Ok(());
    };
    let (by_rows, length) = (m >= n, m.max(n));
    let operations = m.saturating_mul(k).saturating_mul(n);
    let executor = if operations < SHARE_FROM { &Executor::Serial } else { executor };
    let pieces = executor.width().min(length.div_ceil(PIECE));
    let piece = length.div_ceil(pieces).next_multiple_of(PANEL);
    let shape = |length: usize| if by_rows { [length, k, n] } else { [m, k, length] };
    // All memory before anything is written.
    let room = packing(shape(piece.min(length))).next_multiple_of(ALIGNMENT).max(ALIGNMENT);
    let mut memory = heap.buffer(if reserve::ACTIVE { pieces * room } else { 0 }, "memory to pack in")?;
    let parts = Mutex::new(memory.bytes_mut().chunks_mut(room));
    // `black_box`: a compiler may leave out an allocation that nobody uses.
    drop(black_box(Buffer::zeroed(pieces * THREAD_LOCAL, "thread-local memory")?));
    let beta = if c.accumulates() { 1.0 } else { 0.0 };
    let target = Target { start, stride };
    executor.run(pieces, &|_slot, index| {
        let (first, end) = ((index * piece).min(length), ((index + 1) * piece).min(length));
        let skip = if by_rows { [first, 0] } else { [0, first] };
        let [m, k, n] = shape(end - first);
        if first == end {
            return Ok(()); // pieces are whole panels: the last ones may be empty
        }
        let part = parts.lock().unwrap_or_else(|e| e.into_inner()).next().unwrap_or_default();
        let multiply = || {
            // SAFETY: of a, b and c the elements of their shapes are read and written (`Floats`, `holds`
            // above), less the rows or columns that are skipped; pieces write disjoint ones.
            unsafe {
                matrixmultiply::sgemm(
                    m,
                    k,
                    n,
                    factor,
                    a.values.as_ptr().wrapping_add(skip[0] * a.steps[0]),
                    a.steps[0] as isize,
                    a.steps[1] as isize,
                    b.values.as_ptr().wrapping_add(skip[1] * b.steps[1]),
                    b.steps[0] as isize,
                    b.steps[1] as isize,
                    beta,
                    target.at(skip),
                    target.stride as isize,
                    1,
                )
            }
        };
        // SAFETY: sgemm makes one allocation and frees it.
        let taken = unsafe { reserve::lend(part, multiply) };
        debug_assert!(taken || k == 0 || !reserve::ACTIVE, "sgemm packs more than {room} bytes");
        Ok(())
    })
}

/// Where the pieces of c are written.
struct Target {
    start: *mut f32,
    stride: usize,
}

// SAFETY: as of the view; pieces write disjoint elements (`product`).
unsafe impl Sync for Target {}

impl Target {
    /// Address of the element that many rows and columns in.
    fn at(&self, [row, column]: [usize; 2]) -> *mut f32 {
        self.start.wrapping_add(row * self.stride + column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    /// Against sums in f64, for shapes on both sides of the crate's blocks; the same bits for any number of
    /// threads and for elements that are not aligned.
    #[test]
    fn products() {
        let heap = Heap::default();
        let pool = Executor::with_threads(3).unwrap();
        let shapes = [[1, 1, 1], [3, 0, 5], [7, 300, 9], [65, 17, 1100], [1030, 20, 33], [200, 257, 70]];
        for [m, k, n] in shapes {
            for (turn_a, turn_b, factor, accumulate) in
                [(false, false, 1.0f32, false), (true, false, 0.75, true), (false, true, 1.0, true)]
            {
                let (a, b, old) = (random(m * k, 1), random(k * n, 2), random(m * (n + 3), 3));
                let view = |values, [r, c]: [usize; 2], turn| match turn {
                    false => Floats::new(values, [r, c]),
                    true => Floats::new(values, [c, r]).transposed(),
                };
                let (va, vb) = (view(&a, [m, k], turn_a), view(&b, [k, n], turn_b));
                let at =
                    |v: &Floats<'_>, r: usize, c: usize| v.values[r * v.steps[0] + c * v.steps[1]] as f64;
                let mut got = old.clone();
                fn view_of(c: &mut [f32], n: usize, accumulate: bool) -> MatrixMut<'_> {
                    MatrixMut::strided(c, n + 3, n).accumulating(accumulate)
                }
                product(factor, va, vb, view_of(&mut got, n, accumulate), &heap, &Executor::Serial).unwrap();
                for (i, (&got, &old)) in got.iter().zip(&old).enumerate() {
                    let (r, column) = (i / (n + 3), i % (n + 3));
                    if column >= n {
                        assert_eq!(got, old, "outside of c");
                        continue;
                    }
                    let sum: f64 = (0..k).map(|i| at(&va, r, i) * at(&vb, i, column)).sum();
                    let want = factor as f64 * sum + if accumulate { old as f64 } else { 0.0 };
                    assert!((got as f64 - want).abs() < 1e-5 * (1.0 + k as f64).sqrt(), "{got} {want}");
                }
                let mut shared = old.clone();
                product(factor, va, vb, view_of(&mut shared, n, accumulate), &heap, &pool).unwrap();
                assert_eq!(bits(&shared), bits(&got), "{m} {k} {n} with threads");
                let mut bytes = vec![0u8; old.len() * 4 + 1];
                bytes[1..]
                    .copy_from_slice(old.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>().as_slice());
                // SAFETY: rows of so many bytes in `bytes`.
                let odd = unsafe {
                    MatrixMut::new(bytes[1..].as_mut_ptr(), crate::layout::Float::F32, 4 * (n + 3), n)
                };
                assert!(odd.floats().is_none());
                product(factor, va, vb, odd.accumulating(accumulate), &heap, &pool).unwrap();
                // What is accumulated is added once there, not stretch by stretch.
                for (bytes, got) in bytes[1..].as_chunks().0.iter().zip(&got) {
                    assert!((f32::from_le_bytes(*bytes) - got).abs() < 1e-5 * (1.0 + k as f32).sqrt());
                }
                if !accumulate {
                    let odd: Vec<u32> =
                        bytes[1..].as_chunks().0.iter().map(|v| u32::from_le_bytes(*v)).collect();
                    assert_eq!(odd, bits(&got), "{m} {k} {n} not aligned");
                }
            }
        }
    }
}
