//! Layers of files, through the C functions: what every golden holds, what decides between readings,
//! and what is refused.

#[path = "../codec/support.rs"]
#[allow(dead_code)]
mod data;
#[path = "../container_common/gguf_writer.rs"]
#[allow(dead_code, unreachable_pub)]
mod gguf_writer;

#[path = "../native/mod.rs"]
mod native;

mod c;
mod files;
mod fresh;
mod goldens;
mod half_present;
mod naming;
mod norm;
mod options;
mod outputs;
mod rotation;
