//! Every bound on a number that comes from a file or an argument, in one table.
//!
//! A reader checks a count against the bound here *and* against the bytes that are really there,
//! before it allocates or multiplies. What a hostile file can and cannot do: `docs/security.md`.

/// Largest dimension of a matrix: exact in f64, and a product of two fits an i64.
pub const FEATURES_MAX: u64 = 1 << 31;
/// Most tensors of one file.
pub const TENSORS_MAX: u64 = 1 << 20;
/// Most metadata entries of one file.
pub const METADATA_MAX: u64 = 1 << 20;
/// Longest tensor name or metadata key, in bytes.
pub const NAME_MAX: u64 = 1 << 16;
/// Longest metadata string, in bytes.
pub const STRING_MAX: u64 = 1 << 30;
/// Most items of one metadata array.
pub const ARRAY_MAX: u64 = 1 << 30;
/// Deepest nesting of arrays in GGUF metadata.
pub const NESTING_MAX: u32 = 8;
/// Deepest nesting of values in a JSON text: the bits of the reader's stack.
pub const JSON_NESTING_MAX: u32 = 64;
/// Most dimensions of a tensor.
pub const DIMS_MAX: usize = 4;
/// Longest JSON header of a safetensors file, in bytes (the format's own bound).
pub const JSON_MAX: u64 = 100_000_000;
/// Longest config.json, in bytes: they have a few thousand.
pub const CONFIG_MAX: u64 = 16 << 20;
/// Most files of one model: shards or splits.
pub const SOURCES_MAX: usize = 4096;
/// Most rows of x in one call.
pub const BATCH_MAX: u64 = 1 << 31;
/// Columns whose products an int32 may sum: `255 * 127 * 65_536 < 2^31` (see docs/numerics.md, 3).
pub const INT32_COLUMNS: usize = 65_536;
/// Largest `struct_size` of an options struct.
pub const STRUCT_SIZE_MAX: u32 = 4096;
/// Most threads of a context.
pub const THREADS_MAX: usize = 1024;
/// Most layers of one bl_forward_many.
pub const LAYERS_MAX: usize = 16;
/// Most values of a compressed state: what a 32-bit address space could still hold as bytes.
pub const STATE_MAX: usize = i32::MAX as usize;
