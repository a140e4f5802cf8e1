//! Which format a tensor has and which bytes are its own.
//!
//! Most type ids mean one thing. Some mean another in another program's files, and nothing marks
//! those but the room that a tensor has up to the next one (or the end of the file):
//!
//! ```text
//! id  usual                      other                               told apart by
//! 30  BF16              2 n      T158 (ruvllm)    66 ceil(n/256)     architecture and encoding keys, room
//! 36  I2_S (bitnet.cpp) n/4+32   IQ4_NL_4_4       18 n/32            room
//! 38  TL1 (bitnet.cpp)  n/4+32   IQ4_NL_8_8       18 n/32            room
//! 39  MXFP4             17 n/32  TL2 (bitnet.cpp) see `tl2_bytes`    room, then architecture
//! 42  Q2_0              18 n/64  Q2_0, older      34 n/128           room, over all such tensors
//! ```
//! Sources: ggml.h (commit d99724f2) for ids and blocks; bitnet.cpp's fork for 36, 38 and 39; the
//! PrismML fork for 142, 143 and the older 42.

use super::super::{Quoted, Tensor, Texts};
use super::{Facts, Info};
use crate::error::{Result, fail};
use crate::limits::DIMS_MAX;
use crate::memory::reserve;
use crate::order;
use crate::types::Type;

const ID_BF16: u32 = 30;
const ID_I2_S: u32 = 36;
const ID_TL1: u32 = 38;
const ID_MXFP4: u32 = 39;
const ID_Q2_0: u32 = 42;

/// The type of an id that has one meaning, or the usual one of a clashing id.
fn usual(id: u32) -> Option<Type> {
    match id {
        0 => Some(Type::F32),
        1 => Some(Type::F16),
        24 => Some(Type::I8),
        25 => Some(Type::I16),
        26 => Some(Type::I32),
        27 => Some(Type::I64),
        28 => Some(Type::F64),
        ID_BF16 => Some(Type::Bf16),
        2..=3 | 6..=8 | 10..=14 | 16..=23 | 29 | 34..=36 | 38..=42 | 142..=143 => Type::from_number(100 + id),
        _ => None,
    }
}

/// Refuses an id that no tensor of ours can have; `at` is its byte in the file.
pub(super) fn known(id: u32, at: usize) -> Result<()> {
    if usual(id).is_some() {
        return Ok(());
    }
    let what = match id {
        4 => "Q4_2, which ggml removed",
        5 => "Q4_3, which ggml removed",
        9 => "Q8_1, a format of activations",
        15 => "Q8_K, a format of activations",
        31 => "Q4_0_4_4, which ggml removed: convert the file to Q4_0",
        32 => "Q4_0_4_8, which ggml removed: convert the file to Q4_0",
        33 => "Q4_0_8_8, which ggml removed: convert the file to Q4_0",
        37 => "I8_S of bitnet.cpp, a format of activations",
        _ => return Err(fail!(Unsupported, "type id {id} at byte {at} is not known")),
    };
    Err(fail!(Unsupported, "type id {id} at byte {at} is {what}"))
}

/// Settles type and byte range of every tensor.
pub(super) fn settle(infos: &[Info], facts: &Facts, texts: &Texts) -> Result<Vec<Tensor>> {
    let mut order = Vec::new();
    reserve(&mut order, infos.len(), "tensors by offset")?;
    order.extend(0..infos.len() as u32);
    let place = |i: u32| (infos[i as usize].offset, i);
    order::sort(&mut order, &|a, b| place(a).cmp(&place(b)));

    let mut tensors = Vec::new();
    reserve(&mut tensors, infos.len(), "tensors")?;
    tensors.extend(infos.iter().map(|info| Tensor {
        name: info.name,
        ty: Type::F32,
        dims: info.dims,
        shape: info.shape,
        source: 0,
        offset: 0,
        bytes: 0,
    }));
    let file = File {
        facts,
        architecture: facts.architecture.map_or(&[], |s| texts.get(s)),
        swapped: facts.architecture.is_some_and(|s| texts.get(s) == b"craftsman")
            && facts.encoding.is_some_and(|s| texts.get(s) == b"absmean_ternary"),
        older_q2_0: older_q2_0(infos, &order, facts, texts)?,
    };
    for (position, &index) in order.iter().enumerate() {
        let info = &infos[index as usize];
        let next = order.get(position + 1).map(|&next| &infos[next as usize]);
        file.settle_one(info, next, &mut tensors[index as usize], texts)
            .map_err(|e| e.within(format_args!("GGUF tensor {}", Quoted(texts.get(info.name)))))?;
    }
    Ok(tensors)
}

/// What all tensors of a file share.
struct File<'a> {
    facts: &'a Facts,
    architecture: &'a [u8],
    /// Written by ruvllm: dimensions are outermost first already.
    swapped: bool,
    /// Whether id 42 has blocks of 128; `None` where the file has no such tensor.
    older_q2_0: Option<bool>,
}

impl File<'_> {
    fn settle_one(&self, info: &Info, next: Option<&Info>, tensor: &mut Tensor, texts: &Texts) -> Result<()> {
        let facts = self.facts;
        if self.swapped {
            tensor.shape[..info.dims as usize].reverse();
        }
        if !info.offset.is_multiple_of(facts.alignment) {
            return Err(fail!(
                BadFile,
                "offset {}: a multiple of the alignment {} expected",
                info.offset,
                facts.alignment
            ));
        }
        let room = Room::of(info, next, facts)?;
        let shape = Shape::of(&tensor.shape, tensor.dims)?;
        tensor.ty = self.type_of(info.id, &shape, &room)?;
        tensor.bytes = bytes_of(tensor.ty, &shape)?;
        tensor.offset = facts.data + info.offset; // no overflow: `Room::of` compared it with the end
        if tensor.bytes > room.bytes {
            return Err(match next {
                Some(next) => fail!(
                    BadFile,
                    "{} bytes at offset {} expected, but tensor {} starts at offset {}",
                    tensor.bytes,
                    info.offset,
                    Quoted(texts.get(next.name)),
                    next.offset
                ),
                None => fail!(
                    BadFile,
                    "bytes {} to {} expected, found a file of {} bytes",
                    tensor.offset,
                    tensor.offset as u128 + tensor.bytes as u128,
                    facts.end
                ),
            });
        }
        Ok(())
    }

    fn type_of(&self, id: u32, shape: &Shape, room: &Room) -> Result<Type> {
        let usual = usual(id).ok_or_else(|| fail!(Unsupported, "type id {id} is not known"))?;
        match id {
            ID_BF16 if self.swapped => {
                let bf16 = room.is_filled_by(shape.elements.checked_mul(2));
                match (room.is_filled_by(bytes_of(Type::T158, shape).ok()), bf16) {
                    (true, false) => Ok(Type::T158),
                    (false, _) => Ok(Type::Bf16),
                    (true, true) => Err(fail!(
                        Unsupported,
                        "type id 30 is BF16 or ruvllm's ternary, and {} bytes fit both",
                        room.bytes
                    )),
                }
            }
            ID_I2_S | ID_TL1 => {
                let other = shape.blocks(32, 18).ok();
                if room.is_filled_by(other) && !room.is_filled_by(bytes_of(usual, shape).ok()) {
                    return Err(fail!(
                        Unsupported,
                        "type id {id} with {} bytes is IQ4_NL repacked, which ggml removed: convert the file to IQ4_NL",
                        room.bytes
                    ));
                }
                Ok(usual)
            }
            ID_MXFP4 => {
                let mxfp4 = room.is_filled_by(shape.blocks(32, 17).ok());
                let tl2 = room.is_filled_by(bytes_of(Type::Tl2, shape).ok());
                let fork = self.architecture.starts_with(b"bitnet");
                Ok(if tl2 == mxfp4 && fork || tl2 && !mxfp4 { Type::Tl2 } else { Type::Mxfp4 })
            }
            ID_Q2_0 if self.older_q2_0 == Some(true) => Ok(Type::Q2_0Legacy),
            _ => Ok(usual),
        }
    }
}

/// Whether the tensors of id 42 have the older blocks of 128. One program writes a file, so one
/// tensor whose room fits only one of the two speaks for all; contradiction and silence are errors,
/// because the wrong choice gives plausible garbage.
fn older_q2_0(infos: &[Info], order: &[u32], facts: &Facts, texts: &Texts) -> Result<Option<bool>> {
    let (mut newer, mut older, mut some) = (None, None, None);
    for (position, &index) in order.iter().enumerate() {
        let info = &infos[index as usize];
        if info.id != ID_Q2_0 {
            continue;
        }
        some = Some(info);
        let next = order.get(position + 1).map(|&next| &infos[next as usize]);
        let (Ok(room), Ok(shape)) = (Room::of(info, next, facts), Shape::of(&info.shape, info.dims)) else {
            continue; // an error that `settle_one` words
        };
        let as_newer = shape.blocks(64, 18).ok();
        let as_older = shape.blocks(128, 34).ok();
        match (room.is_filled_by(as_newer), room.is_filled_by(as_older)) {
            (true, false) => newer = Some(info),
            (false, true) => older = Some(info),
            (true, true) => {}
            // Room that neither fills (a gap, or a file cut short): what does not fit cannot be.
            (false, false) if as_older.is_none() => newer = Some(info),
            (false, false) => {}
        }
    }
    let name = |info: &Info| texts.get(info.name);
    match (newer, older, some) {
        (None, None, None) => Ok(None),
        (Some(_), None, _) => Ok(Some(false)),
        (None, Some(_), _) => Ok(Some(true)),
        (Some(newer), Some(older), _) => Err(fail!(
            BadFile,
            "type id 42 is Q2_0 with blocks of 64 in GGUF tensor {} and of 128 in {}",
            Quoted(name(newer)),
            Quoted(name(older))
        )),
        (None, None, Some(info)) => Err(fail!(
            Unsupported,
            "GGUF tensor {}: type id 42 is Q2_0 with blocks of 64 or of 128, and no tensor's bytes say which",
            Quoted(name(info))
        )),
    }
}

/// The bytes from a tensor's start to the next one's, or to the end of the file.
struct Room {
    bytes: u64,
    last: bool,
    alignment: u64,
}

impl Room {
    fn of(info: &Info, next: Option<&Info>, facts: &Facts) -> Result<Room> {
        let start = facts.data.checked_add(info.offset).filter(|&start| start <= facts.end);
        let start = start.ok_or_else(|| {
            fail!(
                BadFile,
                "offset {} from byte {} on expected inside the file, found a file of {} bytes",
                info.offset,
                facts.data,
                facts.end
            )
        })?;
        let to_end = facts.end - start;
        let bytes = next.map_or(to_end, |next| (next.offset - info.offset).min(to_end));
        Ok(Room { bytes, last: next.is_none(), alignment: facts.alignment })
    }

    /// Whether a tensor of that size leaves no room but its padding (which a last tensor may lack).
    fn is_filled_by(&self, bytes: Option<u64>) -> bool {
        bytes.is_some_and(|bytes| {
            bytes.checked_next_multiple_of(self.alignment) == Some(self.bytes)
                || self.last && bytes == self.bytes
        })
    }
}

/// A shape whose element count fits an i64 (ggml's own bound).
struct Shape {
    elements: u64,
    columns: u64,
}

impl Shape {
    fn of(shape: &[u64; DIMS_MAX], dims: u32) -> Result<Shape> {
        let elements =
            shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d).filter(|&n| n <= i64::MAX as u64));
        let elements = elements.ok_or_else(|| {
            fail!(BadFile, "shape {:?} has more elements than 64 bits count", &shape[..dims as usize])
        })?;
        Ok(Shape { elements, columns: dims.checked_sub(1).map_or(1, |last| shape[last as usize]) })
    }

    /// Bytes of rows of blocks.
    fn blocks(&self, block: u64, bytes: u64) -> Result<u64> {
        if !self.columns.is_multiple_of(block) {
            return Err(fail!(BadFile, "rows of a multiple of {block} expected, found {}", self.columns));
        }
        (self.elements / block)
            .checked_mul(bytes)
            .ok_or_else(|| fail!(BadFile, "{} elements overflow", self.elements))
    }
}

/// Bytes of a tensor of that shape, outermost dimension first.
pub(super) fn id_bytes(ty: Type, shape: &[u64]) -> Result<u64> {
    let mut all = [1; DIMS_MAX];
    all[..shape.len()].copy_from_slice(shape);
    bytes_of(ty, &Shape::of(&all, shape.len() as u32)?)
}

/// Bytes of a tensor.
fn bytes_of(ty: Type, shape: &Shape) -> Result<u64> {
    let info = ty.info();
    let bytes = match ty {
        Type::I2S | Type::Tl1 => {
            if !shape.elements.is_multiple_of(4) {
                return Err(fail!(
                    BadFile,
                    "{}: a multiple of 4 weights expected, found {}",
                    info.name(),
                    shape.elements
                ));
            }
            shape.elements / 4 + 32 // codes, then the scale and its padding
        }
        Type::Tl2 => tl2_bytes(shape)
            .ok_or_else(|| fail!(BadFile, "{}: {} columns have no size", info.name(), shape.columns))?,
        // Flat blocks that run across rows; the last one is full in the file.
        Type::T158 => shape
            .elements
            .div_ceil(info.block as u64)
            .checked_mul(info.block_bytes as u64)
            .ok_or_else(|| fail!(BadFile, "{} elements overflow", shape.elements))?,
        _ => shape
            .blocks(info.block as u64, info.block_bytes as u64)
            .map_err(|e| e.within(format_args!("{}", info.name())))?,
    };
    Ok(bytes)
}

/// Bytes of a TL2 tensor: three weights in five bits but for the last 256 columns, which are two
/// weights in four bits; then the scale.
fn tl2_bytes(shape: &Shape) -> Option<u64> {
    let rows = shape.elements / shape.columns;
    let threes = shape.columns.checked_sub(256)?.checked_mul(rows)? / 3;
    let twos = rows.checked_mul(256)? / 2;
    let bytes = (threes.checked_mul(5)? / 8).checked_add(twos.checked_mul(4)? / 8)?;
    bytes.checked_next_multiple_of(32)?.checked_add(32)
}
