//! The compiled kernels that are in this library, and which of them a device takes.
//!
//! ```text
//! cubin sm_XY     runs on its own major version from its minor version on
//! cubin sm_XYa    runs on X.Y alone
//! PTX   XY        is compiled by the driver, for X.Y and everything newer; XYa for X.Y alone
//! file            the image's length (u32, little endian), then the image as raw DEFLATE
//! ```

use miniz_oxide::inflate::decompress_slice_iter_to_slice;

use crate::error::{Result, fail};
use crate::kernel::cuda::launch::Module;
use crate::memory::filled;

/// What a file of `kernels/prebuilt/` was compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// 10 * major + minor of the compute capability.
    pub arch: u32,
    /// Whether it uses what only that capability has.
    pub exact: bool,
    /// Whether it is machine code; else PTX.
    pub binary: bool,
}

/// One file: the name of its module, its target (capability, exact, binary), its bytes.
pub type Image = (&'static str, u32, bool, bool, &'static [u8]);

/// All of them: `cargo xtask kernels` writes the list.
pub const IMAGES: &[Image] = include!("../../kernels/prebuilt/list.rs");

/// What an image was compiled for.
fn target(image: &Image) -> Target {
    Target { arch: image.1, exact: image.2, binary: image.3 }
}

/// The image in a file. PTX ends with a NUL.
pub fn unpacked(image: &Image) -> Result<Vec<u8>> {
    let broken =
        || fail!(Internal, "the kernels `{}` for {:?} in this library are broken", image.0, target(image));
    let (length, deflated) = image.4.split_first_chunk::<4>().ok_or_else(broken)?;
    let mut bytes = filled(u32::from_le_bytes(*length) as usize, 0u8, "kernels")?;
    match decompress_slice_iter_to_slice(&mut bytes, std::iter::once(deflated), false, true) {
        Ok(length) if length == bytes.len() && length > 0 => Ok(bytes),
        _ => Err(broken()),
    }
}

impl Target {
    /// Whether a device of that capability runs it.
    fn fits(self, arch: u32) -> bool {
        if self.exact {
            return self.arch == arch;
        }
        self.arch <= arch && (!self.binary || self.arch / 10 == arch / 10)
    }

    /// Which of two that fit is tried first: machine code, then what is made for more.
    fn rank(self) -> (bool, u32, bool) {
        (self.binary, self.arch, self.exact)
    }
}

/// Tries the images of a module that fit a device, the best first, until one works.
pub fn first<T>(
    images: &[Image],
    module: Module,
    arch: u32,
    ptx_only: bool,
    mut attempt: impl FnMut(&Image) -> Option<T>,
) -> Option<T> {
    let mut limit = None;
    loop {
        let fits = |image: &&Image| {
            let target = target(image);
            image.0 == module.name() && target.fits(arch) && !(ptx_only && target.binary)
        };
        let below = |image: &&Image| limit.is_none_or(|limit| target(image).rank() < limit);
        let next = images.iter().filter(fits).filter(below).max_by_key(|image| target(image).rank())?;
        if let Some(result) = attempt(next) {
            return Some(result);
        }
        limit = Some(target(next).rank());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(arch: u32, exact: bool, binary: bool) -> Image {
        ("w2", arch, exact, binary, &[])
    }

    /// Every module has PTX that the oldest supported device takes, and every file can be read.
    #[test]
    fn every_module_runs_everywhere() {
        for module in Module::ALL {
            let hopper = module.name().starts_with("hopper");
            for arch in if hopper { &[90][..] } else { &[75, 80, 86, 89, 90, 100, 120] }.iter().copied() {
                assert!(
                    first(IMAGES, module, arch, true, |i| unpacked(i).ok()).is_some(),
                    "{module:?} on {arch}"
                );
            }
        }
        for image in IMAGES {
            let bytes = unpacked(image).unwrap();
            assert!(if image.3 { bytes.starts_with(b"\x7fELF") } else { bytes.ends_with(&[0]) });
        }
    }

    #[test]
    fn the_best_image_comes_first() {
        let images = [
            image(75, false, false),
            image(80, false, false),
            image(90, true, false),
            image(80, false, true),
            image(90, false, true),
            image(90, true, true),
            ("w4", 86, false, true, &[]),
        ];
        let order = |arch: u32, ptx_only: bool| {
            let mut tried = vec![];
            let none = first(&images, Module::W2, arch, ptx_only, |i| {
                tried.push((i.1, i.2, i.3));
                None::<()>
            });
            assert!(none.is_none());
            tried
        };
        let (ptx75, ptx80, ptx90a) = ((75, false, false), (80, false, false), (90, true, false));
        let (sm80, sm90, sm90a) = ((80, false, true), (90, false, true), (90, true, true));
        assert_eq!(order(70, false), []);
        assert_eq!(order(75, false), [ptx75]);
        assert_eq!(order(80, false), [sm80, ptx80, ptx75]);
        assert_eq!(order(86, false), [sm80, ptx80, ptx75]);
        assert_eq!(order(90, false), [sm90a, sm90, ptx90a, ptx80, ptx75]);
        assert_eq!(order(90, true), [ptx90a, ptx80, ptx75]);
        assert_eq!(order(100, false), [ptx80, ptx75]);
        assert_eq!(order(120, false), [ptx80, ptx75]);
        assert_eq!(first(&images, Module::W2, 90, false, |i| Some(i.1)), Some(90));
    }
}
