//! JSON headers that are written: text that grows fallibly, and strings in it.

use std::fmt::{self, Write as _};

use crate::error::{Error, Result, fail};
use crate::memory::reserve;

/// Text that grows fallibly.
#[derive(Default)]
pub struct JsonText {
    /// The text.
    pub bytes: Vec<u8>,
    failed: Option<Error>,
}

impl fmt::Write for JsonText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Err(error) = reserve(&mut self.bytes, text.len(), "a JSON header") {
            self.failed = Some(error);
            return Err(fmt::Error);
        }
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl JsonText {
    /// Adds to it.
    pub fn put(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        match self.write_fmt(text) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failed.take().unwrap_or_else(|| fail!(Internal, "a JSON header"))),
        }
    }
}

/// Text inside a JSON string.
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
            let (plain, special) = rest.split_at(at);
            let (special, after) = special.split_at(1); // all of them are ASCII
            f.write_str(plain)?;
            match special {
                "\"" | "\\" => write!(f, "\\{special}")?,
                _ => write!(f, "\\u{:04x}", special.as_bytes()[0])?,
            }
            rest = after;
        }
        f.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(Escaped("a\"b\\c\n\u{1}é").to_string(), "a\\\"b\\\\c\\u000a\\u0001é");
    }
}
