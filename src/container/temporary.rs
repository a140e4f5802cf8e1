//! The file beside the one that is to be written: whoever opens the name finds the old file or the whole
//! new one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A file that is gone with this, unless it was renamed.
pub struct Temporary {
    beside: Option<PathBuf>,
    /// What it will be.
    path: PathBuf,
}

impl Temporary {
    /// A new file in the folder of `path`; where that is a link, of the file that it leads to. Refused where something is
    /// that is no file: renaming would put one in the place of a device or a pipe.
    pub fn create(path: &Path) -> io::Result<(File, Temporary)> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = followed(path)?;
        let Some(name) = path.file_name() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let suffix = format!(".{}-{number}.tmp", std::process::id());
            let beside = path.with_file_name(shortened(name, &suffix));
            match File::options().write(true).create_new(true).open(&beside) {
                Ok(file) => return Ok((file, Temporary { beside: Some(beside), path })),
                // Another process of that number left it, in a container perhaps.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Gives it the name that it was made for.
    pub fn rename(&mut self) -> io::Result<()> {
        if let Some(beside) = &self.beside {
            let path = &self.path;
            std::fs::rename(beside, path)?;
            self.beside = None;
            // The name, too, is to be on the disk. Not every file system can; the file is whole.
            #[cfg(unix)]
            if let Ok(folder) =
                File::open(path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new(".")))
            {
                let _ = folder.sync_all();
            }
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            let _ = std::fs::remove_file(beside);
        }
    }
}

/// Where a file of that path is written.
fn followed(path: &Path) -> io::Result<PathBuf> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::Error::from(io::ErrorKind::IsADirectory)),
        Ok(found) if !found.is_file() => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "is a device or a pipe, and only files are written",
        )),
        Ok(_) if path.is_symlink() => std::fs::canonicalize(path),
        // Nothing is there, or a link to nothing, whose place the file takes.
        _ => Ok(path.to_owned()),
    }
}

/// Longest name of a file, in bytes (Linux) or UTF-16 units, of which no name has more than bytes.
const NAME_MAX: usize = 255;

/// The name with the suffix; of a name that is too long for both, the beginning.
fn shortened(name: &OsStr, suffix: &str) -> OsString {
    let room = NAME_MAX - suffix.len();
    let mut short = match name.to_str() {
        _ if name.len() <= room => name.to_os_string(),
        Some(text) => OsString::from(&text[..text.floor_char_boundary(room)]),
        // Any name serves, as long as it is free.
        None => OsString::from("bitlinear"),
    };
    short.push(suffix);
    short
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_failed_write_leaves_no_file() {
        let path = std::env::temp_dir().join(format!("bitlinear-temporary-{}", std::process::id()));
        let (mut file, temporary) = Temporary::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        let beside = temporary.beside.clone().unwrap();
        assert!(beside.exists() && beside.parent() == path.parent());
        drop(temporary);
        assert!(!beside.exists() && !path.exists());
    }

    /// A link stays one, and what is no file stays what it is.
    #[test]
    #[cfg(unix)]
    #[cfg_attr(miri, ignore = "sockets that are files are nothing miri knows")]
    fn links_are_followed_and_devices_left_alone() {
        let folder = std::env::temp_dir().join(format!("bitlinear-links-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("far")).unwrap();
        let (link, target) = (folder.join("link"), folder.join("far/file"));
        std::fs::write(&target, b"old").unwrap();
        std::os::unix::fs::symlink("far/file", &link).unwrap();
        let (mut file, mut temporary) = Temporary::create(&link).unwrap();
        file.write_all(b"whole").unwrap();
        temporary.rename().unwrap();
        assert!(link.is_symlink() && std::fs::read(&target).unwrap() == b"whole");
        let socket = folder.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [&socket, &folder] {
            assert!(Temporary::create(path).is_err());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_longest_names_have_room_for_the_suffix() {
        let suffix = ".4294967295-4294967295.tmp";
        for (name, kept) in [
            ("a".repeat(229), 229),
            ("a".repeat(230), 229),
            ("a".repeat(255), 229),
            ("a".to_owned() + &"\u{fc}".repeat(127), 229),
            ("\u{fc}".repeat(127), 228),
        ] {
            let short = shortened(OsStr::new(&name), suffix).into_string().unwrap();
            assert_eq!(short, name[..kept].to_owned() + suffix);
        }
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt;
            let name = OsStr::from_bytes(&[0xff; 255]);
            assert_eq!(shortened(name, suffix).to_str(), Some("bitlinear.4294967295-4294967295.tmp"));
        }
        for name in ["a".repeat(255), "\u{fc}".repeat(127)] {
            let path = std::env::temp_dir().join(&name);
            let (_, mut temporary) = Temporary::create(&path).unwrap();
            temporary.rename().unwrap();
            std::fs::remove_file(path).unwrap();
        }
    }
}
