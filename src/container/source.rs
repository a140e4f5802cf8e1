//! The bytes of a file, wherever they are: mapped, read into memory, copied or borrowed.
//!
//! A mapping costs no memory of its own, but the pages a reader touches count as resident until the
//! kernel wants them back. [`Source::done`] gives them back at once, so that loading a file never
//! holds the whole of it beside the packed weights.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Result, fail};
use crate::memory::Buffer;

/// The bytes of one file (or shard), unchanging for as long as this lives.
#[derive(Debug)]
pub struct Source(Bytes);

enum Bytes {
    /// A file of no bytes: some systems refuse to map one.
    Empty,
    /// A file's pages.
    Mapped(Mmap),
    /// Our own memory; the length, because a buffer is never empty.
    Owned(Buffer, usize),
    /// A caller's memory.
    Borrowed(*const u8, usize),
}

// SAFETY: the bytes are only ever read, from any thread: `Mapped` and `Owned` own theirs, and the
// caller of `Source::borrow` promised this for `Borrowed`.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bytes::Empty => f.write_str("empty"),
            Bytes::Mapped(map) => write!(f, "{} bytes, mapped", map.len()),
            Bytes::Owned(_, len) => write!(f, "{len} bytes, owned"),
            Bytes::Borrowed(_, len) => write!(f, "{len} bytes, borrowed"),
        }
    }
}

impl Source {
    /// Maps a file. Where others cut it while it is mapped, reading past the new end is a SIGBUS:
    /// the one thing that `docs/security.md` cannot promise away. [`Source::read`] has no such end.
    pub fn map(path: &Path) -> Result<Source> {
        let (file, len) = open(path)?;
        if len == 0 {
            return Ok(Source(Bytes::Empty));
        }
        // SAFETY: nobody may cut or rewrite a file while it is mapped: the documented condition of
        // `bl_load` without BL_LOAD_COPY. Every reader checks lengths against the mapping's own.
        let map = unsafe { Mmap::map(&file) };
        let map = map.map_err(|e| fail!(Io, "{}: cannot be mapped: {e}", path.display()))?;
        Ok(Source(Bytes::Mapped(map)))
    }

    /// Reads a file into memory: it may then change or go.
    pub fn read(path: &Path) -> Result<Source> {
        Source::read_at_most(path, u64::MAX)
    }

    /// The same, where longer files than `most` are refused.
    pub(super) fn read_at_most(path: &Path, most: u64) -> Result<Source> {
        let (mut file, len) = open(path)?;
        if len as u64 > most {
            return Err(fail!(BadFile, "{}: at most {most} bytes expected, found {len}", path.display()));
        }
        let mut buffer =
            Buffer::zeroed(len, "file").map_err(|e| e.within(format_args!("{}", path.display())))?;
        file.read_exact(&mut buffer.bytes_mut()[..len])
            .map_err(|e| fail!(Io, "{}: reading {len} bytes: {e}", path.display()))?;
        Ok(Source(Bytes::Owned(buffer, len)))
    }

    /// A copy of `bytes`.
    pub fn copy(bytes: &[u8]) -> Result<Source> {
        let mut buffer = Buffer::zeroed(bytes.len(), "copy of a file in memory")?;
        buffer.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        Ok(Source(Bytes::Owned(buffer, bytes.len())))
    }

    /// The first `len` bytes of a buffer.
    pub(super) fn of_buffer(buffer: Buffer, len: usize) -> Source {
        let len = len.min(buffer.bytes().len());
        Source(Bytes::Owned(buffer, len))
    }

    /// A caller's bytes, used in place.
    ///
    /// # Safety
    /// Until the source and all that was handed out from it are gone, the `len` bytes at `start` are
    /// readable from every thread and do not change. `start` may be anything where `len` is 0.
    pub unsafe fn borrow(start: *const u8, len: usize) -> Source {
        Source(if len == 0 { Bytes::Empty } else { Bytes::Borrowed(start, len) })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Empty => &[],
            Bytes::Mapped(map) => map,
            Bytes::Owned(buffer, len) => &buffer.bytes()[..*len],
            // SAFETY: the promise of `borrow`, for as long as `self` lives; `len` is not 0 there.
            Bytes::Borrowed(start, len) => unsafe { std::slice::from_raw_parts(*start, *len) },
        }
    }

    /// Whether the bytes are the pages of a file (and so count as mapped, not as owned).
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Bytes::Mapped(_))
    }

    /// These bytes were read and are not needed soon: a mapping gives back the pages that end in the
    /// range. They stay readable, and come back from the file when they are read again. A page is
    /// given back with its last byte, so that adjacent ranges of any length leave none behind.
    pub fn done(&self, range: Range<usize>) {
        let len = self.bytes().len();
        let page = page_size();
        let start = range.start.min(len) / page * page;
        let end = if range.end >= len { len } else { range.end / page * page };
        #[cfg(unix)]
        self.advise(start..end, libc::MADV_DONTNEED);
        #[cfg(not(unix))]
        let _ = start..end;
    }

    /// The same where adjacent ranges are done in any order: the pages at both ends are given back too.
    /// Who still reads there gets them again from the system's cache.
    pub fn done_around(&self, range: Range<usize>) {
        self.done(range.start..range.end.saturating_add(page_size() - 1));
    }

    /// These bytes will be read soon, from front to back.
    pub fn soon(&self, range: Range<usize>) {
        let len = self.bytes().len();
        let start = range.start.min(len) / page_size() * page_size();
        let end = range.end.min(len);
        #[cfg(unix)]
        {
            self.advise(start..end, libc::MADV_SEQUENTIAL);
            self.advise(start..end, libc::MADV_WILLNEED);
        }
        #[cfg(not(unix))]
        let _ = start..end;
    }

    /// Advice on pages of a mapping; other bytes are left alone (on memory of one's own
    /// MADV_DONTNEED would mean zeroing it).
    #[cfg(unix)]
    fn advise(&self, range: Range<usize>, advice: libc::c_int) {
        let Bytes::Mapped(map) = &self.0 else { return };
        let Some(bytes) = map.get(range) else { return };
        if !bytes.is_empty() {
            // SAFETY: the range lies in our own read-only mapping of a file, whose start is page
            // aligned (as is `range.start`, by both callers); every advice used here leaves what
            // such a mapping reads as it is. A refusal changes nothing.
            unsafe { libc::madvise(bytes.as_ptr().cast_mut().cast(), bytes.len(), advice) };
        }
    }
}

/// Bytes of a page.
fn page_size() -> usize {
    #[cfg(unix)]
    {
        // SAFETY: asks for a constant of the system; no memory is involved.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).ok().filter(|s| s.is_power_of_two()).unwrap_or(65_536)
    }
    #[cfg(not(unix))]
    65_536
}

/// Opens a plain file and asks for its length.
fn open(path: &Path) -> Result<(File, usize)> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A named pipe without a writer would make open() wait for ever; plain files ignore this.
        options.custom_flags(libc::O_NONBLOCK);
    }
    let io = |e: std::io::Error| fail!(Io, "{}: {e}", path.display());
    let file = options.open(path).map_err(io)?;
    let info = file.metadata().map_err(io)?;
    if info.is_dir() {
        return Err(fail!(Io, "{}: a file expected, found a folder", path.display()));
    }
    if !info.is_file() {
        return Err(fail!(Io, "{}: a plain file expected, found a device, pipe or socket", path.display()));
    }
    let len = usize::try_from(info.len()).ok().filter(|&len| len <= isize::MAX as usize);
    let len = len.ok_or_else(|| {
        fail!(Unsupported, "{}: {} bytes do not fit the address space", path.display(), info.len())
    })?;
    Ok((file, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn file(name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("bitlinear-source-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn all_kinds_hold_the_same_bytes() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        let path = file("kinds", &bytes);
        let mapped = Source::map(&path).unwrap();
        let read = Source::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        // SAFETY: `bytes` outlives the source and is not written.
        let borrowed = unsafe { Source::borrow(bytes.as_ptr(), bytes.len()) };
        for source in [&mapped, &read, &Source::copy(&bytes).unwrap(), &borrowed] {
            assert_eq!(source.bytes(), bytes);
        }
        assert!(mapped.is_mapped() && !read.is_mapped());
    }

    #[test]
    fn advice_does_not_change_what_is_read() {
        let bytes: Vec<u8> = (0..300_001u32).map(|i| (i * 31) as u8).collect();
        let path = file("advice", &bytes);
        for source in [Source::map(&path).unwrap(), Source::read(&path).unwrap()] {
            source.soon(5..bytes.len());
            for start in (0..bytes.len()).step_by(1000) {
                assert_eq!(source.bytes()[start], bytes[start]);
                source.done(start..start + 1000);
            }
            let len = bytes.len();
            for range in [0..len, 10..10, 5..usize::MAX, len..len, usize::MAX - 1..usize::MAX] {
                source.soon(range.clone());
                source.done(range);
            }
            assert_eq!(source.bytes(), bytes);
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_that_were_read_are_given_back() {
        let path = file("resident", &vec![1u8; 8 << 20]);
        let source = Source::map(&path).unwrap();
        let resident = || {
            let start = source.bytes().as_ptr() as usize;
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mine = maps.split_once(&format!("{start:x}-")).unwrap().1;
            let rss = mine.split_once("Rss:").unwrap().1.split_once("kB").unwrap().0;
            rss.trim().parse::<usize>().unwrap()
        };
        let mut sum = 0usize;
        for chunk in (0..8 << 20).step_by(1000) {
            let range = chunk..(chunk + 1000).min(8 << 20);
            sum += source.bytes()[range.clone()].iter().map(|&b| b as usize).sum::<usize>();
            source.done(range);
        }
        assert_eq!(sum, 8 << 20);
        assert!(resident() < 256, "{} kB are still resident", resident());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_readable_file_is_an_error_with_path_and_reason() {
        let missing = std::env::temp_dir().join("bitlinear-no-such-file");
        for open in [Source::map, Source::read] {
            let error = open(&missing).unwrap_err();
            assert_eq!(error.status(), Status::Io);
            assert!(error.text().contains("bitlinear-no-such-file"), "{error}");
            assert!(error.text().contains("No such file") || cfg!(not(unix)), "{error}");
            let error = open(&std::env::temp_dir()).unwrap_err();
            assert_eq!(error.status(), Status::Io);
            assert!(error.text().contains("folder") || cfg!(not(unix)), "{error}");
        }
        #[cfg(unix)]
        assert!(Source::map(Path::new("/dev/zero")).unwrap_err().text().contains("device"));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_at_once() {
        use std::os::unix::ffi::OsStrExt;
        let path = std::env::temp_dir().join(format!("bitlinear-pipe-{}", std::process::id()));
        let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: `name` is a NUL-terminated string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert_eq!(Source::map(&path).unwrap_err().status(), Status::Io);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_empty_file_is_an_empty_slice() {
        let path = file("empty", b"");
        assert!(Source::map(&path).unwrap().bytes().is_empty());
        assert!(Source::read(&path).unwrap().bytes().is_empty());
        assert!(Source::copy(&[]).unwrap().bytes().is_empty());
        // SAFETY: nothing is read from a source of no bytes.
        assert!(unsafe { Source::borrow(std::ptr::null(), 0) }.bytes().is_empty());
        std::fs::remove_file(&path).unwrap();
    }
}
