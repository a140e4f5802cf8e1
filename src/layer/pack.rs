//! From a readable matrix to panels, on as many threads as the executor has.
//!
//! ```text
//! piece   a tile: 64 rows of W, taken one after another by whoever comes
//! room    16 decoded rows for each thread at work: beside the panels, all that packing holds
//! ```
//! A tile is written by one piece from its own rows alone, so that the bytes do not depend on who packs them.

use std::ops::Range;
use std::sync::Mutex;

use crate::cpu::Isa;
use crate::error::Result;
use crate::exec::Executor;
use crate::kernel::{Portable, compiled};
use crate::layout::packed::panel_rows;
use crate::layout::panels::Panel;
use crate::layout::{Matrix, Packed};
use crate::memory::{Heap, reserve};

/// Is told which rows have been read and are not needed again, from any thread and in any order, so that a
/// loader can let go of the source behind the readers.
pub type Seen<'a> = &'a (dyn Fn(Range<usize>) + Sync);

/// What makes a layer's panels.
#[derive(Clone, Copy)]
pub struct Packer<'a> {
    /// The instruction set that writes them; it was detected.
    pub isa: Isa,
    /// Where they come from.
    pub heap: &'a Heap,
    /// Who writes them.
    pub executor: &'a Executor,
}

impl Portable for Panel<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        self.write();
    }
}

impl Packer<'_> {
    /// The panels of a matrix.
    pub fn pack(&self, matrix: &dyn Matrix, seen: Seen<'_>) -> Result<Packed> {
        let isa = match self.isa {
            Isa::Avx512Vnni => Isa::Avx2, // a copy of its own gains nothing
            isa => isa,
        };
        let mut packed = Packed::room_for(matrix, self.heap)?;
        let (layout, columns, pieces) = (*packed.layout(), packed.in_features(), packed.tiles());
        let mut resting = Vec::new();
        reserve(&mut resting, self.executor.width().min(pieces), "rows of panels")?;
        let (tiles, resting) = (Mutex::new(packed.tiles_mut()), Mutex::new(resting));
        self.executor.run(pieces, &|_, _| {
            let tile = tiles.lock().unwrap_or_else(|e| e.into_inner()).next();
            let room = resting.lock().unwrap_or_else(|e| e.into_inner()).pop();
            let (Some(mut tile), room) = (tile, room) else { return Ok(()) };
            let mut room = match room {
                Some(room) => room,
                None => panel_rows(&layout, columns)?,
            };
            tile.fill(matrix, &mut room, &mut |panel| compiled(isa, panel))?;
            seen(tile.rows());
            // As many as there are slots: there is room.
            resting.lock().unwrap_or_else(|e| e.into_inner()).push(room);
            Ok(())
        })?;
        drop(tiles);
        Ok(packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::fail;
    use crate::layout::packed::RowMatrix;
    use crate::layout::{Coded, Float, Layout, Offset, Row, ScaleType, Scales, Values};

    /// A matrix of which every byte differs from its neighbours.
    fn matrix(layout: Layout, rows: usize, in_features: usize) -> RowMatrix {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let rows = (0..rows).map(|_| {
            let mut row = Row::new(layout, in_features).unwrap();
            row.floats.iter_mut().for_each(|w| *w = (next() % 256) as f32 - 128.0);
            if let Layout::Coded(coded) = layout {
                let power = coded.scale_type == ScaleType::E8m0;
                row.codes.iter_mut().for_each(|c| *c = (next() % (1 << coded.bits)) as u8);
                let mut scale = || if power { 2f32.powi(next() as i32 % 9) } else { (next() % 128) as f32 };
                row.scales.iter_mut().for_each(|s| *s = scale());
                row.minimums.iter_mut().for_each(|s| *s = scale());
                row.zeros.iter_mut().for_each(|z| *z = next() as u8 & 3);
                row.sub_scales.iter_mut().for_each(|s| *s = next() as i8);
                row.sub_minimums.iter_mut().for_each(|s| *s = next() as i8 & 63);
            }
            row
        });
        RowMatrix { layout, in_features, rows: rows.collect() }
    }

    fn layouts() -> Vec<(Layout, usize)> {
        let group = |bits, len, offset| Layout::groups(bits, 0, len, offset);
        let coded = |bits, values, scales, scale_type, bases| {
            Layout::Coded(Coded { bits, values, scales, scale_type, bases })
        };
        static TABLE: [i8; 16] = [1; 16];
        let mxfp4 = Scales::Group { len: 32, offset: Offset::None };
        vec![
            (Layout::Dense(Float::F32), 130),
            (Layout::Dense(Float::F16), 67),
            (Layout::Dense(Float::Bf16), 1),
            (coded(1, Values::Sign, Scales::Row, ScaleType::F32, 1), 300),
            (coded(2, Values::Offset(1), Scales::Row, ScaleType::F32, 3), 290),
            (group(2, 100, Offset::None), 330),
            (group(3, 7, Offset::Zero), 50),
            (group(4, 32, Offset::Minimum), 32 * 40),
            (group(5, 32, Offset::None), 33),
            (group(6, 20, Offset::Minimum), 61),
            (group(8, 32, Offset::None), 96),
            (coded(4, Values::Table(&TABLE), mxfp4, ScaleType::E8m0, 1), 64),
            (Layout::two_level(2, 0, 16, true), 512),
            (Layout::two_level(6, 32, 16, false), 256),
        ]
    }

    #[test]
    fn panels_do_not_depend_on_who_packs_them() -> Result<()> {
        let heap = Heap::default();
        let rows = if cfg!(miri) { 70 } else { 64 * 9 + 21 };
        for (layout, columns) in layouts() {
            let matrix = matrix(layout, rows, columns);
            let plain = Packed::new(&matrix)?;
            // What the rows say comes back, and nothing else is in the bytes.
            let mut again = plain.row()?;
            for (index, row) in matrix.rows.iter().enumerate() {
                plain.read_row(index, &mut again);
                assert!(again == *row, "{layout:?}: row {index}");
            }
            for threads in [1, 3] {
                let executor = Executor::with_threads(threads)?;
                let packer = Packer { isa: Isa::best(), heap: &heap, executor: &executor };
                let told = Mutex::new(vec![0; rows]);
                let seen = |rows: Range<usize>| told.lock().unwrap()[rows].iter_mut().for_each(|n| *n += 1);
                let packed = packer.pack(&matrix, &seen)?;
                assert!(packed.panels() == plain.panels(), "{layout:?}: {threads} threads");
                assert!(told.into_inner().unwrap().iter().all(|n| *n == 1), "{layout:?}: {threads} threads");
            }
        }
        Ok(())
    }

    /// A matrix with a row that cannot be read.
    struct Broken(RowMatrix);

    impl Matrix for Broken {
        fn layout(&self) -> Layout {
            self.0.layout()
        }
        fn out_features(&self) -> usize {
            self.0.out_features()
        }
        fn in_features(&self) -> usize {
            self.0.in_features()
        }
        fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
            if index == 130 { Err(fail!(BadFile, "row {index}")) } else { self.0.read_row(index, row) }
        }
    }

    #[test]
    fn a_row_that_cannot_be_read_is_an_error_on_any_number_of_threads() -> Result<()> {
        let broken = Broken(matrix(Layout::rows(2, Values::Offset(1)), 400, 64));
        for threads in [1, 3] {
            let executor = Executor::with_threads(threads)?;
            let packer = Packer { isa: Isa::best(), heap: &Heap::default(), executor: &executor };
            let error = packer.pack(&broken, &|_| {}).err().map(|e| e.text().to_owned());
            assert_eq!(error.as_deref(), Some("row 130"));
        }
        Ok(())
    }
}
