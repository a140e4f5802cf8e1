//! Matrices of floats in a caller's memory: address, element type, row stride.
//!
//! Views of slices (`of`, `strided`) borrow them and know how many rows they have; those of addresses
//! (`new`, `gathered`) have the lifetime and the rows that their caller vouches for.

use std::marker::PhantomData;

use crate::float16::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::layout::Float;

/// Rows of floats to read. Elements need no alignment; nothing outside them is read.
#[derive(Clone, Copy)]
pub struct MatrixRef<'a> {
    address: *const u8,
    float: Float,
    stride: usize,
    /// Rows that may be asked for.
    rows: usize,
    columns: usize,
    gather: Option<Gather>,
    memory: PhantomData<&'a [u8]>,
}

/// Rows that lie in parts: f32 features of one token, head after head.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    /// Parts of a row.
    pub heads: usize,
    /// Bytes from part to part.
    pub head_stride: usize,
    /// Features of a part.
    pub features: usize,
    /// The row is read as runs of so many features of every part in turn; what a part lacks is 0.
    pub run: usize,
}

impl Gather {
    /// Columns of a row as it is read.
    pub fn columns(&self) -> usize {
        self.features.next_multiple_of(self.run) * self.heads
    }
}

/// Rows of floats to write, or to add to. Elements need no alignment; nothing outside them is written.
pub struct MatrixMut<'a> {
    address: *mut u8,
    float: Float,
    stride: usize,
    /// Rows that may be written.
    rows: usize,
    columns: usize,
    accumulate: bool,
    memory: PhantomData<&'a mut [u8]>,
}

/// Rows of `columns` elements that touch in a slice of so many.
fn rows_of(len: usize, columns: usize) -> usize {
    len.checked_div(columns).unwrap_or(usize::MAX) // rows of nothing
}

// SAFETY: the constructors' contract makes the memory readable from every thread for the call.
unsafe impl Send for MatrixRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for MatrixRef<'_> {}
// SAFETY: as above; pieces of work write disjoint elements (see `layer`), and only this crate can write.
unsafe impl Send for MatrixMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for MatrixMut<'_> {}

impl<'a> MatrixRef<'a> {
    /// A view of rows of `columns` elements.
    ///
    /// # Safety
    /// For the lifetime `'a`, `address + r * stride` is valid for reading `columns` elements for every
    /// row r that is asked for.
    pub unsafe fn new(address: *const u8, float: Float, stride: usize, columns: usize) -> MatrixRef<'a> {
        MatrixRef { address, float, stride, rows: usize::MAX, columns, gather: None, memory: PhantomData }
    }

    /// A view of a slice of `f32` rows that touch. A row that it does not have is a panic.
    ///
    /// The view borrows the slice:
    /// ```compile_fail
    /// let mut x = vec![0.0f32; 8];
    /// let view = bitlinear::matrix::MatrixRef::of(&x, 4);
    /// x.clear();
    /// view.row(0);
    /// ```
    pub fn of(values: &'a [f32], columns: usize) -> MatrixRef<'a> {
        MatrixRef {
            address: values.as_ptr().cast(),
            float: Float::F32,
            stride: columns * 4,
            rows: rows_of(values.len(), columns),
            columns,
            gather: None,
            memory: PhantomData,
        }
    }

    /// A view of rows in parts.
    ///
    /// # Safety
    /// For the lifetime `'a`, `address + r * stride + h * gather.head_stride` is valid for reading
    /// `gather.features` floats for every part h and every row r that is asked for.
    pub unsafe fn gathered(address: *const u8, stride: usize, gather: Gather) -> MatrixRef<'a> {
        let columns = gather.columns();
        let (float, rows) = (Float::F32, usize::MAX);
        MatrixRef { address, float, stride, rows, columns, gather: Some(gather), memory: PhantomData }
    }

    /// The view from row `rows` on.
    pub fn skip(self, rows: usize) -> MatrixRef<'a> {
        assert!(rows <= self.rows);
        MatrixRef { address: self.address.wrapping_add(rows * self.stride), rows: self.rows - rows, ..self }
    }

    /// Address of row `index`.
    fn at(&self, index: usize) -> *const u8 {
        assert!(index < self.rows);
        self.address.wrapping_add(index * self.stride)
    }

    /// Row `index` as it lies in memory, where that is possible: aligned f32.
    pub fn row(&self, index: usize) -> Option<&'a [f32]> {
        let row = self.at(index).cast::<f32>();
        if self.float != Float::F32 || self.gather.is_some() || !row.is_aligned() {
            return None;
        }
        // SAFETY: the constructor's contract; alignment was checked above.
        Some(unsafe { std::slice::from_raw_parts(row, self.columns) })
    }

    /// Copies row `index` into `out`, converted to f32.
    pub fn read_row(&self, index: usize, out: &mut [f32]) {
        assert!(out.len() == self.columns);
        let row = self.at(index);
        if let Some(gather) = &self.gather {
            for (i, runs) in out.chunks_exact_mut(gather.run * gather.heads).enumerate() {
                let len = gather.run.min(gather.features - i * gather.run);
                for (h, out) in runs.chunks_exact_mut(gather.run).enumerate() {
                    let (out, rest) = out.split_at_mut(len);
                    let from = row.wrapping_add(h * gather.head_stride + i * gather.run * 4);
                    // SAFETY: the constructor's contract: `i * run + len <= features`, in part h.
                    unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr().cast(), len * 4) };
                    rest.fill(0.0);
                }
            }
            return;
        }
        for (k, out) in out.iter_mut().enumerate() {
            // SAFETY: the constructor's contract, element `k < columns` (assert above).
            *out = unsafe { self.element(row, k) };
        }
    }

    /// Copies column `columns[j]` of row `index` into `out[j]`, converted to f32.
    pub fn read_permuted(&self, index: usize, columns: &[u32], out: &mut [f32]) {
        assert!(self.gather.is_none());
        let row = self.at(index);
        for (&k, out) in columns.iter().zip(out) {
            assert!((k as usize) < self.columns);
            // SAFETY: the constructor's contract, checked in the line above.
            *out = unsafe { self.element(row, k as usize) };
        }
    }

    /// # Safety
    /// `row` is one of this view's and `k` one of its columns.
    unsafe fn element(&self, row: *const u8, k: usize) -> f32 {
        // SAFETY: the caller's contract.
        unsafe {
            match self.float {
                Float::F32 => row.cast::<f32>().add(k).read_unaligned(),
                Float::F16 => f16_to_f32(row.cast::<u16>().add(k).read_unaligned()),
                Float::Bf16 => bf16_to_f32(row.cast::<u16>().add(k).read_unaligned()),
            }
        }
    }
}

impl<'a> MatrixMut<'a> {
    /// A view of rows of `columns` elements.
    ///
    /// # Safety
    /// For the lifetime `'a`, `address + r * stride` is valid for writing (and, where values are
    /// accumulated, reading) `columns` elements for every row r that is written, and no one else uses
    /// them.
    pub unsafe fn new(address: *mut u8, float: Float, stride: usize, columns: usize) -> MatrixMut<'a> {
        let (rows, accumulate) = (usize::MAX, false);
        MatrixMut { address, float, stride, rows, columns, accumulate, memory: PhantomData }
    }

    /// A view of a slice of `f32` rows that touch. A row that it does not have is a panic.
    pub fn of(values: &'a mut [f32], columns: usize) -> MatrixMut<'a> {
        MatrixMut::strided(values, columns, columns)
    }

    /// The first `columns` of each row of `stride` elements of a slice of `f32`.
    pub fn strided(values: &'a mut [f32], stride: usize, columns: usize) -> MatrixMut<'a> {
        assert!(columns <= stride);
        MatrixMut {
            address: values.as_mut_ptr().cast(),
            float: Float::F32,
            stride: stride * 4,
            rows: rows_of(values.len(), stride),
            columns,
            accumulate: false,
            memory: PhantomData,
        }
    }

    /// The same view, but what is written is added to what is there.
    pub fn accumulating(self, accumulate: bool) -> MatrixMut<'a> {
        MatrixMut { accumulate, ..self }
    }

    /// Whether what is written is added to what is there.
    pub fn accumulates(&self) -> bool {
        self.accumulate
    }

    /// Whether there are so many rows and columns.
    pub fn holds(&self, rows: usize, columns: usize) -> bool {
        rows <= self.rows && columns <= self.columns
    }

    /// Address of the first element and elements from row to row, where they lie as f32 that are aligned.
    pub(crate) fn floats(&self) -> Option<(*mut f32, usize)> {
        let start = self.address.cast::<f32>();
        let aligned = start.is_aligned() && self.stride.is_multiple_of(size_of::<f32>());
        (self.float == Float::F32 && aligned).then_some((start, self.stride / size_of::<f32>()))
    }

    /// Writes `values` into row `index` from column `first` on, rounded to the element type (to
    /// nearest, ties to even). Every NaN is written as the one canonical NaN of the type. A view that
    /// accumulates writes `old + value`, added in f32.
    ///
    /// No two calls may write one element at the same time.
    pub(crate) fn write(&self, index: usize, first: usize, values: &[f32]) {
        assert!(index < self.rows && first + values.len() <= self.columns);
        let row = self.address.wrapping_add(index * self.stride);
        let (wide, narrow) = (row.cast::<u32>(), row.cast::<u16>());
        // SAFETY: the constructor's contract, elements below `self.columns` (assert above).
        unsafe {
            match (self.float, self.accumulate) {
                (Float::F32, false) => store(wide, first, values, f32_bits),
                (Float::F32, true) => add(wide, first, values, f32::from_bits, f32_bits),
                (Float::F16, false) => store(narrow, first, values, f16_bits),
                (Float::F16, true) => add(narrow, first, values, f16_to_f32, f16_bits),
                (Float::Bf16, false) => store(narrow, first, values, bf16_bits),
                (Float::Bf16, true) => add(narrow, first, values, bf16_to_f32, bf16_bits),
            }
        }
    }
}

fn f32_bits(v: f32) -> u32 {
    if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() }
}

fn f16_bits(v: f32) -> u16 {
    if v.is_nan() { 0x7e00 } else { f32_to_f16(v) }
}

fn bf16_bits(v: f32) -> u16 {
    if v.is_nan() { 0x7fc0 } else { f32_to_bf16(v) }
}

/// Writes the bits of each value, and reads nothing.
///
/// # Safety
/// `row` has `first + values.len()` elements, of any alignment, which the caller may write.
#[inline(always)]
unsafe fn store<T>(row: *mut T, first: usize, values: &[f32], bits: impl Fn(f32) -> T) {
    for (k, &v) in values.iter().enumerate() {
        // SAFETY: the caller's contract.
        unsafe { row.add(first + k).write_unaligned(bits(v)) };
    }
}

/// Adds each value to the element that is there.
///
/// # Safety
/// As [`store`], and the caller may read them.
#[inline(always)]
unsafe fn add<T>(
    row: *mut T,
    first: usize,
    values: &[f32],
    float: impl Fn(T) -> f32,
    bits: impl Fn(f32) -> T,
) {
    for (k, &v) in values.iter().enumerate() {
        // SAFETY: the caller's contract.
        unsafe {
            let at = row.add(first + k);
            at.write_unaligned(bits(float(at.read_unaligned()) + v));
        }
    }
}
