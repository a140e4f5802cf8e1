//! Status and text of a failure.
//!
//! Every fallible function of the crate returns [`Result`]. An [`Error`] is two words: building one
//! never aborts, even with no memory left (then it has no text).

use std::alloc::Layout;
use std::fmt;

/// What went wrong, as a number; the values are those of `bl_status` in the C header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// NULL, out of range, shapes that do not fit.
    InvalidArgument = 1,
    /// NULL, another kind's, or freed before.
    InvalidHandle = 2,
    /// Known, but not by this build, device or type.
    Unsupported = 3,
    /// Memory could not be had.
    OutOfMemory = 4,
    /// A caller's buffer is too small; the needed size was written.
    BufferTooSmall = 5,
    /// No tensor, key or index of that name.
    NotFound = 6,
    /// The file could not be read or written.
    Io = 7,
    /// The file's content is not what its format says.
    BadFile = 8,
    /// The CUDA driver reported a failure.
    Device = 9,
    /// What does not survive fork() was used in the child: a context's threads, a GPU.
    Forked = 10,
    /// A caller's progress function said so.
    Cancelled = 11,
    /// There is no CUDA driver here, or none that works.
    NoDriver = 12,
    /// The CUDA driver is older than what this build needs.
    DriverTooOld = 13,
    /// The CUDA driver sees no GPU.
    NoDevice = 14,
    /// The GPU is one that this build has no kernels for.
    UnsupportedDevice = 15,
    /// An earlier failure left the GPU's context unusable.
    DeviceLost = 16,
    /// A bug in this library; the process is sound.
    Internal = 99,
}

/// Longest text in bytes: with its NUL it fills the message of a `bl_error`.
pub const TEXT_MAX: usize = 251;

/// A text of bounded length that is written without allocating.
#[derive(Clone, Copy)]
pub struct Text {
    len: usize,
    bytes: [u8; TEXT_MAX],
}

impl Text {
    /// No text.
    pub const EMPTY: Text = Text { len: 0, bytes: [0; TEXT_MAX] };

    /// The formatted text, cut on a character boundary where it is too long.
    pub fn format(args: fmt::Arguments<'_>) -> Text {
        let mut text = Text::EMPTY;
        let _ = fmt::Write::write_fmt(&mut text, args); // cutting is not a failure
        text
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut n = s.len().min(TEXT_MAX - self.len);
        while !s.is_char_boundary(n) {
            n -= 1;
        }
        self.bytes[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// A failure: its status and, memory permitting, a text for a person.
pub struct Error {
    status: Status,
    text: Option<Box<Text>>,
}

/// The result of every fallible function of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure with a text; see the macro `fail!`.
    #[cold]
    #[inline(never)]
    pub fn new(status: Status, args: fmt::Arguments<'_>) -> Error {
        let layout = Layout::new::<Text>();
        // SAFETY: `Text` is not zero-sized.
        let place = unsafe { std::alloc::alloc(layout) }.cast::<Text>();
        if place.is_null() {
            return Error { status, text: None };
        }
        // SAFETY: `place` is a fresh allocation of `Text`'s own layout (two lines up), written here
        // before the box reads it; `Box` frees with the same global allocator.
        let text = unsafe {
            place.write(Text::format(args));
            Box::from_raw(place)
        };
        Error { status, text: Some(text) }
    }

    /// The number.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The text; empty where memory was too short even for it.
    pub fn text(&self) -> &str {
        self.text.as_ref().map_or("", |t| t.as_str())
    }

    /// The same text under another status.
    pub fn with(self, status: Status) -> Error {
        Error { status, ..self }
    }

    /// The same failure with `what: ` before its text (a tensor's name, a file's path).
    #[cold]
    #[inline(never)]
    pub fn within(self, what: fmt::Arguments<'_>) -> Error {
        Error::new(self.status, format_args!("{what}: {}", self.text()))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.status, self.text())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Error {}

/// `fail!(BadFile, "tensor {name}: ...")`: an [`Error`] of that status.
#[macro_export]
#[doc(hidden)]
macro_rules! fail {
    ($status:ident, $($text:tt)*) => {
        $crate::error::Error::new($crate::error::Status::$status, format_args!($($text)*))
    };
}
pub(crate) use fail;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_on_a_character_boundary() {
        let long = "ü".repeat(200);
        let error = fail!(BadFile, "x{long}");
        assert_eq!(error.text().len(), TEXT_MAX - (TEXT_MAX - 1) % 2);
        assert!(error.text().ends_with('ü'));
        assert_eq!(error.status(), Status::BadFile);
    }

    #[test]
    fn an_error_is_two_words() {
        assert_eq!(size_of::<Result<()>>(), 2 * size_of::<usize>());
    }
}
