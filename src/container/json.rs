//! JSON, read in place: no tree, no allocation, no recursion.
//!
//! The caller walks the text in its own order and skips what it does not know:
//!
//! ```text
//! {"a": {"shape": [2, 3]}, "b": 7}
//! open_object  next_key -> a  open_object  next_key -> shape  open_array  next_item, u64 ...
//! ```
//! Skipping keeps its own stack of one bit for each level, so a text cannot make the machine's stack
//! grow. Grammar: RFC 8259, and on request the `NaN` and `Infinity` that Python writes.

use crate::error::{Error, Result, fail};
use crate::limits::JSON_NESTING_MAX;
use crate::memory::reserve;

use super::Quoted;

/// What a value begins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

/// A place in a JSON text.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Nothing was read in the innermost object or array: no comma is due.
    first: bool,
    /// `NaN` and `Infinity` are numbers.
    python: bool,
    /// What the text is, for errors.
    what: &'a str,
    /// Where it starts in the file, for errors.
    base: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`, which start at byte `base` of the file.
    pub(super) fn new(bytes: &'a [u8], what: &'a str, base: usize) -> Result<Reader<'a>> {
        let text = str::from_utf8(bytes)
            .map_err(|e| fail!(BadFile, "{what}: byte {} is not UTF-8", base + e.valid_up_to()))?;
        Ok(Reader { text, at: 0, first: false, python: false, what, base })
    }

    /// The same, with `NaN` and `Infinity`.
    pub(super) fn python(bytes: &'a [u8], what: &'a str) -> Result<Reader<'a>> {
        Ok(Reader { python: true, ..Reader::new(bytes, what, 0)? })
    }

    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or(&[])
    }

    fn space(&mut self) {
        let space = self.rest().iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
        self.at += space.count();
    }

    #[cold]
    fn expected(&self, what: &str) -> Error {
        let found = &self.rest()[..self.rest().len().min(12)];
        let at = self.base + self.at;
        if found.is_empty() {
            return fail!(BadFile, "{}: {what} expected at byte {at}, found the end", self.what);
        }
        fail!(BadFile, "{}: {what} expected at byte {at}, found {}", self.what, Quoted(found))
    }

    fn eat(&mut self, byte: u8, what: &str) -> Result<()> {
        self.space();
        if self.rest().first() != Some(&byte) {
            return Err(self.expected(what));
        }
        self.at += 1;
        Ok(())
    }

    /// What the next value begins as.
    pub(super) fn peek(&mut self) -> Result<Kind> {
        self.space();
        Ok(match self.rest().first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') => Kind::Null,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            Some(b'N' | b'I') if self.python => Kind::Number,
            _ => return Err(self.expected("a value")),
        })
    }

    /// Enters an object; `next_key` follows.
    pub(super) fn open_object(&mut self) -> Result<()> {
        self.eat(b'{', "an object")?;
        self.first = true;
        Ok(())
    }

    /// Enters an array; `next_item` follows.
    pub(super) fn open_array(&mut self) -> Result<()> {
        self.eat(b'[', "an array")?;
        self.first = true;
        Ok(())
    }

    /// The next key of the object (its value follows), or `None` after leaving it.
    pub(super) fn next_key(&mut self) -> Result<Option<Text<'a>>> {
        if !self.next(b'}', "',' or '}'")? {
            return Ok(None);
        }
        let key = self.string()?;
        self.eat(b':', "':'")?;
        Ok(Some(key))
    }

    /// Whether another item of the array follows; `false` after leaving it.
    pub(super) fn next_item(&mut self) -> Result<bool> {
        self.next(b']', "',' or ']'")
    }

    fn next(&mut self, end: u8, what: &str) -> Result<bool> {
        self.space();
        if self.rest().first() == Some(&end) {
            self.at += 1;
            self.first = false;
            return Ok(false);
        }
        if self.first {
            self.first = false;
        } else {
            self.eat(b',', what)?;
        }
        Ok(true)
    }

    /// A string.
    pub(super) fn string(&mut self) -> Result<Text<'a>> {
        self.eat(b'"', "a string")?;
        let start = self.at;
        let mut escapes = false;
        loop {
            let rest = self.rest();
            let plain = rest.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20).unwrap_or(rest.len());
            self.at += plain;
            match rest.get(plain) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escapes = true;
                    let (_, len) = escape(self.rest()).ok_or_else(|| self.expected("an escape"))?;
                    self.at += len;
                }
                _ => return Err(self.expected("a character or '\"'")),
            }
        }
        let raw = &self.text[start..self.at]; // both ends touch an ASCII quote
        self.at += 1;
        Ok(Text { raw, escapes })
    }

    /// A number, as it is written.
    pub(super) fn number(&mut self) -> Result<&'a str> {
        self.space();
        let rest = self.rest();
        let len = number_length(rest, self.python).ok_or_else(|| self.expected("a number"))?;
        let number = &self.text[self.at..self.at + len];
        self.at += len;
        Ok(number)
    }

    /// A whole number from 0 to 2^64 - 1.
    pub(super) fn u64(&mut self) -> Result<u64> {
        self.space();
        let start = self.clone();
        self.number()?.parse().map_err(|_| start.expected("a whole number of 64 bits"))
    }

    /// true or false.
    pub(super) fn bool(&mut self) -> Result<bool> {
        self.space();
        let value = self.rest().starts_with(b"true");
        if !value && !self.rest().starts_with(b"false") {
            return Err(self.expected("true or false"));
        }
        self.at += if value { 4 } else { 5 };
        Ok(value)
    }

    /// null.
    pub(super) fn null(&mut self) -> Result<()> {
        self.space();
        if !self.rest().starts_with(b"null") {
            return Err(self.expected("null"));
        }
        self.at += 4;
        Ok(())
    }

    /// Passes over one value, whatever it holds.
    pub(super) fn skip(&mut self) -> Result<()> {
        let mut objects = 0u64; // a bit for each open level, the innermost lowest: 1 is an object
        let mut depth = 0;
        loop {
            let kind = self.peek()?;
            match kind {
                Kind::Object | Kind::Array => {
                    if depth == JSON_NESTING_MAX {
                        return Err(self.expected("no deeper nesting"));
                    }
                    depth += 1;
                    objects = objects << 1 | (kind == Kind::Object) as u64;
                    if kind == Kind::Object { self.open_object()? } else { self.open_array()? }
                }
                Kind::String => {
                    self.string()?;
                }
                Kind::Number => {
                    self.number()?;
                }
                Kind::Bool => {
                    self.bool()?;
                }
                Kind::Null => self.null()?,
            }
            loop {
                if depth == 0 {
                    return Ok(());
                }
                let more = if objects & 1 == 1 { self.next_key()?.is_some() } else { self.next_item()? };
                if more {
                    break;
                }
                depth -= 1;
                objects >>= 1;
            }
        }
    }

    /// Only white space is left.
    pub(super) fn end(&mut self) -> Result<()> {
        self.space();
        if self.rest().is_empty() { Ok(()) } else { Err(self.expected("the end")) }
    }

    /// A reader at the value under that path of keys; `None` where there is none (or no JSON).
    pub(super) fn find(mut self, path: &[&str]) -> Option<Reader<'a>> {
        'step: for step in path {
            if self.peek().ok()? != Kind::Object {
                return None;
            }
            self.open_object().ok()?;
            while let Some(key) = self.next_key().ok()? {
                if key.is(step) {
                    continue 'step;
                }
                self.skip().ok()?;
            }
            return None;
        }
        Some(self)
    }
}

/// A string of a JSON text, still as it is written there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    raw: &'a str,
    escapes: bool,
}

impl<'a> Text<'a> {
    /// Its characters.
    pub(super) fn chars(self) -> impl Iterator<Item = char> + 'a {
        let mut rest = self.raw;
        std::iter::from_fn(move || {
            // `string` checked the escapes, so that one is always there after a backslash.
            let (c, len) = match escape(rest.as_bytes()) {
                Some(found) if rest.starts_with('\\') => found,
                _ => rest.chars().next().map(|c| (c, c.len_utf8()))?,
            };
            rest = rest.get(len..)?;
            Some(c)
        })
    }

    /// Whether it says `text`.
    pub(super) fn is(self, text: &str) -> bool {
        if self.escapes { self.chars().eq(text.chars()) } else { self.raw == text }
    }

    /// What it says; `room` holds it where the text has it only with escapes.
    pub(super) fn decode<'b>(self, room: &'b mut Vec<u8>) -> Result<&'b [u8]>
    where
        'a: 'b,
    {
        if !self.escapes {
            return Ok(self.raw.as_bytes());
        }
        room.clear();
        reserve(room, self.raw.len(), "JSON string")?; // escapes are longer than what they mean
        let mut rest = self.raw;
        while let Some(at) = rest.find('\\') {
            // `string` checked the escapes, so that one is always there after a backslash.
            let Some((c, len)) = escape(&rest.as_bytes()[at..]) else { break };
            room.extend_from_slice(&rest.as_bytes()[..at]);
            room.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &rest[at + len..]; // behind an escape, which is ASCII
        }
        room.extend_from_slice(rest.as_bytes());
        Ok(room)
    }
}

/// The escape that `bytes` begin with, and its length.
fn escape(bytes: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| -> Option<u32> {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        digits.iter().try_fold(0, |n, &d| Some(n << 4 | (d as char).to_digit(16)?))
    };
    Some(match bytes.get(1)? {
        b'"' => ('"', 2),
        b'\\' => ('\\', 2),
        b'/' => ('/', 2),
        b'b' => ('\u{8}', 2),
        b'f' => ('\u{c}', 2),
        b'n' => ('\n', 2),
        b'r' => ('\r', 2),
        b't' => ('\t', 2),
        b'u' => match unit(0)? {
            // Characters beyond 16 bits are two escapes; half of one is no character.
            high @ 0xd800..0xdc00 => {
                let low = unit(6).filter(|low| (0xdc00..0xe000).contains(low))?;
                (char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))?, 12)
            }
            one => (char::from_u32(one)?, 6),
        },
        _ => return None,
    })
}

/// How many of the bytes are a number.
fn number_length(bytes: &[u8], python: bool) -> Option<usize> {
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut at = (bytes.first() == Some(&b'-')) as usize;
    if python {
        if bytes.starts_with(b"NaN") {
            return Some(3);
        }
        if bytes[at..].starts_with(b"Infinity") {
            return Some(at + 8);
        }
    }
    let whole = digits(at);
    if whole == 0 || whole > 1 && bytes[at] == b'0' {
        return None;
    }
    at += whole;
    if bytes.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = matches!(bytes.get(at + 1), Some(b'+' | b'-')) as usize;
        let power = digits(at + 1 + sign);
        if power == 0 {
            return None;
        }
        at += 1 + sign + power;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Result<()> {
        let mut reader = Reader::new(text.as_bytes(), "test", 0)?;
        reader.skip()?;
        reader.end()
    }

    #[test]
    fn json_is_accepted() {
        for text in [
            "{}",
            "[]",
            " [ ] ",
            "0",
            "-0",
            "-1.5e-3",
            "1E+9",
            "true",
            "false",
            "null",
            r#""""#,
            r#"{"a":[1,2,{"b":null}],"c":"\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t"}"#,
            "[[[],[]],{}]",
            "\t{\r\n}",
        ] {
            whole(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[",
            "}",
            "]",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{1:2}",
            "{\"a\":1 \"b\":2}",
            "[}",
            "{]",
            "[1}",
            "01",
            "-",
            "+1",
            "1.",
            ".5",
            "1e",
            "1e+",
            "--1",
            "NaN",
            "Infinity",
            "tru",
            "nul",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u123g\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\udc00\"",
            "\"\n\"",
            "\"\0\"",
            "{}{}",
            "1 2",
            "[1]x",
            "\u{feff}{}",
        ] {
            assert!(whole(text).is_err(), "{text:?} is accepted");
        }
        assert!(Reader::new(b"\"\xff\"", "test", 0).is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| whole(&("[".repeat(depth) + &"]".repeat(depth)));
        nested(JSON_NESTING_MAX as usize).unwrap();
        assert!(nested(JSON_NESTING_MAX as usize + 1).unwrap_err().text().contains("nesting"));
        assert!(nested(1_000_000).is_err());
        assert!(whole(&"{\"a\":".repeat(1_000_000)).is_err());
    }

    #[test]
    fn values_are_what_was_written() -> Result<()> {
        let text =
            r#" {"a\u0062": "x\n\ud83d\ude00", "n": [18446744073709551615, 1.5], "t": true, "z": null} "#;
        let mut r = Reader::new(text.as_bytes(), "test", 0)?;
        r.open_object()?;
        assert!(r.next_key()?.unwrap().is("ab"));
        let mut room = Vec::new();
        assert_eq!(r.string()?.decode(&mut room)?, "x\n😀".as_bytes());
        assert!(r.next_key()?.unwrap().is("n"));
        r.open_array()?;
        assert!(r.next_item()?);
        assert_eq!(r.u64()?, u64::MAX);
        assert!(r.next_item()?);
        assert!(r.clone().u64().is_err());
        assert_eq!(r.number()?.parse(), Ok(1.5));
        assert!(!r.next_item()?);
        assert!(r.next_key()?.unwrap().is("t"));
        assert!(r.bool()?);
        assert!(r.next_key()?.unwrap().is("z"));
        r.null()?;
        assert!(r.next_key()?.is_none());
        r.end()
    }

    #[test]
    fn paths_are_found() {
        let text = br#"{"a": {"b": [1], "c": {"d": NaN}}, "e": -Infinity}"#;
        let find = |path: &[&str]| Reader::python(text, "test").unwrap().find(path);
        assert_eq!(find(&["a", "c", "d"]).unwrap().number().unwrap(), "NaN");
        assert_eq!(find(&["e"]).unwrap().number().unwrap(), "-Infinity");
        assert!(find(&["a", "b", "c"]).is_none());
        assert!(find(&["a", "x"]).is_none());
        assert_eq!(find(&[]).unwrap().peek().unwrap(), Kind::Object);
    }

    #[test]
    fn errors_say_where() {
        let mut r = Reader::new(b"{\"a\":[1 2]}", "header", 8).unwrap();
        let error = r.skip().unwrap_err();
        assert_eq!(error.text(), "header: ',' or ']' expected at byte 16, found \"2]}\"");
    }
}
