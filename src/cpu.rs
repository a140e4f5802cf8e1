//! What the CPU can do: asked once, narrowed by `BITLINEAR_ISA`, never widened.

use crate::error::{Result, fail};

/// An instruction set that kernels are written for. Those of one architecture stand in the order of
/// their speed; a later one need not contain an earlier one, so that each is detected by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; everywhere.
    Scalar,
    /// x86-64: AVX2 with FMA and F16C.
    Avx2,
    /// x86-64: AVX2 and its own VNNI.
    AvxVnni,
    /// x86-64: AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// AArch64: its base.
    Neon,
    /// AArch64: the dot products of Armv8.2.
    DotProd,
    /// AArch64: those and the matrix products of Armv8.6.
    I8mm,
}

/// Evaluates to whether the CPU has all of the features.
#[cfg(target_arch = "x86_64")]
macro_rules! has {
    ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
}
/// As above.
#[cfg(target_arch = "aarch64")]
macro_rules! has {
    ($($feature:tt)*) => { $(std::arch::is_aarch64_feature_detected!($feature))&&* };
}

impl Isa {
    /// Those of this architecture, best first.
    #[cfg(target_arch = "x86_64")]
    pub const ALL: &'static [Isa] = &[Isa::Avx512Vnni, Isa::AvxVnni, Isa::Avx2, Isa::Scalar];
    /// Those of this architecture, best first.
    #[cfg(target_arch = "aarch64")]
    pub const ALL: &'static [Isa] = &[Isa::I8mm, Isa::DotProd, Isa::Neon, Isa::Scalar];
    /// Those of this architecture, best first.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub const ALL: &'static [Isa] = &[Isa::Scalar];

    /// The name in kernel names and in `BITLINEAR_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Neon => "neon",
            Isa::DotProd => "dotprod",
            Isa::I8mm => "i8mm",
        }
    }

    /// The one whose kernels it uses for float activations: those that only add integer dot products
    /// have none of their own.
    pub const fn float(self) -> Isa {
        match self {
            Isa::AvxVnni => Isa::Avx2,
            Isa::DotProd | Isa::I8mm => Isa::Neon,
            isa => isa,
        }
    }

    /// Whether this CPU (and operating system) runs it.
    pub fn detected(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => has!("avx2" "fma" "f16c"),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.detected() && has!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx2.detected() && has!("avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => has!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::DotProd => Isa::Neon.detected() && has!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => Isa::DotProd.detected() && has!("i8mm"),
            _ => false,
        }
    }

    /// The best one of this CPU, no better than `BITLINEAR_ISA` says where it is set and not empty. A name that is
    /// unknown, or of an instruction set that this CPU lacks, is an error: a typo would otherwise
    /// test or measure something else than it says.
    pub fn from_environment() -> Result<Isa> {
        match std::env::var_os("BITLINEAR_ISA") {
            None => Ok(Isa::best()),
            Some(name) if name.is_empty() => Ok(Isa::best()),
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
            let names: Vec<&str> = Isa::ALL.iter().rev().map(|isa| isa.name()).collect();
            fail!(InvalidArgument, "BITLINEAR_ISA: `{name}` is none of {}", names.join(", "))
        })?;
        if !isa.detected() {
            return Err(fail!(Unsupported, "BITLINEAR_ISA: this CPU does not have {name}"));
        }
        Ok(isa)
    }
}

/// Whether its own prefetchers are best left alone where memory is read in the order of addresses. On a Zen 4 they
/// come to the whole bandwidth, and to two thirds of it beside prefetches of a program; Intel's are helped by those.
#[cfg(target_arch = "x86_64")]
pub fn follows_reads() -> bool {
    is_amd()
}

/// Whether shifts and masks of vectors have ports of their own beside those of integer products: two of a Zen 4's four, while
/// Intel's two ports for 512 bits do both.
pub fn decodes_beside_products() -> bool {
    is_amd()
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    static AMD: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let vendor = core::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    });
    *AMD
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
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
        assert!(Isa::named("avx9").is_err_and(|e| e.text().contains("`avx9` is none of scalar")));
        assert!(Isa::named("").is_err());
    }
}
