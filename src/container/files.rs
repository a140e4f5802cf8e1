//! All files of one model, opened: from a path, from a folder, from memory.
//!
//! ```text
//! model.gguf                       GGUF
//! model-00001-of-00003.gguf        GGUF, the other parts beside it
//! model.safetensors                safetensors, and the config.json beside it
//! model.safetensors.index.json     the shards that it names, and config.json
//! folder                           the model.safetensors or the index in it
//! artifact.json                    burn_dragon
//! ```
//! The kind is told by the content, not by the name.

use std::path::Path;

use super::config::Config;
use super::{Array, Directory, Kind, Quoted, Source, Tensor, Value};
use super::{artifact, gguf, safetensors, sharded};
use crate::error::{Error, Result, fail};

/// How to get at a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Map it: nobody may cut or rewrite it meanwhile.
    Map,
    /// Read it into memory.
    Read,
}

/// The files of one model.
#[derive(Debug)]
pub struct Files {
    /// What they hold together.
    pub directory: Directory,
    /// Their bytes; `Tensor::source` counts them.
    pub sources: Vec<Source>,
    /// The config.json beside safetensors files.
    pub config: Option<Config>,
}

impl Files {
    /// Opens the model at a path.
    pub fn open(path: &Path, access: Access) -> Result<Files> {
        if path.is_dir() {
            for name in ["model.safetensors", "model.safetensors.index.json"] {
                let file = path.join(name);
                if file.exists() {
                    return Files::open_file(&file, access);
                }
            }
            return Err(fail!(
                Io,
                "{}: model.safetensors or model.safetensors.index.json expected in this folder, found neither",
                path.display()
            ));
        }
        Files::open_file(path, access)
    }

    fn open_file(path: &Path, access: Access) -> Result<Files> {
        let source = access.open(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let files = if sharded::is_index(source.bytes()) {
            sharded::open_index(source.bytes(), folder, access)
        } else {
            Files::single(source).and_then(|files| match gguf::split(&files.directory)? {
                Some(split) => sharded::open_splits(files, split, path, access),
                None => Ok(files),
            })
        };
        let mut files = files.map_err(|e| e.within(format_args!("{}", path.display())))?;
        if files.directory.kind == Kind::Safetensors {
            files.config = Config::beside(folder)?;
        }
        Ok(files)
    }

    /// Opens a safetensors file that is no model's: nothing beside it is looked at, and keys that mean something
    /// in files of layers mean nothing.
    pub fn open_alone(path: &Path, access: Access) -> Result<Files> {
        let source = access.open(path)?;
        let within = |e: Error| e.within(format_args!("{}", path.display()));
        let directory = safetensors::read(source.bytes()).map_err(within)?;
        Files::of_one(directory, source)
    }

    /// Opens a model that is all in one piece of memory.
    pub fn of(source: Source) -> Result<Files> {
        if sharded::is_index(source.bytes()) {
            return Err(fail!(Unsupported, "an index of safetensors in memory: its shards need a folder"));
        }
        let files = Files::single(source)?;
        match gguf::split(&files.directory)? {
            Some(split) => Err(fail!(
                Unsupported,
                "part {} of {} of a split GGUF in memory: the other parts need a folder",
                split.number + 1,
                split.count
            )),
            None => Ok(files),
        }
    }

    /// One file of any kind; the part alone where it is one of a split.
    fn single(source: Source) -> Result<Files> {
        let (directory, source) = if looks_like_json(source.bytes()) {
            artifact::read(source.bytes())?
        } else {
            (super::read(source.bytes())?, source)
        };
        Files::of_one(directory, source)
    }

    fn of_one(directory: Directory, source: Source) -> Result<Files> {
        let mut sources = Vec::new();
        crate::memory::reserve(&mut sources, 1, "sources")?;
        sources.push(source);
        Ok(Files { directory, sources, config: None })
    }

    /// The bytes of a tensor of this directory.
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        let bytes = self.sources.get(tensor.source as usize).map_or(&[][..], Source::bytes);
        let start = tensor.offset as usize;
        // In range, because the readers checked it; a tensor of another directory may not be.
        bytes.get(start..start.saturating_add(tensor.bytes as usize)).unwrap_or(&[])
    }

    /// The source that a tensor is in.
    pub fn source(&self, tensor: &Tensor) -> Option<&Source> {
        self.sources.get(tensor.source as usize)
    }

    /// The item of a metadata array.
    pub fn item(&self, array: &Array, index: u64) -> Option<Value> {
        self.directory.item(array, index, self.sources.first().map_or(&[], Source::bytes))
    }
}

impl Access {
    pub(super) fn open(self, path: &Path) -> Result<Source> {
        match self {
            Access::Map => Source::map(path),
            Access::Read => Source::read(path),
        }
    }
}

/// Whether the bytes begin as a JSON object does (and not as a safetensors file).
pub(super) fn looks_like_json(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_start();
    text.starts_with(b"{") && !safetensors::is(bytes)
}

const EXPECTED: &str = "a GGUF file, safetensors file or burn_dragon artifact expected";

/// The directory of a file of unknown kind.
#[cold]
pub(super) fn unknown(bytes: &[u8]) -> crate::error::Error {
    if bytes.is_empty() {
        return fail!(BadFile, "{EXPECTED}, found an empty file");
    }
    if looks_like_json(bytes) {
        return fail!(Unsupported, "{EXPECTED}, found JSON");
    }
    let found = Quoted(&bytes[..bytes.len().min(9)]);
    fail!(BadFile, "{EXPECTED}, found one that begins {found}")
}
