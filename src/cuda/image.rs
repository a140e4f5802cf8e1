//! The compiled kernels that are in this library, and which of them a device takes.
//!
//! ```text
//! cubin sm_XY     runs on its own major version from its minor version on
//! cubin sm_XYa    runs on X.Y alone
//! PTX   XY        is compiled by the driver, for X.Y and everything newer; XYa for X.Y alone
//! ```

use crate::kernel::cuda::launch::Module;

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

/// One compiled file.
#[derive(Clone, Copy)]
pub struct Image {
    /// Its kernels.
    pub module: Module,
    /// What for.
    pub target: Target,
    /// The file; PTX ends with a NUL.
    pub bytes: &'static [u8],
}

/// All of them.
pub const IMAGES: &[Image] = &[];

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
        let fits = |i: &&Image| i.module == module && i.target.fits(arch) && !(ptx_only && i.target.binary);
        let below = |i: &&Image| limit.is_none_or(|limit| i.target.rank() < limit);
        let next = images.iter().filter(fits).filter(below).max_by_key(|i| i.target.rank())?;
        if let Some(result) = attempt(next) {
            return Some(result);
        }
        limit = Some(next.target.rank());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(arch: u32, exact: bool, binary: bool) -> Image {
        Image { module: Module::W2, target: Target { arch, exact, binary }, bytes: &[] }
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
            Image { module: Module::W4, ..image(86, false, true) },
        ];
        let order = |arch: u32, ptx_only: bool| {
            let mut tried = vec![];
            let none = first(&images, Module::W2, arch, ptx_only, |i| {
                tried.push((i.target.arch, i.target.exact, i.target.binary));
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
        assert_eq!(first(&images, Module::W2, 90, false, |i| Some(i.target.arch)), Some(90));
    }
}
