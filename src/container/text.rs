//! Names, keys and strings of a file: one arena of NUL-terminated strings.
//!
//! ```text
//! arena   g e n e r a l . n a m e 0  d e m o 0  < u n k > 0  < s > 0 ...
//! items                                         ^start,len   ^start,len      strings of arrays
//! ```
//! One allocation however many strings there are: a vocabulary has a hundred thousand. The NUL is
//! there so that the C interface can hand out pointers.

use std::ffi::c_char;
use std::fmt;

use crate::error::{Result, fail};
use crate::memory::reserve;

/// A string of [`Texts`]; means nothing without the one it came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Str {
    start: u32,
    len: u32,
}

/// An arena of strings. Bytes as the file has them: a value may hold NULs or be no UTF-8.
#[derive(Debug, Default)]
pub struct Texts {
    bytes: Vec<u8>,
    items: Vec<Str>,
}

impl Texts {
    /// No strings.
    pub const fn new() -> Texts {
        Texts { bytes: Vec::new(), items: Vec::new() }
    }

    /// Adds a string.
    pub fn push(&mut self, text: &[u8]) -> Result<Str> {
        let start = self.bytes.len();
        // 4 GiB of names and strings is more than any file has; it keeps a handle at 8 bytes.
        let end = start.checked_add(text.len()).and_then(|n| n.checked_add(1));
        if end.is_none_or(|end| u32::try_from(end).is_err()) {
            return Err(fail!(Unsupported, "strings of more than 4 GiB in one file"));
        }
        reserve(&mut self.bytes, text.len() + 1, "strings of the file")?;
        self.bytes.extend_from_slice(text);
        self.bytes.push(0);
        Ok(Str { start: start as u32, len: text.len() as u32 })
    }

    /// Adds a string that is the next item of an array; `item_count` before the first is its index.
    pub fn push_item(&mut self, text: &[u8]) -> Result<()> {
        let text = self.push(text)?;
        reserve(&mut self.items, 1, "array of strings")?;
        self.items.push(text);
        Ok(())
    }

    /// Items of all arrays so far.
    pub fn item_count(&self) -> u64 {
        self.items.len() as u64
    }

    /// The bytes of a string, without its NUL; none where the handle is another arena's.
    pub fn get(&self, text: Str) -> &[u8] {
        self.bytes.get(text.start as usize..text.start as usize + text.len as usize).unwrap_or(&[])
    }

    /// The string for C, with its NUL. Valid until the arena is changed or dropped.
    pub fn c_str(&self, text: Str) -> *const c_char {
        let with_nul = text.start as usize..text.start as usize + text.len as usize + 1;
        self.bytes.get(with_nul).unwrap_or(&[0]).as_ptr().cast()
    }

    /// The string at `index` of the array whose first item is `first`.
    pub fn item(&self, first: u64, index: u64) -> Option<Str> {
        self.items.get(usize::try_from(first.checked_add(index)?).ok()?).copied()
    }
}

/// A name for an error text: quoted, without control characters, cut where it would push the rest
/// of the sentence out.
pub(crate) struct Quoted<'a>(pub(crate) &'a [u8]);

/// Characters of a name that an error text shows: all but hostile ones are shorter.
const SHOWN: usize = 80;

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        f.write_char('"')?;
        let mut shown = 0;
        for chunk in self.0.utf8_chunks() {
            let bad = if chunk.invalid().is_empty() { None } else { Some(char::REPLACEMENT_CHARACTER) };
            for c in chunk.valid().chars().chain(bad) {
                if shown == SHOWN {
                    return f.write_str("...\"");
                }
                f.write_char(if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })?;
                shown += 1;
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn strings_come_back_as_they_went_in() {
        let mut texts = Texts::new();
        let strings: [&[u8]; 5] = [b"a name", b"", b"with\0nul", &[0xff, 0xfe], "π".as_bytes()];
        let handles: Vec<Str> = strings.iter().map(|s| texts.push(s).unwrap()).collect();
        for (handle, string) in handles.iter().zip(strings) {
            assert_eq!(texts.get(*handle), string);
            // SAFETY: the arena put a NUL behind every string and is not changed meanwhile.
            let c = unsafe { CStr::from_ptr(texts.c_str(*handle)) };
            assert_eq!(c.to_bytes(), string.split(|&b| b == 0).next().unwrap());
        }
    }

    #[test]
    fn items_are_counted_over_all_arrays() {
        let mut texts = Texts::new();
        texts.push(b"key").unwrap();
        texts.push_item(b"zero").unwrap();
        let first = texts.item_count();
        texts.push_item(b"one").unwrap();
        texts.push_item(b"two").unwrap();
        assert_eq!(texts.item(first, 1).map(|s| texts.get(s)), Some(&b"two"[..]));
        assert_eq!(texts.item(first, 2), None);
        assert_eq!(texts.item(u64::MAX, 1), None);
    }

    #[test]
    fn a_handle_of_another_arena_reads_nothing() {
        let mut texts = Texts::new();
        let handle = texts.push(b"longer than nothing").unwrap();
        let other = Texts::new();
        assert_eq!(other.get(handle), b"");
        // SAFETY: out of range gives a static NUL.
        assert_eq!(unsafe { CStr::from_ptr(other.c_str(handle)) }.to_bytes(), b"");
    }

    #[test]
    fn quoted_names_are_harmless_and_short() {
        assert_eq!(Quoted(b"blk.0.attn_q").to_string(), "\"blk.0.attn_q\"");
        assert_eq!(Quoted(b"a\x1b[2J\n\xff").to_string(), "\"a\u{fffd}[2J\u{fffd}\u{fffd}\"");
        let long = Quoted(&[b'x'; 1000]).to_string();
        assert!(long.len() < 90 && long.ends_with("...\""));
    }
}
