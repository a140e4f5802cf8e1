//! Codecs against vectors and files made by the formats' own tools, and against bytes nobody made.

mod ggml;
#[allow(dead_code)] // grows with the formats
mod support;
