//! Codecs against vectors and files made by the formats' own tools, and against bytes nobody made.

mod ggml;
mod int4;
mod support;
mod ternary;
