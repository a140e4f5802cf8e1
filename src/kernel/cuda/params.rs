//! What the CUDA kernels are told: one struct by value for each kind of launch, the same bytes as in
//! `kernels/params.cuh` (a test compares offset by offset). Addresses are a device's.
//!
//! Activations between `prepare` and the product kernels, in the workspace:
//! ```text
//! codes    [row][columns padded to 256]     each 64 columns in the order of the matrix B of mma.sync:
//!                                           column 32 i + 16 half + 4 t + b at byte 16 t + 8 i + 4 half + b,
//!                                           so that a lane reads 16 bytes for two steps
//!     or   [128 columns][row][128]          for wgmma: the images of its tiles, in the order of the columns;
//!                                           the 16 bytes of piece q of row r stand at place q ^ r % 8
//! scales   [record][row]                    f32; NaN for a row that is not finite
//! sums     [group][row]                     i32: sums of the stored codes
//! floats   [row][column]                    f32, where x is not quantised
//! ```
//! Rows of scales and sums are `pitch` apart.

use crate::limits::LAYERS_MAX;

/// Declares a struct with its offsets as a table.
macro_rules! mirrored {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

        impl $name {
            /// Each field and where it lies.
            pub const OFFSETS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*];
        }
    };
}

mirrored! {
    /// A row of x on its way into codes or floats: one block for each row.
    Prepare {
        /// The first row.
        x: u64,
        /// Bytes from row to row.
        x_stride: u64,
        /// Bytes from head to head, where rows are gathered.
        head_stride: u64,
        /// `columns` f32, or 0.
        norm_weight: u64,
        /// `columns` f32, or 0.
        norm_bias: u64,
        /// `columns` sign bits (u32), or 0.
        signs: u64,
        /// `columns` u32: the column of x at each packed column; or 0.
        permutation: u64,
        /// f32 scales in place of the rule's own: one, or one for each row; or 0.
        scales_in: u64,
        /// Rows of f32 in the workspace, 2 x `columns` each; 0: shared memory holds a row.
        stage: u64,
        /// Where floats go, or 0.
        floats: u64,
        /// Where codes go.
        codes: u64,
        /// Bytes of a row of codes, and with it its columns; of floats: bytes.
        code_stride: u64,
        /// Where scales go.
        scales: u64,
        /// Where sums go.
        sums: u64,
        /// Rows of scales and sums.
        pitch: u64,
        /// Columns.
        columns: u32,
        /// Element type of x: [`FLOAT_F32`] ...
        x_type: u32,
        /// 0: none, 1: LayerNorm, 2: RMS.
        norm: u32,
        /// Added to the mean square.
        epsilon: f32,
        /// Columns of a block of the rotation; 0: none.
        rotation: u32,
        /// `f32(1 / sqrt(rotation))`.
        rotation_scale: f32,
        /// The largest code: 127, 7 or 255.
        limit: f32,
        /// What is taken from a code to store it: 0 or 128.
        code_bias: i32,
        /// 1: the range is twice the mean magnitude.
        mean_range: u32,
        /// 1: one scale for the row; 0: one for each record.
        by_row: u32,
        /// 0: scales are the row's own; 1: `fixed_scale`; 2: one at `scales_in`; 3: one for each row there.
        fixed: u32,
        /// The scale, where `fixed` is 1.
        fixed_scale: f32,
        /// As in `weights::Form`.
        record: u32,
        /// As above.
        record_padded: u32,
        /// As above.
        records: u32,
        /// As above.
        group: u32,
        /// As above.
        record_groups: u32,
        /// 1: groups of 16 or 32 columns inside records of 256.
        two_level: u32,
        /// Heads of a gathered row; 0: rows lie in one piece.
        heads: u32,
        /// Features of a head.
        features: u32,
        /// Features of a run.
        run: u32,
        /// Rows of x; blocks walk over them in strides of the grid.
        rows: u32,
        /// Rows of an image of codes; 0: rows of codes.
        image_rows: u32,
        /// Fills up to a multiple of 8 bytes.
        pad: u32,
    }
}

mirrored! {
    /// One layer of a product launch.
    Layer {
        /// Its strips.
        weights: u64,
        /// Bytes of a strip.
        strip_bytes: u64,
        /// Bytes of a base's units in a strip.
        base_bytes: u64,
        /// Where the heads begin in a strip.
        heads: u64,
        /// Where the sums begin in a strip; 0: none.
        sums: u64,
        /// f32 values to add, or 0.
        bias: u64,
        /// The first row of y.
        y: u64,
        /// Bytes from row to row of y.
        y_stride: u64,
        /// Rows of W that are computed.
        outputs: u32,
        /// The first block (x) of this layer.
        first_block: u32,
        /// Bytes of a record's head for a strip.
        head_bytes: u32,
        /// [`SCHEME_ROW`] ...
        scheme: u32,
        /// [`SCALE_F32`] ...
        scale_type: u32,
        /// Bits of a code; 0: dense.
        bits: u32,
        /// Dense: [`FLOAT_F32`] ...; coded: 1 where codes go through the table.
        values: u32,
        /// The sum of `v q` is `factor` x the sum of `stored q` + `correction` x the sum of q.
        factor: i32,
        /// As above.
        correction: i32,
        /// Code matrices.
        bases: u32,
        /// 1: the product is multiplied with `product_scale`.
        scaled: u32,
        /// See `scaled`.
        product_scale: f32,
        /// `bl_epilogue`.
        epilogue: u32,
        /// What RELU takes from y first.
        threshold: f32,
        /// Element type of y.
        y_type: u32,
        /// 1: the result is added to y.
        accumulate: u32,
        /// The 16 signed bytes of the table.
        table: [u32; 4],
    }
}

mirrored! {
    /// One product launch: layers on the same activations.
    Product {
        /// Codes, or floats.
        x: u64,
        /// Bytes from row to row; of an image: from 128 columns to the next.
        x_stride: u64,
        /// Scales of x.
        scales: u64,
        /// Sums of x.
        sums: u64,
        /// Rows of scales and sums.
        pitch: u64,
        /// Rows of x.
        m: u32,
        /// Columns of x.
        columns: u32,
        /// As in `weights::Form`.
        record: u32,
        /// As above.
        record_padded: u32,
        /// As above.
        records: u32,
        /// As above.
        group: u32,
        /// As above.
        record_groups: u32,
        /// As above.
        groups: u32,
        /// As above; of the columns that x has.
        units: u32,
        /// What is taken from a code of x to store it.
        code_bias: i32,
        /// Records whose sums a block keeps at a time.
        chunk: u32,
        /// Stages of copies ahead.
        stages: u32,
        /// How many layers there are.
        count: u32,
        /// Tiles of rows of x.
        tiles: u32,
        /// The layers.
        layers: [Layer; LAYERS_MAX],
    }
}

/// Element types.
pub const FLOAT_F32: u32 = 0;
/// 16-bit IEEE.
pub const FLOAT_F16: u32 = 1;
/// bfloat16.
pub const FLOAT_BF16: u32 = 2;

/// One scale a row and base.
pub const SCHEME_ROW: u32 = 0;
/// Groups.
pub const SCHEME_GROUP: u32 = 1;
/// Groups with a minimum.
pub const SCHEME_GROUP_MINIMUM: u32 = 2;
/// Groups with an integer zero point.
pub const SCHEME_GROUP_ZERO: u32 = 3;
/// Two levels.
pub const SCHEME_LEVEL: u32 = 4;
/// Two levels with minima.
pub const SCHEME_LEVEL_MINIMUM: u32 = 5;

/// Types of scales.
pub const SCALE_F32: u32 = 0;
/// 16-bit IEEE.
pub const SCALE_F16: u32 = 1;
/// bfloat16.
pub const SCALE_BF16: u32 = 2;
/// Bytes that are exponents.
pub const SCALE_E8M0: u32 = 3;

// Kernel parameters are at most 4 KB on every driver.
const _: () = assert!(size_of::<Product>() <= 4096 && size_of::<Prepare>() <= 4096);

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ side asserts the lines that this test expects to find there, so that both sides agree.
    #[test]
    fn the_kernels_have_the_same_structs() {
        let text = include_str!("../../../kernels/params.cuh");
        let structs = [
            ("Prepare", size_of::<Prepare>(), Prepare::OFFSETS),
            ("Layer", size_of::<Layer>(), Layer::OFFSETS),
            ("Product", size_of::<Product>(), Product::OFFSETS),
        ];
        let mut lines = 0;
        for (name, size, offsets) in structs {
            let line = format!("BL_SIZE({name}, {size});");
            assert!(text.contains(&line), "kernels/params.cuh lacks {line}");
            for (field, at) in offsets {
                let line = format!("BL_AT({name}, {field}, {at});");
                assert!(text.contains(&line), "kernels/params.cuh lacks {line}");
            }
            lines += offsets.len() + 1;
        }
        let found = text.lines().filter(|l| l.starts_with("BL_AT(") || l.starts_with("BL_SIZE(")).count();
        assert_eq!(found, lines, "kernels/params.cuh asserts fields that are not here");
    }
}
