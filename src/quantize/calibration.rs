//! Moments of the inputs of many layers, by name, and the file they are kept in.
//!
//! ```text
//! a safetensors file; for each layer  name  F32 [sums]   blocks of sums, as `Moments` has them
//! metadata                            name  "columns block count"
//!                                     calibration.format  "1"
//! ```

use super::moments::Moments;
use crate::container::{Access, Files, Kind, SafetensorsHeader, Temporary};
use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::limits::{FEATURES_MAX, NAME_MAX};
use crate::memory::{filled, reserve};
use crate::types::Type;
use std::io::{self, Write};
use std::path::Path;

/// The key that marks a file.
const MARK: &str = "calibration.format";

/// What calibration gathers.
pub struct Calibration {
    /// Columns of a block of sums; 1: the diagonal alone.
    block: usize,
    /// Most rows of x for a layer; more are not counted.
    samples: u64,
    /// Most bytes of all sums.
    memory: usize,
    used: usize,
    entries: Vec<(String, Moments)>,
}

impl Calibration {
    /// Nothing gathered yet.
    pub fn new(block: usize, samples: u64, memory: usize) -> Calibration {
        Calibration { block: block.max(1), samples, memory, used: 0, entries: Vec::new() }
    }

    fn index(&self, name: &str) -> std::result::Result<usize, usize> {
        self.entries.binary_search_by(|(found, _)| found.as_str().cmp(name))
    }

    /// What is known of the input of the layer of that name, with or without `.weight` behind it.
    pub fn find(&self, name: &str) -> Option<&Moments> {
        let bare = name.strip_suffix(".weight").unwrap_or(name);
        self.index(bare).ok().map(|i| &self.entries[i].1)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// The sums for a layer, made where there are none.
    fn entry(&mut self, name: &str, columns: usize) -> Result<&mut Moments> {
        let bare = name.strip_suffix(".weight").unwrap_or(name);
        if bare.is_empty() || bare.len() as u64 > NAME_MAX || bare == "__metadata__" {
            return Err(fail!(InvalidArgument, "calibration for a layer of the name `{bare}`"));
        }
        let at = match self.index(bare) {
            Ok(at) => at,
            Err(at) => {
                let bytes = Moments::bytes(columns, self.block).unwrap_or(usize::MAX);
                if bytes > self.memory - self.used {
                    return Err(fail!(
                        OutOfMemory,
                        "calibration of {bare}: {bytes} bytes more than the {} used, of {} allowed; smaller blocks take less",
                        self.used,
                        self.memory
                    ));
                }
                let mut text = String::new();
                text.try_reserve(bare.len()).map_err(|_| fail!(OutOfMemory, "a name"))?;
                text.push_str(bare);
                reserve(&mut self.entries, 1, "layers of calibration")?;
                self.entries.insert(at, (text, Moments::new(columns, self.block)?));
                self.used += bytes;
                at
            }
        };
        let moments = &mut self.entries[at].1;
        if moments.columns() != columns {
            let found = moments.columns();
            return Err(fail!(InvalidArgument, "{bare}: {columns} columns, after rows of {found}"));
        }
        Ok(moments)
    }

    /// Adds rows of x, which `read` gives one after another into a buffer of `columns` values; none of
    /// them where one is not finite.
    pub fn add(
        &mut self,
        isa: Isa,
        name: &str,
        columns: usize,
        rows: usize,
        read: &dyn Fn(usize, &mut [f32]),
    ) -> Result<()> {
        let samples = self.samples;
        let mut row = filled(columns, 0.0f32, "a row of x")?;
        for r in 0..rows {
            read(r, &mut row);
            if let Some(k) = row.iter().position(|v| !v.is_finite()) {
                return Err(fail!(InvalidArgument, "{name}: x[{r}][{k}] is {}", row[k]));
            }
        }
        let moments = self.entry(name, columns)?;
        for r in 0..rows {
            if moments.count() >= samples {
                break;
            }
            read(r, &mut row);
            moments.add(isa, &row)?;
        }
        Ok(())
    }

    /// Adds up what waits: before sums are read.
    pub fn settle(&mut self, isa: Isa) {
        self.entries.iter_mut().for_each(|(_, moments)| moments.settle(isa));
    }

    /// The layers with their sums; call [`Calibration::settle`] first.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Moments)> {
        self.entries.iter().map(|(name, moments)| (name.as_str(), moments))
    }

    /// Reads a file that was saved.
    pub fn open(path: &Path) -> Result<Calibration> {
        let files = Files::open(path, Access::Map)?;
        let directory = &files.directory;
        if directory.kind != Kind::Safetensors || directory.meta_text(MARK) != Some("1") {
            return Err(fail!(BadFile, "{}: no file of calibration", path.display()));
        }
        let mut calibration = Calibration::new(1, u64::MAX, usize::MAX);
        for tensor in &directory.tensors {
            let within = |e: crate::error::Error| {
                e.within(format_args!("{}", crate::container::Quoted(directory.name(tensor))))
            };
            let read = || -> Result<(String, Moments)> {
                let name = str::from_utf8(directory.name(tensor));
                let name = name.map_err(|_| fail!(BadFile, "a name that is no UTF-8"))?;
                let numbers = directory.meta_text(name).ok_or_else(|| fail!(BadFile, "no metadata"))?;
                let mut numbers = numbers.split(' ').map(|n| n.parse::<u64>().ok());
                let mut next =
                    || numbers.next().flatten().ok_or_else(|| fail!(BadFile, "numbers are missing"));
                let (columns, block, count) = (next()?, next()?, next()?);
                let fits = |n: u64| (1..=FEATURES_MAX).contains(&n);
                if tensor.ty != Type::F32 || !fits(columns) || !fits(block) || block > columns {
                    return Err(fail!(BadFile, "sums of {columns} columns in blocks of {block}"));
                }
                let (whole, rest) = (columns / block, columns % block);
                let want = whole.checked_mul(block).and_then(|n| n.checked_mul(block));
                let want = want.and_then(|n| n.checked_add(rest * rest)).and_then(|n| n.checked_mul(4));
                let bytes = files.bytes(tensor);
                if want != Some(bytes.len() as u64) {
                    return Err(fail!(BadFile, "{} bytes of sums", bytes.len()));
                }
                let mut sums = filled(bytes.len() / 4, 0.0f32, "sums of calibration")?;
                for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks().0) {
                    *sum = f32::from_le_bytes(*bytes);
                }
                let mut text = String::new();
                text.try_reserve(name.len()).map_err(|_| fail!(OutOfMemory, "a name"))?;
                text.push_str(name);
                Ok((text, Moments::of(columns as usize, block as usize, count, &sums)?))
            };
            let (name, moments) = read().map_err(within)?;
            calibration.block = calibration.block.max(moments.block());
            let at = calibration.index(&name).unwrap_or_else(|at| at);
            reserve(&mut calibration.entries, 1, "layers of calibration")?;
            calibration.entries.insert(at, (name, moments));
        }
        Ok(calibration)
    }
}

impl Calibration {
    /// Writes all sums to a file.
    pub fn save(&mut self, isa: Isa, path: &Path) -> Result<()> {
        self.settle(isa);
        let mut header = SafetensorsHeader::new()?;
        header.text(MARK, "1")?;
        for (name, moments) in &self.entries {
            let numbers = format!("{} {} {}", moments.columns(), moments.block(), moments.count());
            header.text(name, &numbers)?;
        }
        for (name, moments) in &self.entries {
            header.tensor(name, Type::F32, &[moments.sums().len() as u64])?;
        }
        let header = header.finish()?;
        let io = |e: io::Error| fail!(Io, "{}: {e}", path.display());
        let (file, mut temporary) = Temporary::create(path).map_err(io)?;
        let mut out = io::BufWriter::new(file);
        let mut write = || -> io::Result<()> {
            out.write_all(&header)?;
            for (_, moments) in &self.entries {
                moments.sums().iter().try_for_each(|sum| out.write_all(&sum.to_le_bytes()))?;
            }
            out.flush()?;
            out.get_ref().sync_all()
        };
        write().map_err(io)?;
        drop(out); // some systems rename only files that nobody has open
        temporary.rename(path).map_err(io)
    }
}
