//! Recurrent state kept compressed: blocks of 32 values with one f32 scale each.
//!
//! ```text
//! int8      s = max(max |v| / 127, 1e-8) * q = clamp(round(v / s), -127, 127)        1 byte a value
//! ternary   s = max(mean |v|, 1e-8)        q = 0 where |v| < s, else the sign of v   code q + 1, 2 bits
//! binary    s = max(mean |v|, 1e-8)        q = +1 where v >= 0, else -1              1 bit
//! v ~ q s
//! ```
//! `round` takes halves away from zero, the mean is summed in order in f32, codes fill bytes from the
//! lowest bits on, and every block begins a byte: bits past a short last block are 0 once it was written. An array of four
//! dimensions is taken flat, so that blocks run across its rows. Source: burn_dragon's rho state.
//! * at most the float below f32::MAX / 127, so that 127 s is finite.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod block;
mod statistics;

use std::sync::{Arc, Mutex, MutexGuard};

use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::exec::Executor;
use crate::kernel::{self, Portable};
use crate::limits::STATE_MAX;
use crate::memory::filled;

use block::{Pack, Unpack};
use statistics::Sums;
pub use statistics::{Gate, Statistics};

/// Values that share a scale.
pub const BLOCK: usize = 32;
/// Values of a piece of work: whole blocks that a cache holds.
const PIECE: usize = 1 << 15;

/// How values are stored; the numbers are those of `bl_state_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Format {
    /// Bytes.
    Int8 = 0,
    /// -1, 0 and 1 in two bits.
    Ternary = 1,
    /// Signs.
    Binary = 2,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 3] = [Format::Int8, Format::Ternary, Format::Binary];

    /// Values in a byte.
    pub const fn per_byte(self) -> usize {
        match self {
            Format::Int8 => 1,
            Format::Ternary => 4,
            Format::Binary => 8,
        }
    }

    /// Bytes of the codes of `count` values. Every full block fills whole bytes.
    pub const fn code_bytes(self, count: usize) -> usize {
        count.div_ceil(self.per_byte())
    }

    /// Codes whose value is 0 under a scale of 0, without its sign.
    const fn blank(self) -> u8 {
        match self {
            Format::Int8 => 0,
            Format::Ternary => 0x55,
            Format::Binary => 0xff,
        }
    }
}

/// Codes and scales.
struct Blocks {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Blocks {
    fn new(format: Format, count: usize) -> Result<Blocks> {
        Ok(Blocks {
            codes: filled(format.code_bytes(count), format.blank(), "the codes of a state")?,
            scales: filled(count.div_ceil(BLOCK), 0.0, "the scales of a state")?,
        })
    }
}

/// What a state holds. No call runs pieces while it has this: a host's thread that waits for its tasks may run
/// another job of the program meanwhile, and that job may use the same state.
struct Content {
    /// The values. Whoever reads them shares them, and an update puts others in their place.
    now: Arc<Blocks>,
    /// Where the next values are packed, so that a call that fails changes nothing; none while a call has it.
    spare: Option<Arc<Blocks>>,
    statistics: Statistics,
}

impl Content {
    /// Keeps blocks that a call is done with, where there is room for them and nobody else reads them.
    fn give_back(&mut self, mut blocks: Arc<Blocks>) {
        if self.spare.is_none() && Arc::get_mut(&mut blocks).is_some() {
            self.spare = Some(blocks);
        }
    }

    /// Makes `next` the values.
    fn replace(&mut self, next: Arc<Blocks>) {
        let old = std::mem::replace(&mut self.now, next);
        self.give_back(old);
    }
}

/// Runs AVX2's compilation on AVX-512 too: a copy of its own gains nothing.
fn compiled<P: Portable>(isa: Isa, work: P) -> P::Output {
    match isa {
        Isa::Avx512Vnni => kernel::compiled(Isa::Avx2, work),
        isa => kernel::compiled(isa, work),
    }
}

/// An array of four dimensions, compressed. Any number of threads may use it.
pub struct State {
    format: Format,
    shape: [usize; 4],
    count: usize,
    /// Whether errors are measured.
    measured: bool,
    isa: Isa,
    content: Mutex<Content>,
    /// Held by an update whose pieces run on the calling thread and our own: another one waits for it instead of
    /// doing work that counts for nothing. With a host's threads it could wait for itself.
    turn: Mutex<()>,
}

/// What a pack does with the values it is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// Takes them.
    Replace,
    /// `factor * old + value`, each operation rounded to f32.
    Add {
        /// What the old values are multiplied with.
        factor: f32,
    },
}

impl State {
    /// A state of zeros.
    pub fn new(format: Format, shape: [usize; 4], measured: bool, isa: Isa) -> Result<State> {
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let Some(count) = count.filter(|n| (1..=STATE_MAX).contains(n)) else {
            return Err(fail!(InvalidArgument, "a state of shape {shape:?}: 1 to {STATE_MAX} values"));
        };
        let (now, next) = (Blocks::new(format, count)?, Blocks::new(format, count)?);
        let (now, spare) = (Arc::new(now), Some(Arc::new(next)));
        let content = Mutex::new(Content { now, spare, statistics: Statistics::default() });
        Ok(State { format, shape, count, measured, isa, content, turn: Mutex::default() })
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How values are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its dimensions, outermost first.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// How many values it has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether errors are measured.
    pub fn is_measured(&self) -> bool {
        self.measured
    }

    /// Bytes of codes and scales: what it would take in a file.
    pub fn bytes(&self) -> usize {
        self.format.code_bytes(self.count) + 4 * self.count.div_ceil(BLOCK)
    }

    /// Bytes that it holds: both buffers.
    pub fn bytes_held(&self) -> usize {
        2 * self.bytes()
    }

    /// Packs values, all of the state's. Where one is not finite nothing changes.
    pub fn pack(&self, values: &[f32], update: Update, executor: &Executor) -> Result<()> {
        self.check_count(values.len())?;
        if let Update::Add { factor } = update
            && !factor.is_finite()
        {
            return Err(fail!(InvalidArgument, "the factor of the old state is {factor}"));
        }
        let _turn = match executor {
            Executor::Host(_) => None,
            Executor::Serial | Executor::Pool(_) => Some(self.turn.lock().unwrap_or_else(|e| e.into_inner())),
        };
        let (mut now, mut next) = self.take()?;
        loop {
            let packed = match Arc::get_mut(&mut next) {
                Some(next) => self.pack_from(&now, next, values, update, executor),
                None => Err(fail!(Internal, "blocks of a state that are shared while they are packed")),
            };
            let mut content = self.content();
            let sums = match packed {
                Ok(sums) => sums,
                Err(error) => {
                    drop(now);
                    content.give_back(next);
                    return Err(error);
                }
            };
            if update != Update::Replace && !Arc::ptr_eq(&now, &content.now) {
                // Another update came first: this one is on top of it.
                let old = std::mem::replace(&mut now, content.now.clone());
                content.give_back(old);
                continue;
            }
            if self.measured {
                content.statistics.add(&sums, self.count, self.bytes());
            }
            drop(now); // so that nobody but other calls shares it any more
            content.replace(next);
            return Ok(());
        }
    }

    /// The values, and blocks for others.
    fn take(&self) -> Result<(Arc<Blocks>, Arc<Blocks>)> {
        let (now, spare) = {
            let mut content = self.content();
            (content.now.clone(), content.spare.take())
        };
        match spare {
            Some(spare) => Ok((now, spare)),
            // Other calls have it, or read what would be it.
            None => Ok((now, Arc::new(Blocks::new(self.format, self.count)?))),
        }
    }

    /// Packs values, or their sum with the old ones, into other blocks.
    fn pack_from(
        &self,
        now: &Blocks,
        next: &mut Blocks,
        values: &[f32],
        update: Update,
        executor: &Executor,
    ) -> Result<Sums> {
        let mut pieces = Vec::new();
        crate::memory::reserve(&mut pieces, values.len().div_ceil(PIECE), "pieces of a state")?;
        let code_bytes = self.format.code_bytes(PIECE);
        let new = next.codes.chunks_mut(code_bytes).zip(next.scales.chunks_mut(PIECE / BLOCK));
        let old = now.codes.chunks(code_bytes).zip(now.scales.chunks(PIECE / BLOCK));
        for ((values, (codes, scales)), (old_codes, old_scales)) in values.chunks(PIECE).zip(new).zip(old) {
            let old = match update {
                Update::Replace => None,
                Update::Add { factor } => Some((factor, old_codes, old_scales)),
            };
            let format = self.format;
            let work = Pack { isa: self.isa, format, values, old, codes, scales, measured: self.measured };
            pieces.push(Mutex::new((Some(work), Some(Sums::default()))));
        }
        executor.run(pieces.len(), &|_, piece| {
            let mut place = pieces[piece].lock().unwrap_or_else(|e| e.into_inner());
            if let Some(work) = place.0.take() {
                place.1 = compiled(self.isa, work);
            }
            Ok(())
        })?;
        let mut sums = Sums::default();
        for (i, piece) in pieces.into_iter().enumerate() {
            match piece.into_inner().unwrap_or_else(|e| e.into_inner()).1 {
                Some(part) => sums.add(&part), // in order: the same for any number of threads
                None => {
                    let first = i * PIECE;
                    let found = values[first..].iter().position(|v| !v.is_finite());
                    return Err(match found {
                        Some(k) => {
                            fail!(
                                InvalidArgument,
                                "value {} of the state is {}",
                                first + k,
                                values[first + k]
                            )
                        }
                        None => fail!(InvalidArgument, "the updated state is beyond the range of f32"),
                    });
                }
            }
        }
        Ok(sums)
    }

    /// Writes all values.
    pub fn unpack(&self, values: &mut [f32], executor: &Executor) -> Result<()> {
        self.check_count(values.len())?;
        let now = self.content().now.clone();
        let result = self.unpack_from(&now, values, executor);
        self.content().give_back(now);
        result
    }

    fn unpack_from(&self, now: &Blocks, values: &mut [f32], executor: &Executor) -> Result<()> {
        let Blocks { codes, scales } = now;
        let mut pieces = Vec::new();
        crate::memory::reserve(&mut pieces, values.len().div_ceil(PIECE), "pieces of a state")?;
        let code_bytes = self.format.code_bytes(PIECE);
        let parts = codes.chunks(code_bytes).zip(scales.chunks(PIECE / BLOCK));
        for (values, (codes, scales)) in values.chunks_mut(PIECE).zip(parts) {
            pieces.push(Mutex::new(Some(Unpack { format: self.format, codes, scales, values })));
        }
        executor.run(pieces.len(), &|_, piece| {
            if let Some(work) = pieces[piece].lock().unwrap_or_else(|e| e.into_inner()).take() {
                compiled(self.isa, work);
            }
            Ok(())
        })
    }

    /// Copies codes and scales out, as a file would keep them.
    pub fn read(&self, codes: &mut [u8], scales: &mut [f32]) -> Result<()> {
        self.check_parts(codes.len(), scales.len())?;
        let content = self.content();
        codes.copy_from_slice(&content.now.codes);
        scales.copy_from_slice(&content.now.scales);
        Ok(())
    }

    /// Takes codes and scales that [`State::read`] gave. Scales that are not finite and the ternary
    /// code 3 are refused; nothing changes then.
    pub fn write(&self, codes: &[u8], scales: &[f32]) -> Result<()> {
        self.check_parts(codes.len(), scales.len())?;
        if let Some(i) = scales.iter().position(|s| !s.is_finite()) {
            return Err(fail!(InvalidArgument, "scale {i} of the state is {}", scales[i]));
        }
        if self.format == Format::Ternary
            && let Some(i) = codes.iter().position(|c| c & c >> 1 & 0x55 != 0)
        {
            return Err(fail!(InvalidArgument, "byte {i} of the state holds the invalid ternary code 3"));
        }
        let (now, mut next) = self.take()?;
        drop(now);
        let Some(blocks) = Arc::get_mut(&mut next) else {
            return Err(fail!(Internal, "blocks of a state that are shared while they are written"));
        };
        blocks.codes.copy_from_slice(codes);
        blocks.scales.copy_from_slice(scales);
        self.content().replace(next);
        Ok(())
    }

    /// What packing has lost so far; all zero where it is not measured.
    pub fn statistics(&self, reset: bool) -> Statistics {
        let mut content = self.content();
        match reset {
            true => std::mem::take(&mut content.statistics),
            false => content.statistics,
        }
    }

    fn check_count(&self, count: usize) -> Result<()> {
        match count == self.count {
            true => Ok(()),
            false => Err(fail!(
                InvalidArgument,
                "{count} values, but the state of shape {:?} has {}",
                self.shape,
                self.count
            )),
        }
    }

    fn check_parts(&self, codes: usize, scales: usize) -> Result<()> {
        let (code_bytes, blocks) = (self.format.code_bytes(self.count), self.count.div_ceil(BLOCK));
        match (codes, scales) == (code_bytes, blocks) {
            true => Ok(()),
            false => Err(fail!(
                InvalidArgument,
                "{codes} bytes of codes and {scales} scales: the state has {code_bytes} and {blocks}"
            )),
        }
    }
}

#[cfg(test)]
mod tests;
