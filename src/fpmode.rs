//! The floating-point mode of the calling thread, set for the time of a call or task.

/// The floating-point mode that the numerics contract assumes (round to nearest, no flushing of
/// subnormals), set while this lives. Audio hosts and -ffast-math programs run with another one.
pub struct FpMode(Control);

#[cfg(target_arch = "x86_64")]
type Control = u32;
#[cfg(not(target_arch = "x86_64"))]
type Control = u64;

#[cfg(target_arch = "x86_64")]
mod control {
    /// All of MXCSR but the sticky exception flags.
    pub(super) const MASK: u32 = 0xffc0;
    /// All exceptions masked, round to nearest, no FTZ, no DAZ.
    pub(super) const DEFAULT: u32 = 0x1f80;

    pub(super) fn get() -> u32 {
        let mut value = 0u32;
        // SAFETY: stores MXCSR to a local of four bytes.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack, preserves_flags)) }
        value
    }

    pub(super) fn set(value: u32) {
        // SAFETY: `value` is the default mode, or what `get` read before; neither has reserved bits.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, preserves_flags)) }
    }
}

#[cfg(target_arch = "aarch64")]
mod control {
    pub(super) const MASK: u64 = !0;
    pub(super) const DEFAULT: u64 = 0;

    pub(super) fn get() -> u64 {
        let value;
        // SAFETY: reads FPCR, which user code may.
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack, preserves_flags)) }
        value
    }

    pub(super) fn set(value: u64) {
        // SAFETY: writes the default mode, or what `get` read before.
        unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nostack, preserves_flags)) }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod control {
    pub(super) const MASK: u64 = 0;
    pub(super) const DEFAULT: u64 = 0;
    pub(super) fn get() -> u64 {
        0
    }
    pub(super) fn set(_: u64) {}
}

impl FpMode {
    /// Sets the mode, where it is not set already.
    #[inline]
    pub fn enter() -> FpMode {
        let before = control::get();
        if before & control::MASK != control::DEFAULT {
            control::set(control::DEFAULT);
        }
        FpMode(before)
    }
}

impl Drop for FpMode {
    #[inline]
    fn drop(&mut self) {
        if self.0 & control::MASK != control::DEFAULT {
            control::set(self.0);
        }
    }
}
