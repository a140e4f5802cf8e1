//! What a GGUF file says about being one part of several.

use super::super::{Directory, Kind, Value};
use crate::error::{Result, fail};
use crate::limits::SOURCES_MAX;

/// Which part of how many a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// This part, from 0.
    pub number: usize,
    /// All parts: at least 2.
    pub count: usize,
    /// The tensors of all parts, where the file says.
    pub tensors: Option<u64>,
}

/// Which part of a split file this is; `None` where it is whole.
pub fn split(directory: &Directory) -> Result<Option<Split>> {
    if directory.kind != Kind::Gguf {
        return Ok(None); // another format's key of that name means nothing
    }
    let count = integer(directory, "split.count")?.unwrap_or(0);
    if count <= 1 {
        return Ok(None);
    }
    if count > SOURCES_MAX as u64 {
        return Err(fail!(BadFile, "split.count: at most {SOURCES_MAX} expected, found {count}"));
    }
    let number = integer(directory, "split.no")?.unwrap_or(0);
    if number >= count {
        return Err(fail!(BadFile, "split.no: less than split.count {count} expected, found {number}"));
    }
    let tensors = integer(directory, "split.tensors.count")?;
    Ok(Some(Split { number: number as usize, count: count as usize, tensors }))
}

fn integer(directory: &Directory, key: &str) -> Result<Option<u64>> {
    match directory.meta(key).map(|meta| meta.value) {
        None => Ok(None),
        Some(Value::U64(n)) => Ok(Some(n)),
        Some(Value::I64(n)) if n >= 0 => Ok(Some(n as u64)),
        Some(_) => Err(fail!(BadFile, "{key}: a whole number expected, found another value")),
    }
}
