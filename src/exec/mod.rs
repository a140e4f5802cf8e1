//! Who runs the pieces of a call: the calling thread, for now alone.
//!
//! Work is split over output rows and rows of x, never over columns, so that how many threads there
//! are and which piece falls to which cannot change a bit of the result.

use crate::error::Result;

/// Runs pieces of work. A piece is told its slot: at any time at most one piece runs in a slot, so
/// slots index scratch memory.
#[derive(Clone, Copy, Debug, Default)]
pub enum Executor {
    /// The calling thread.
    #[default]
    Serial,
}

impl Executor {
    /// How many slots there are: the most pieces that run at a time.
    pub fn width(&self) -> usize {
        1
    }

    /// Calls `work(slot, piece)` once for each piece and comes back after the last; the first error
    /// stops the rest.
    pub fn run(&self, pieces: usize, work: &(dyn Fn(usize, usize) -> Result<()> + Sync)) -> Result<()> {
        (0..pieces).try_for_each(|piece| work(0, piece))
    }
}
