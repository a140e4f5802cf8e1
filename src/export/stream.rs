//! GGUF and safetensors files, layer by layer: rows are rounded in bands of panels by all threads and
//! written to the places that the header gave them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;

use super::source::Plain;
use super::store::Store;
use super::{BAND, Job, Progress, Report, Step, What, product, shape};
use crate::container::{Kind, Quoted, Temporary};
use crate::error::{Error, Result, fail};
use crate::layout::Layout;
use crate::memory::{filled, reserve};
use crate::quantize::{Method, PANEL_ROWS, Rounding};

impl<'a> Job<'a> {
    pub(super) fn stream(
        &self,
        path: &Path,
        mut steps: Vec<Step<'a>>,
        report: &mut Report,
        progress: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<()> {
        let (header, data) = match self.options.kind {
            Kind::Gguf => self.gguf_header(&mut steps)?,
            _ => self.safetensors_header(&mut steps)?,
        };
        let largest = self.files.directory.tensors.iter().map(|t| t.bytes).max().unwrap_or(0);
        for step in &steps {
            if let What::Round { plan, rotation, store, .. } = &step.what {
                let moments = self.options.calibration.and_then(|c| c.find(&step.name));
                let within = |e: Error| e.within(format_args!("{}", Quoted(step.name.as_bytes())));
                self.check_memory(plan, store.as_ref(), moments, largest).map_err(within)?;
                if let (Some(rotation), Some(moments)) = (rotation, moments) {
                    moments.rotates(rotation).map_err(within)?;
                }
            }
        }
        let io = |e: io::Error| fail!(Io, "{}: {e}", path.display());
        let (file, mut temporary) = Temporary::create(path).map_err(io)?;
        file.set_len(header.len() as u64 + data).map_err(io)?;
        let mut out = Output { file, data: header.len() as u64, path };
        (&out.file).write_all(&header).map_err(io)?;
        let (total, weights_total) = (steps.len() as u64, steps.iter().map(|s| s.weights).sum());
        let mut weights_done = 0;
        for (done, step) in steps.iter().enumerate() {
            let done = done as u64;
            let now = Progress { name: &step.name, done, total, weights_done, weights_total };
            if !progress(&now) {
                return Err(fail!(Cancelled, "stopped before {}", Quoted(step.name.as_bytes())));
            }
            self.write_step(step, &mut out)
                .map_err(|e| e.within(format_args!("{}", Quoted(step.name.as_bytes()))))?;
            weights_done += step.weights;
        }
        if !progress(&Progress { name: "", done: total, total, weights_done, weights_total }) {
            return Err(fail!(Cancelled, "stopped before the file had its name"));
        }
        report.bytes_written = out.data + data;
        out.file.sync_all().map_err(io)?;
        drop(out); // some systems rename only files that nobody has open
        temporary.rename().map_err(io)
    }

    fn write_step(&self, step: &Step<'_>, out: &mut Output<'_>) -> Result<()> {
        match &step.what {
            What::Copy { tensor, at } => {
                let bytes = self.files.bytes(tensor);
                for (n, bytes) in bytes.chunks(BAND).enumerate() {
                    out.write(at + (n * BAND) as u64, bytes)?;
                    self.read(tensor, n * BAND + bytes.len());
                }
                Ok(())
            }
            What::Convert { tensor, .. } if product(shape(tensor)) == 0 => Ok(()), // no rows, or rows of nothing
            What::Convert { tensor, ty, at } => {
                let columns = *shape(tensor).last().unwrap_or(&1) as usize;
                let rows = (product(shape(tensor)) / columns as u64) as usize;
                let matrix = crate::codec::open(tensor.ty, rows, columns, self.files.bytes(tensor))?;
                let rounding = Rounding::new(self.isa, self.executor, &*matrix, &Method::plain(*ty))?;
                let store = Store::Rows(crate::codec::find(*ty)?);
                self.write_rows(&rounding, &store, *at, None, out)
            }
            What::Round { plan, target, rotation, store: Some(store), at, .. } => {
                let matrix = plan.matrix()?;
                let plain = Plain::new(&*matrix, rotation.as_ref(), self.isa);
                let moments = self.moments(&step.name, rotation.as_ref())?;
                let method = self.method(target, moments.as_ref());
                let rounding = Rounding::new(self.isa, self.executor, &plain, &method)?;
                let second = at.get(1).map(|(at, _)| *at);
                self.write_rows(&rounding, store, at[0].0, second, out)?;
                if let Some((tensor, ..)) = plan.rows {
                    self.read(tensor, tensor.bytes as usize);
                }
                Ok(())
            }
            What::Round { .. } => Err(fail!(Internal, "a layer without a place")),
        }
    }

    /// Rounds all rows and writes codes at `at` and scales, where they stand apart, at `second`.
    fn write_rows(
        &self,
        rounding: &Rounding<'_>,
        store: &Store,
        at: u64,
        second: Option<u64>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let (rows, columns) = (rounding.out_features(), rounding.in_features());
        if let (Some(second), Some(scales)) = (second, store.tensor_scales(rounding.tensor_scales())?) {
            out.write(second, &scales)?;
        }
        let Some(row_bytes) = store.row_bytes(columns) else {
            return self.write_quarters(rounding, at, out);
        };
        let panels = (BAND / (PANEL_ROWS * row_bytes).max(1)).max(self.executor.width()).max(1);
        let band = (panels * PANEL_ROWS).min(rows);
        let mut buffer = filled(band * row_bytes, 0u8, "rounded rows")?;
        let groups = if store.has_row_scales() { scales_of(&rounding.layout(), columns) } else { 0 };
        let mut scales = filled(band * groups * 4, 0u8, "scales of rows")?;
        for first in (0..rows).step_by(band) {
            let count = band.min(rows - first);
            let mut places = Vec::new();
            reserve(&mut places, count.div_ceil(PANEL_ROWS), "panels")?;
            // Panels without scales of their own get an empty place.
            let mut own_scales = scales.chunks_mut((PANEL_ROWS * groups * 4).max(1));
            for bytes in buffer[..count * row_bytes].chunks_mut(PANEL_ROWS * row_bytes) {
                places.push(Mutex::new((bytes, own_scales.next().unwrap_or(&mut []))));
            }
            self.executor.run(places.len(), &|_, piece| {
                let mut place = places[piece].lock().unwrap_or_else(|e| e.into_inner());
                let start = first + piece * PANEL_ROWS;
                let (bytes, scales) = &mut *place;
                rounding.panel(start, bytes.len() / row_bytes, &mut |index, row| {
                    let n = index - start;
                    store.row(row, &mut bytes[n * row_bytes..][..row_bytes])?;
                    if groups > 0 {
                        let place = scales[n * groups * 4..][..groups * 4].as_chunks_mut().0;
                        place.iter_mut().zip(&row.scales).for_each(|(p, s)| *p = s.to_le_bytes());
                    }
                    Ok(())
                })
            })?;
            drop(places);
            out.write(at + (first * row_bytes) as u64, &buffer[..count * row_bytes])?;
            if let Some(second) = second.filter(|_| groups > 0) {
                out.write(second + (first * groups * 4) as u64, &scales[..count * groups * 4])?;
            }
        }
        if let Some(tail) = store.tail(rounding.tensor_scales())? {
            out.write(at + (rows * row_bytes) as u64, &tail)?;
        }
        Ok(())
    }

    /// BitNet's bytes: four rows, a quarter of the matrix apart, in each.
    fn write_quarters(&self, rounding: &Rounding<'_>, at: u64, out: &mut Output<'_>) -> Result<()> {
        let (rows, columns) = (rounding.out_features(), rounding.in_features());
        let quarter = rows.div_ceil(4);
        let packed = Mutex::new(filled(quarter * columns, 0u8, "packed rows")?);
        self.executor.run(rows.div_ceil(PANEL_ROWS), &|_, piece| {
            let first = piece * PANEL_ROWS;
            rounding.panel(first, PANEL_ROWS.min(rows - first), &mut |index, row| {
                let mut packed = packed.lock().unwrap_or_else(|e| e.into_inner());
                let bytes = &mut packed[index % quarter * columns..][..columns];
                let shift = 2 * (index / quarter);
                bytes.iter_mut().zip(&row.codes).for_each(|(byte, code)| *byte |= code << shift);
                Ok(())
            })
        })?;
        out.write(at, &packed.into_inner().unwrap_or_else(|e| e.into_inner()))
    }
}

/// Scales of a row.
fn scales_of(layout: &Layout, columns: usize) -> usize {
    match layout {
        Layout::Coded(coded) => columns.div_ceil(coded.group_len(columns)),
        Layout::Dense(_) => 0,
    }
}

/// A file whose places are written in any order.
struct Output<'a> {
    file: File,
    /// Where the data begins.
    data: u64,
    path: &'a Path,
}

impl Output<'_> {
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let place = SeekFrom::Start(self.data + at);
        let written = self.file.seek(place).and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| fail!(Io, "{}: {e}", self.path.display()))
    }
}
