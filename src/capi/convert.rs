//! Matrices from one type to another.

use std::ffi::c_void;

use super::boundary::guard;
use super::context;
use super::enums::*;
use super::types::*;
use super::weights::{Weights, features, mistake};
use crate::codec;
use crate::error::{Error, Status, fail};
use crate::layout::Row;
use crate::limits::FEATURES_MAX;
use crate::memory::filled;

/// Writes rows x columns numbers from one type to another. Both ways, packed formats byte for byte as
/// their own tools: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, tq1_0, tq2_0, mxfp4, q1_0, q2_0,
/// q2_0-legacy, pq2_0, ptq1_0. From them only: q2_k, q3_k, q4_k, q5_k, q6_k, iq1_s, iq4_nl, iq4_xs,
/// i2_s, i2_s-arm, i2_s-rows, t158. Any other type is BL_ERROR_UNSUPPORTED, one whose scales stand apart
/// as src BL_ERROR_INVALID_ARGUMENT; so are columns that are no multiple of a type's block. rows = 0
/// does nothing. src and dst do not overlap. After a failure dst may hold some of the rows. Runs on the
/// calling thread.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_convert(
    context: *const bl_context,
    rows: i64,
    columns: i64,
    src: *const c_void,
    src_type: TypeArg,
    src_stride: i64,
    dst: *mut c_void,
    dst_type: TypeArg,
    dst_stride: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use. src and
    // dst are as the arguments say.
    unsafe {
        guard(error, || {
            context::of(context)?;
            let columns = features(columns, "columns")?;
            let (from, to) = (src_type.known()?, dst_type.known()?);
            let codec =
                codec::find(to).map_err(|e| e.within(format_args!("{} to {}", from.name(), to.name())))?;
            if rows == 0 {
                return Ok(());
            }
            let rows = features(rows, "rows")
                .map_err(|_| fail!(InvalidArgument, "rows = {rows}: 0 to {FEATURES_MAX}"))?;
            codec.layout(columns).map_err(|e| e.with(Status::InvalidArgument))?;
            let row_bytes = codec.row_bytes(columns);
            let stride = match usize::try_from(dst_stride) {
                Ok(0) => row_bytes,
                Ok(stride) if stride >= row_bytes => stride,
                _ => {
                    return Err(fail!(
                        InvalidArgument,
                        "row stride of dst is {dst_stride} bytes, but a row has {row_bytes}"
                    ));
                }
            };
            if stride.checked_mul(rows).is_none_or(|n| n > isize::MAX as usize) {
                return Err(fail!(
                    InvalidArgument,
                    "{rows} rows of {stride} bytes are more than an address space"
                ));
            }
            if dst.is_null() {
                return Err(fail!(InvalidArgument, "dst is NULL"));
            }
            let given = Weights {
                address: src,
                ty: from,
                stride: src_stride,
                rows,
                columns,
                transposed: false,
                scales: &[],
                group: 0,
            };
            let matrix = given.matrix()?;
            let layout = matrix.layout();
            let mut row = Row::new(layout, columns)?;
            let mut weights = filled(columns, 0.0f32, "a row of weights")?;
            for r in 0..rows {
                // A type that is not written is no fault of a row's.
                let within = |e: Error| match e.status() {
                    Status::Unsupported => e.within(format_args!("{} to {}", from.name(), to.name())),
                    _ => e.within(format_args!("row {r}")),
                };
                matrix.read_row(r, &mut row).map_err(mistake)?;
                for (k, w) in weights.iter_mut().enumerate() {
                    *w = row.weight(&layout, k);
                }
                let bytes = std::slice::from_raw_parts_mut(dst.cast::<u8>().add(r * stride), row_bytes);
                codec.encode_row(&weights, bytes).map_err(within)?;
            }
            Ok(())
        })
    }
}
