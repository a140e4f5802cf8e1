//! What the CPU can do: asked once, narrowed by `BITLINEAR_ISA`, never widened.

use crate::error::{Result, fail};

/// An instruction set that kernels are written for. Later ones contain the earlier ones of the same
/// architecture, so that a kernel table can be walked from the best down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; everywhere.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
}

impl Isa {
    /// All of them, best first.
    pub const ALL: &'static [Isa] = &[Isa::Avx512Vnni, Isa::Avx2, Isa::Scalar];

    /// The name in kernel names and in `BITLINEAR_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512vnni",
        }
    }

    /// Whether this CPU (and operating system) runs it.
    pub fn detected(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx2.detected()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The best one of this CPU, no better than `BITLINEAR_ISA` says where it is set. A name that is
    /// unknown, or of an instruction set that this CPU lacks, is an error: a typo would otherwise
    /// test or measure something else than it says.
    pub fn from_environment() -> Result<Isa> {
        match std::env::var_os("BITLINEAR_ISA") {
            None => Ok(Isa::best()),
            Some(name) => Isa::named(&name.to_string_lossy()),
        }
    }

    /// The best one of this CPU.
    pub fn best() -> Isa {
        Isa::ALL.iter().copied().find(|isa| isa.detected()).unwrap_or(Isa::Scalar)
    }

    /// The one of that name, if this CPU has it.
    pub fn named(name: &str) -> Result<Isa> {
        let isa = Isa::ALL.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            fail!(InvalidArgument, "BITLINEAR_ISA: `{name}` is none of scalar, avx2, avx512vnni")
        })?;
        if !isa.detected() {
            return Err(fail!(Unsupported, "BITLINEAR_ISA: this CPU does not have {name}"));
        }
        Ok(isa)
    }
}

/// The processor's own name for itself; "cpu" where it does not say.
pub fn name() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::__cpuid;
        if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
            let mut bytes = Vec::with_capacity(48);
            for leaf in 0x8000_0002..=0x8000_0004u32 {
                let r = __cpuid(leaf);
                [r.eax, r.ebx, r.ecx, r.edx].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            }
            let text = String::from_utf8_lossy(&bytes);
            return text.split('\0').next().unwrap_or("cpu").trim().to_owned();
        }
    }
    "cpu".to_owned()
}

/// Total and free memory of the machine in bytes; 0 where the system does not say.
pub fn memory() -> (u64, u64) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: sysconf only reads.
        let (page, total, free) = unsafe {
            (
                libc::sysconf(libc::_SC_PAGESIZE),
                libc::sysconf(libc::_SC_PHYS_PAGES),
                libc::sysconf(libc::_SC_AVPHYS_PAGES),
            )
        };
        let bytes = |pages: i64| (pages.max(0) as u64).saturating_mul(page.max(0) as u64);
        (bytes(total), bytes(free))
    }
    #[cfg(not(target_os = "linux"))]
    (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(Isa::named("scalar").ok(), Some(Isa::Scalar));
        assert!(Isa::named("avx9").is_err_and(|e| e.text().contains("avx9")));
        assert!(Isa::named("").is_err());
    }
}
