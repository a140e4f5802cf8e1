//! How rows of x and of W are cut, and where what is made of x lies in the workspace:
//!
//! ```text
//! integers   codes [m or an image][padded columns] | scales [records][pitch] | sums [groups][pitch] | stage
//! floats     f32 [m][columns] | stage
//! ```
//! Each part begins at a multiple of [`ALIGNMENT`]. `stage` is where `prepare` keeps rows that its shared memory
//! does not hold.

use super::launch::Target;
use super::module::{Gpu, Module};
use super::weights::Form;
use crate::error::{Result, fail};
use crate::layout::{Coded, Layout, Scales};
use crate::limits::FEATURES_MAX;

/// Parts of the workspace begin at multiples of so many bytes; so must the workspace itself.
pub const ALIGNMENT: usize = 256;

/// Rows of codes are padded to so many columns: whole units of every width.
const CODE_COLUMNS: usize = 256;

/// Rows of an image of codes of x: whole tiles of every kernel of warpgroups.
const IMAGE_ROWS: usize = 256;

/// Where everything of one run of layers lies in the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) codes: usize,
    pub(super) scales: usize,
    pub(super) sums: usize,
    pub(super) floats: usize,
    pub(super) stage: usize,
    pub(super) bytes: usize,
    /// Bytes of a row of codes or floats.
    pub(super) stride: usize,
    /// Rows of an image of codes; 0: rows of codes.
    pub(super) image_rows: usize,
    /// Rows of scales and sums.
    pub(super) pitch: usize,
    /// Blocks of `prepare`, and the bytes of shared memory that hold a row; 0: the workspace does.
    pub(super) blocks: usize,
    pub(super) shared: usize,
}

/// How a row of W or x is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) columns: usize,
    pub(super) record: usize,
    pub(super) record_padded: usize,
    pub(super) records: usize,
    pub(super) group: usize,
    pub(super) record_groups: usize,
    pub(super) groups: usize,
}

impl Space {
    pub(super) fn new(target: &Target<'_>, m: usize, gpu: &Gpu, image: bool) -> Result<Space> {
        let cut = target.cut()?;
        let mut at = 0usize;
        let mut fits = true;
        let mut take = |count: usize, bytes: usize| {
            let start = at;
            let end = count.checked_mul(bytes).and_then(|b| b.checked_next_multiple_of(ALIGNMENT));
            match end.and_then(|b| at.checked_add(b)).filter(|end| *end <= isize::MAX as usize) {
                Some(end) => at = end,
                None => fits = false,
            }
            start
        };
        let pitch = m.next_multiple_of(8);
        let mut space = Space { pitch, blocks: m, ..Space::default() };
        if target.layer.rule.is_some() {
            let padded = cut.records.saturating_mul(cut.record_padded).next_multiple_of(CODE_COLUMNS);
            if padded as u64 > FEATURES_MAX {
                return Err(fail!(
                    Unsupported,
                    "{} columns in groups of {} on a CUDA device",
                    cut.columns,
                    cut.record
                ));
            }
            // Room for an image wherever there may be one: which it is depends on the other layers of a call.
            let rows = match Module::hopper(&target.layer.form.layout, target.layer.rule) {
                Some(_) if gpu.capability == (9, 0) => m.next_multiple_of(IMAGE_ROWS),
                _ => m,
            };
            space.stride = padded;
            space.image_rows = if image { rows } else { 0 };
            space.codes = take(rows, padded);
            space.scales = take(pitch, 4 * cut.records);
            space.sums = take(pitch, 4 * cut.groups);
        } else {
            space.stride = (cut.columns * 4).next_multiple_of(16);
            space.floats = take(m, space.stride);
        }
        let row = (cut.columns * 4).next_multiple_of(16);
        if row <= gpu.dynamic_shared() {
            space.shared = row;
        } else {
            space.blocks = m.min(2 * gpu.multiprocessors.max(1) as usize);
            space.stage = take(space.blocks, row);
        }
        space.bytes = at;
        if !fits || m > u32::MAX as usize / 2 {
            return Err(fail!(OutOfMemory, "a workspace for {m} rows of {} columns", cut.columns));
        }
        Ok(space)
    }
}

/// Bytes of workspace of a call on `m` rows: what the layer that needs most needs alone.
pub fn workspace(targets: &[Target<'_>], m: usize, gpu: &Gpu) -> Result<usize> {
    let mut bytes = 0;
    for target in targets {
        bytes = bytes.max(Space::new(target, m, gpu, false)?.bytes);
    }
    Ok(bytes)
}

impl Target<'_> {
    /// The form of the columns that this call has.
    pub(super) fn form(&self) -> Result<Form> {
        let form = &self.layer.form;
        if self.columns == form.in_features {
            return Ok(*form);
        }
        let row = matches!(form.layout, Layout::Coded(Coded { scales: Scales::Row, .. }));
        if !row || form.unsigned || self.columns > form.in_features {
            return Err(fail!(
                Unsupported,
                "{} of {} columns: a prefix needs weights with one scale a row and signed codes of x",
                self.columns,
                form.in_features
            ));
        }
        Form::new(&form.layout, form.out_features, self.columns, false)
    }

    /// How the weights are cut.
    pub(super) fn weight_cut(&self) -> Result<Cut> {
        let form = self.form()?;
        Ok(Cut {
            columns: self.columns,
            record: form.record,
            record_padded: form.record_padded,
            records: form.records,
            group: form.group,
            record_groups: form.record_groups,
            groups: form.groups,
        })
    }

    /// How x is cut: as the weights are, but floats are not.
    pub(super) fn cut(&self) -> Result<Cut> {
        let columns = self.columns;
        Ok(match self.layer.rule {
            Some(_) => self.weight_cut()?,
            None => Cut {
                columns,
                record: columns,
                record_padded: columns,
                records: 1,
                group: columns,
                record_groups: 1,
                groups: 1,
            },
        })
    }
}
