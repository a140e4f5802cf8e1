//! The formats of files: each row is encoded as the format's own tool does, and decoded again.

use super::Rule;
use crate::codec::{self, Codec};
use crate::error::{Result, Status};
use crate::layout::{Layout, Row};
use crate::memory::filled;
use crate::types::Type;

pub(super) struct Exact {
    codec: &'static dyn Codec,
    layout: Layout,
    bytes: usize,
}

impl Exact {
    pub(super) fn new(target: Type, columns: usize) -> Result<Exact> {
        let codec = codec::find(target)?;
        // Rows that the format cannot hold are no fault of a file's.
        let layout = codec.layout(columns).map_err(|e| e.with(Status::InvalidArgument))?;
        let bytes = codec.row_bytes(columns);
        // A format that cannot be written says so before any weights are read.
        let (zeros, mut room) =
            (filled(columns, 0.0, "a row of weights")?, filled(bytes, 0, "a packed row")?);
        codec.encode_row(&zeros, &mut room)?;
        Ok(Exact { codec, layout, bytes })
    }
}

impl Rule for Exact {
    fn layout(&self) -> Layout {
        self.layout
    }
    fn round(&self, weights: &[f32], bytes: &mut [u8], row: &mut Row) -> Result<()> {
        self.codec.encode_row(weights, bytes)?;
        self.codec.decode_row(bytes, row)
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}
