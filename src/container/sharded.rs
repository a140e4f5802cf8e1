//! Models in several files: safetensors with an index, and GGUF in parts.
//!
//! ```text
//! model.safetensors.index.json
//! {"metadata": {"total_size": 123},
//!  "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors", ...}}
//!
//! name-00001-of-00003.gguf     split.no 0, split.count 3, split.tensors.count 291
//! ```
//! The names in an index are a stranger's: only plain files in the index's folder or below it are
//! opened. Sources: the index as the transformers library writes it; llama.cpp's gguf-split.

use std::path::{Component, Path};

use super::files::{Access, Files};
use super::gguf::Split;
use super::json::{Kind as Json, Reader, Text};
use super::{Directory, Quoted, Source, Str, Texts};
use super::{files, gguf, safetensors};
use crate::error::{Result, fail};
use crate::limits::{JSON_MAX, NAME_MAX, SOURCES_MAX, TENSORS_MAX};
use crate::memory::reserve;
use crate::order;

const WHAT: &str = "index of safetensors";

/// Whether the bytes are a JSON text with a `weight_map`.
pub(super) fn is_index(bytes: &[u8]) -> bool {
    files::looks_like_json(bytes)
        && bytes.len() as u64 <= JSON_MAX
        && Reader::new(bytes, WHAT, 0).is_ok_and(|json| json.find(&["weight_map"]).is_some())
}

/// Opens the shards that an index names.
pub(super) fn open_index(index: &[u8], folder: &Path, access: Access) -> Result<Files> {
    let index = Index::read(index)?;
    let mut parts = Vec::new();
    let mut sources = Vec::new();
    for &shard in &index.shards {
        let name = index.texts.get(shard);
        let path = folder.join(plain(name)?);
        let source = access.open(&path).map_err(|e| e.within(format_args!("{WHAT}: shard")))?;
        let part = if safetensors::is(source.bytes()) {
            safetensors::read(source.bytes())
        } else {
            Err(files::unknown(source.bytes()))
        };
        let part = part.map_err(|e| e.within(format_args!("shard {}", Quoted(name))))?;
        reserve(&mut parts, 1, "shards")?;
        reserve(&mut sources, 1, "shards")?;
        parts.push(part);
        sources.push(source);
    }
    let directory = join(parts)?;
    for entry in &index.entries {
        let name = index.texts.get(entry.tensor);
        let shard = index.texts.get(entry.shard);
        let Some(tensor) = directory.tensor(name) else {
            return Err(fail!(BadFile, "{WHAT}: tensor {} is not in shard {}", Quoted(name), Quoted(shard)));
        };
        let found = index.shards.get(tensor.source as usize).map_or(&[][..], |&s| index.texts.get(s));
        if found != shard {
            return Err(fail!(
                BadFile,
                "{WHAT}: tensor {} expected in shard {}, found in {}",
                Quoted(name),
                Quoted(shard),
                Quoted(found)
            ));
        }
    }
    Ok(Files { directory, sources, config: None })
}

/// What an index says.
struct Index {
    texts: Texts,
    entries: Vec<Entry>,
    /// The different shards, by name.
    shards: Vec<Str>,
}

#[derive(Clone, Copy)]
struct Entry {
    tensor: Str,
    shard: Str,
}

impl Index {
    fn read(bytes: &[u8]) -> Result<Index> {
        let mut index = Index { texts: Texts::new(), entries: Vec::new(), shards: Vec::new() };
        let mut json = Reader::new(bytes, WHAT, 0)?;
        let mut found = false;
        json.open_object()?;
        while let Some(key) = json.next_key()? {
            if !key.is("weight_map") {
                json.skip()?;
            } else if std::mem::replace(&mut found, true) {
                return Err(fail!(BadFile, "{WHAT}: weight_map is there twice"));
            } else {
                index.weight_map(&mut json)?;
            }
        }
        json.end()?;
        index.sort_shards()?;
        Ok(index)
    }

    fn weight_map(&mut self, json: &mut Reader<'_>) -> Result<()> {
        let mut room = Vec::new();
        if json.peek()? != Json::Object {
            return Err(fail!(BadFile, "{WHAT}: weight_map: an object expected"));
        }
        json.open_object()?;
        while let Some(key) = json.next_key()? {
            if self.entries.len() as u64 == TENSORS_MAX {
                return Err(fail!(BadFile, "{WHAT}: at most {TENSORS_MAX} tensors expected, found more"));
            }
            let tensor = self.keep(key, &mut room)?;
            let shard = self.keep(json.string()?, &mut room)?;
            reserve(&mut self.entries, 1, "index")?;
            self.entries.push(Entry { tensor, shard });
        }
        Ok(())
    }

    fn keep(&mut self, text: Text<'_>, room: &mut Vec<u8>) -> Result<Str> {
        let text = text.decode(room)?;
        if text.len() as u64 > NAME_MAX || text.contains(&0) {
            return Err(fail!(BadFile, "{WHAT}: {} is too long or holds a NUL", Quoted(text)));
        }
        self.texts.push(text)
    }

    /// Lists the different shards. Sorted, so that the work stays bounded whatever they are.
    fn sort_shards(&mut self) -> Result<()> {
        let Index { texts, entries, shards } = self;
        let mut order = Vec::new();
        reserve(&mut order, entries.len(), "shards by name")?;
        order.extend((0..entries.len()).map(|i| i as u32)); // as many as a file has bytes, below 2^32
        let name = |i: u32| texts.get(entries[i as usize].shard);
        order::sort(&mut order, &|a, b| name(a).cmp(name(b)));
        order.dedup_by(|a, b| name(*a) == name(*b));
        reserve(shards, order.len(), "shards")?;
        shards.extend(order.iter().map(|&i| entries[i as usize].shard));
        if shards.len() > SOURCES_MAX {
            return Err(fail!(
                BadFile,
                "{WHAT}: at most {SOURCES_MAX} shards expected, found {}",
                shards.len()
            ));
        }
        if shards.is_empty() {
            return Err(fail!(BadFile, "{WHAT}: weight_map names no tensor"));
        }
        Ok(())
    }
}

/// The path of a shard, where it names a file in the folder or below it, on any system.
fn plain(name: &[u8]) -> Result<&Path> {
    let refused = |why: &str| fail!(BadFile, "{WHAT}: shard {} {why}", Quoted(name));
    let text = str::from_utf8(name).map_err(|_| refused("is not UTF-8"))?;
    let path = Path::new(text);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if text.is_empty() || !inside || text.contains(['\\', ':']) {
        return Err(refused("is no plain file name: it must stay in the folder of the index"));
    }
    Ok(path)
}

/// Opens the other parts of a split GGUF file.
pub(super) fn open_splits(first: Files, split: Split, path: &Path, access: Access) -> Result<Files> {
    let count = split.count;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    let ending = format!("-{:05}-of-{count:05}.gguf", split.number + 1);
    let Some(stem) = name.strip_suffix(&ending) else {
        return Err(fail!(
            BadFile,
            "part {} of {count}: a name ending in {ending} expected",
            split.number + 1
        ));
    };
    if split.number != 0 {
        return Err(fail!(
            Unsupported,
            "part {} of {count}: open the first, {stem}-00001-of-{count:05}.gguf",
            split.number + 1
        ));
    }
    let Files { directory, mut sources, .. } = first;
    let mut parts = Vec::new();
    reserve(&mut parts, count, "parts")?;
    reserve(&mut sources, count, "parts")?;
    parts.push(directory);
    for number in 1..count {
        let path = path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", number + 1));
        let (part, source) = open_part(&path, Split { number, ..split }, access)
            .map_err(|e| e.within(format_args!("part {} of {count}", number + 1)))?;
        parts.push(part);
        sources.push(source);
    }
    let directory = join(parts)?;
    if let Some(tensors) = split.tensors
        && tensors != directory.tensors.len() as u64
    {
        let found = directory.tensors.len();
        return Err(fail!(
            BadFile,
            "split.tensors.count: {tensors} expected, found {found} in {count} parts"
        ));
    }
    Ok(Files { directory, sources, config: None })
}

fn open_part(path: &Path, expected: Split, access: Access) -> Result<(Directory, Source)> {
    let source = access.open(path)?;
    let within = |e: crate::error::Error| e.within(format_args!("{}", path.display()));
    let directory = gguf::read(source.bytes()).map_err(within)?;
    match gguf::split(&directory).map_err(within)? {
        Some(found) if (found.number, found.count) == (expected.number, expected.count) => {
            Ok((directory, source))
        }
        Some(found) => Err(within(fail!(BadFile, "it says part {} of {}", found.number + 1, found.count))),
        None => Err(within(fail!(BadFile, "it says nothing of being a part"))),
    }
}

/// One directory of several; the metadata is the first one's.
fn join(parts: Vec<Directory>) -> Result<Directory> {
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else {
        return Err(fail!(Internal, "no parts to join"));
    };
    let Directory { kind, mut tensors, metadata, mut texts, .. } = first;
    for (number, part) in parts.enumerate() {
        if (tensors.len() + part.tensors.len()) as u64 > TENSORS_MAX {
            return Err(fail!(BadFile, "at most {TENSORS_MAX} tensors expected, found more"));
        }
        reserve(&mut tensors, part.tensors.len(), "tensors")?;
        for mut tensor in part.tensors {
            tensor.name = texts.push(part.texts.get(tensor.name))?;
            tensor.source = number as u32 + 1;
            tensors.push(tensor);
        }
    }
    Directory::new(kind, tensors, metadata, texts)
}
