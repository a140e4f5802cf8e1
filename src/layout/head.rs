//! The head of a record, one row at a time: scales, minima, zero points and sub-scales of rows that lie side
//! by side. Panels on the CPU read heads so, and weights on a device are written and read so; panels write
//! 16 rows at once (`panels`).
//!
//! ```text
//! head    [lanes scales] [lanes minima or zeros]          Scales::Group, as stored
//!       | [lanes d] [lanes dmin] [lanes sub-scales i8] x groups [lanes sub-minima i8] x groups   TwoLevel
//!       | [lanes scales f32] x bases                      Scales::Row
//! ```

use super::{Coded, Offset, Row, SUPER_BLOCK, ScaleType, Scales};
use crate::float16::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// Writes a scale as stored. Exact: the value came from this type.
fn put_scale(ty: ScaleType, bytes: &mut [u8], lane: usize, value: f32) {
    let place = &mut bytes[lane * ty.bytes()..][..ty.bytes()];
    match ty {
        ScaleType::F32 => place.copy_from_slice(&value.to_le_bytes()),
        ScaleType::F16 => place.copy_from_slice(&f32_to_f16(value).to_le_bytes()),
        ScaleType::Bf16 => place.copy_from_slice(&f32_to_bf16(value).to_le_bytes()),
        ScaleType::E8m0 => place[0] = e8m0_of(value),
    }
}

/// Reads a scale.
fn scale_at(ty: ScaleType, bytes: &[u8], lane: usize) -> f32 {
    let b = &bytes[lane * ty.bytes()..];
    match ty {
        ScaleType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        ScaleType::F16 => f16_to_f32(u16::from_le_bytes([b[0], b[1]])),
        ScaleType::Bf16 => bf16_to_f32(u16::from_le_bytes([b[0], b[1]])),
        ScaleType::E8m0 => e8m0(b[0]),
    }
}

/// The power of two of an E8M0 byte, halved: tables of MXFP4 hold doubled values. Byte `e` is
/// `2^(e - 128)`: a normal f32 from 2 on, below it the two largest subnormal powers.
pub fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        e => f32::from_bits((e as u32 - 1) << 23),
    }
}

/// The inverse of [`e8m0`]; 0, which no byte stands for, becomes the byte 0.
pub(crate) fn e8m0_of(value: f32) -> u8 {
    match value.to_bits() {
        0 | 0x0020_0000 => 0,
        0x0040_0000 => 1,
        bits => ((bits >> 23) + 1) as u8,
    }
}

/// Writes row `lane` of the head of record `r`, in a head for `lanes` rows.
pub(crate) fn write_head(coded: &Coded, head: &mut [u8], lanes: usize, lane: usize, r: usize, row: &Row) {
    match coded.scales {
        Scales::Row => {
            for (scale, head) in row.scales.iter().zip(head.chunks_exact_mut(lanes * 4)) {
                put_scale(ScaleType::F32, head, lane, *scale);
            }
        }
        Scales::Group { offset, .. } => {
            let (scales, rest) = head.split_at_mut(lanes * coded.scale_type.bytes());
            put_scale(coded.scale_type, scales, lane, row.scales[r]);
            match offset {
                Offset::None => {}
                Offset::Minimum => put_scale(coded.scale_type, rest, lane, row.minimums[r]),
                Offset::Zero => rest[lane] = row.zeros[r],
            }
        }
        Scales::TwoLevel { len, minimum } => {
            let groups = SUPER_BLOCK / len;
            let size = lanes * coded.scale_type.bytes();
            let (scales, rest) = head.split_at_mut(size);
            put_scale(coded.scale_type, scales, lane, row.scales[r]);
            let rest = if minimum {
                let (minimums, rest) = rest.split_at_mut(size);
                put_scale(coded.scale_type, minimums, lane, row.minimums[r]);
                rest
            } else {
                rest
            };
            let (subs, sub_minimums) = rest.split_at_mut(groups * lanes);
            for j in 0..groups {
                subs[j * lanes + lane] = row.sub_scales[r * groups + j] as u8;
                if minimum {
                    sub_minimums[j * lanes + lane] = row.sub_minimums[r * groups + j] as u8;
                }
            }
        }
    }
}

/// The inverse of [`write_head`].
pub(crate) fn read_head(coded: &Coded, head: &[u8], lanes: usize, lane: usize, r: usize, row: &mut Row) {
    match coded.scales {
        Scales::Row => {
            for (scale, head) in row.scales.iter_mut().zip(head.chunks_exact(lanes * 4)) {
                *scale = scale_at(ScaleType::F32, head, lane);
            }
        }
        Scales::Group { offset, .. } => {
            let (scales, rest) = head.split_at(lanes * coded.scale_type.bytes());
            row.scales[r] = scale_at(coded.scale_type, scales, lane);
            match offset {
                Offset::None => {}
                Offset::Minimum => row.minimums[r] = scale_at(coded.scale_type, rest, lane),
                Offset::Zero => row.zeros[r] = rest[lane],
            }
        }
        Scales::TwoLevel { len, minimum } => {
            let groups = SUPER_BLOCK / len;
            let size = lanes * coded.scale_type.bytes();
            row.scales[r] = scale_at(coded.scale_type, head, lane);
            let mut rest = &head[size..];
            if minimum {
                row.minimums[r] = scale_at(coded.scale_type, rest, lane);
                rest = &rest[size..];
            }
            for j in 0..groups {
                row.sub_scales[r * groups + j] = rest[j * lanes + lane] as i8;
                if minimum {
                    row.sub_minimums[r * groups + j] = rest[(groups + j) * lanes + lane] as i8;
                }
            }
        }
    }
}
