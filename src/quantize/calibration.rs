//! Moments of the inputs of many layers, by name, and the file they are kept in.
//!
//! ```text
//! a safetensors file; for each layer  name  F32 [sums]   blocks of sums, as `Moments` has them
//! metadata                            name  "columns block count"
//!                                     calibration.format  "1"
//! ```

use super::moments::{Moments, with_square};
use crate::container::{Access, Files, SafetensorsHeader, Temporary};
use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::limits::{FEATURES_MAX, NAME_MAX};
use crate::memory::{filled, reserve};
use crate::types::Type;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

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
    /// Shared with the views that were taken; those that are changed then are copied first.
    entries: Vec<(String, Arc<Moments>)>,
}

fn owned(name: &str) -> Result<String> {
    let mut text = String::new();
    text.try_reserve(name.len()).map_err(|_| fail!(OutOfMemory, "a name"))?;
    text.push_str(name);
    Ok(text)
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
        self.index(bare).ok().map(|i| &*self.entries[i].1)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// What is known now, whatever is added to this later.
    pub fn view(&mut self, isa: Isa) -> Result<Calibration> {
        self.settle(isa);
        let mut view = Calibration::new(self.block, self.samples, self.memory);
        reserve(&mut view.entries, self.entries.len(), "layers of calibration")?;
        for (name, moments) in &self.entries {
            view.entries.push((owned(name)?, moments.clone()));
        }
        Ok(view)
    }

    /// The sums for a layer, made where there are none.
    fn entry(&mut self, name: &str, columns: usize) -> Result<&mut Moments> {
        let bare = name.strip_suffix(".weight").unwrap_or(name);
        let reserved = bare == "__metadata__" || bare == MARK || bare.contains('\0');
        if bare.is_empty() || bare.len() as u64 > NAME_MAX || reserved {
            return Err(fail!(
                InvalidArgument,
                "calibration for a layer of the name `{bare}`, which its file cannot keep: give another"
            ));
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
                let moments = Arc::new(Moments::new(columns, self.block)?);
                reserve(&mut self.entries, 1, "layers of calibration")?;
                self.entries.insert(at, (owned(bare)?, moments));
                self.used += bytes;
                at
            }
        };
        let moments = &mut self.entries[at].1;
        if moments.columns() != columns {
            let found = moments.columns();
            return Err(fail!(InvalidArgument, "{bare}: {columns} columns, after rows of {found}"));
        }
        if Arc::get_mut(moments).is_none() {
            *moments = Arc::new(moments.copy()?);
        }
        Arc::get_mut(moments).ok_or_else(|| fail!(Internal, "sums of calibration that are shared"))
    }

    /// Adds rows of x, which `read` gives one after another into a buffer of `columns` values; none of
    /// them where one is not finite, or sums would not be.
    pub fn add(
        &mut self,
        isa: Isa,
        name: &str,
        columns: usize,
        rows: usize,
        read: &dyn Fn(usize, &mut [f32]),
    ) -> Result<()> {
        let samples = self.samples;
        let (mut counted, mut squares) = self.find(name).map_or((0, 0.0), |m| (m.count(), m.squares()));
        let mut row = filled(columns, 0.0f32, "a row of x")?;
        for r in 0..rows {
            read(r, &mut row);
            if let Some(k) = row.iter().position(|v| !v.is_finite()) {
                return Err(fail!(InvalidArgument, "{name}: x[{r}][{k}] is {}", row[k]));
            }
            if counted < samples {
                squares =
                    with_square(squares, &row).map_err(|e| e.within(format_args!("{name}: row {r}")))?;
                counted += 1;
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
        // Where sums are shared, nothing waits: they were settled for the view.
        let own = self.entries.iter_mut().filter_map(|(_, moments)| Arc::get_mut(moments));
        own.for_each(|moments| moments.settle(isa));
    }

    /// The layers with their sums; call [`Calibration::settle`] first.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Moments)> {
        self.entries.iter().map(|(name, moments)| (name.as_str(), &**moments))
    }

    /// Reads a file that was saved. What lies beside it is about a model.
    pub fn open(path: &Path) -> Result<Calibration> {
        let files = Files::open_alone(path, Access::Map)?;
        let directory = &files.directory;
        if directory.meta_text(MARK) != Some("1") {
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
                Ok((owned(name)?, Moments::of(columns as usize, block as usize, count, &sums)?))
            };
            let (name, moments) = read().map_err(within)?;
            calibration.block = calibration.block.max(moments.block());
            let at = calibration.index(&name).unwrap_or_else(|at| at);
            reserve(&mut calibration.entries, 1, "layers of calibration")?;
            calibration.entries.insert(at, (name, Arc::new(moments)));
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
        temporary.rename().map_err(io)
    }
}
