//! What compiled kernels must be: PTX that the assemblers of old drivers' time take, code without spills, with the
//! instructions that it was written for, that leaves the registers of products alone while they run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Compiled, parallel};

/// Assemblers by version, and for what they must take which PTX: (arch of the PTX, exact, assembler, sm). A device
/// gets the newest PTX that it can take, so that of 7.5 serves 7.5 alone.
const ASSEMBLED: &[(u32, bool, &str, &str)] = &[
    (75, false, "11.8", "sm_75"),
    (75, false, "12.9", "sm_75"),
    (80, false, "11.8", "sm_80"),
    (80, false, "11.8", "sm_86"),
    (80, false, "11.8", "sm_89"),
    (80, false, "12.0", "sm_90"),
    (80, false, "12.9", "sm_100"),
    (80, false, "12.9", "sm_120"),
    (90, true, "12.0", "sm_90a"),
];

/// Instructions that a kernel must contain, by what stands in its name: the first that fits counts. `a|b`: either.
const EXPECTED: &[(&str, &[&str])] = &[
    ("_float", &["FFMA"]),
    ("_gemm", &["IMMA.", "LDG.E.128|LDGSTS.E.BYPASS.128"]),
    ("_few", &["IMMA.", "LDG.E.128|LDGSTS.E.BYPASS.128"]),
    ("_wgmma", &["IGMMA.", "UBLKCP"]),
    ("_prepare", &[]), // loads, maxima and conversions: nothing that it could lack
];

/// Runs them all; prints a table of the registers that kernels take.
pub fn gate(tools: &Path, compiled: &[Compiled]) -> Result<(), String> {
    let work = tools.join("gate");
    std::fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
    let mut wrong = Vec::new();

    let jobs: Vec<(&Compiled, &str, &str)> = compiled
        .iter()
        .filter(|c| !c.target.binary)
        .flat_map(|c| {
            let fits = |a: &&(u32, bool, &str, &str)| (a.0, a.1) == (c.target.arch, c.target.exact);
            ASSEMBLED.iter().filter(fits).map(move |(_, _, assembler, sm)| (c, *assembler, *sm))
        })
        .collect();
    let mut registers: BTreeMap<String, u32> = BTreeMap::new();
    for ((c, assembler, sm), result) in
        jobs.iter().zip(parallel(&jobs, |(c, assembler, sm)| assemble(tools, &work, c, assembler, sm)))
    {
        let what = format!("{} ({}) with ptxas {assembler} for {sm}", c.module, c.target.name());
        match result {
            Err(text) => wrong.push(format!("{what}: {text}")),
            Ok(kernels) => {
                for kernel in kernels {
                    if kernel.stack != 0 || kernel.spills != 0 {
                        wrong.push(format!(
                            "{what}: {} has {} bytes of stack and {} of spills",
                            kernel.name, kernel.stack, kernel.spills
                        ));
                    }
                    let most = registers.entry(kernel.name).or_default();
                    *most = kernel.registers.max(*most);
                }
            }
        }
    }
    println!("PTX taken by {} assemblers; most registers of a thread:", jobs.len());
    for (kernel, count) in &registers {
        println!("  {kernel:32} {count}");
    }

    // Machine code that is shipped, and what drivers will make of PTX: that for Turing, which has no own, and that of wgmma.
    let mut binaries: Vec<(String, PathBuf)> = Vec::new();
    for c in compiled.iter().filter(|c| c.target.binary) {
        let path = work.join(format!("{}.sm_{}.cubin", c.module, c.target.name()));
        std::fs::write(&path, &c.bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        binaries.push((format!("{} for sm_{}", c.module, c.target.name()), path));
    }
    for (c, assembler, sm) in jobs.iter().filter(|(_, _, sm)| ["sm_75", "sm_90a"].contains(sm)) {
        binaries.push((format!("{} for {sm}", c.module), assembled(&work, c, assembler, sm)));
    }
    for ((what, _), result) in binaries.iter().zip(parallel(&binaries, |(_, path)| disassemble(tools, path)))
    {
        match result {
            Err(text) => wrong.push(format!("{what}: {text}")),
            Ok(kernels) => {
                for (kernel, code) in kernels {
                    wrong.extend(faults(&kernel, &code).into_iter().map(|f| format!("{what}: {kernel} {f}")));
                }
            }
        }
    }
    println!("machine code of {} images read", binaries.len());
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("kernels are not what they must be:\n  {}", wrong.join("\n  ")))
    }
}

/// What ptxas says of a kernel.
struct Kernel {
    name: String,
    stack: u32,
    spills: u32,
    registers: u32,
}

/// Where the machine code lies that an assembler makes of a module; its PTX beside it.
fn assembled(work: &Path, c: &Compiled, assembler: &str, sm: &str) -> PathBuf {
    work.join(format!("{}.{}.{assembler}.{sm}.cubin", c.module, c.target.name()))
}

fn assemble(
    tools: &Path,
    work: &Path,
    c: &Compiled,
    assembler: &str,
    sm: &str,
) -> Result<Vec<Kernel>, String> {
    let ptx = assembled(work, c, assembler, sm).with_extension("ptx");
    let text = c.bytes.strip_suffix(b"\0").unwrap_or(&c.bytes);
    std::fs::write(&ptx, text).map_err(|e| e.to_string())?;
    let ptxas = tools.join(format!("nvcc-{assembler}/nvidia/cuda_nvcc/bin/ptxas"));
    let out = Command::new(&ptxas)
        .args(["-v", "-arch", sm, "-o"])
        .arg(assembled(work, c, assembler, sm))
        .arg(&ptx)
        .output()
        .map_err(|e| format!("{}: {e}", ptxas.display()))?;
    let log = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        return Err(log.lines().take(3).collect::<Vec<_>>().join("\n"));
    }
    let mut kernels: Vec<Kernel> = Vec::new();
    // "Compiling entry function 'bl_x' for 'sm_80'", "0 bytes stack frame, 0 bytes spill stores, ...",
    // "Used 40 registers, ..."
    for line in log.lines() {
        let number = |after: &str| line.split(after).nth(1).and_then(leading);
        if let Some((_, rest)) = line.split_once("entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(Kernel { name, stack: 0, spills: 0, registers: 0 });
        } else if let (Some(kernel), true) = (kernels.last_mut(), line.contains("bytes stack frame")) {
            let numbers: Vec<u32> = line.split(',').filter_map(|part| leading(part.trim())).collect();
            let [stack, stores, loads] = numbers[..] else { return Err(format!("not understood: {line}")) };
            (kernel.stack, kernel.spills) = (stack, stores + loads);
        } else if let (Some(kernel), Some(count)) = (kernels.last_mut(), number("Used ")) {
            kernel.registers = count;
        }
    }
    if kernels.is_empty() || kernels.iter().any(|k| k.registers == 0) {
        return Err(format!("ptxas names no kernels:\n{log}"));
    }
    Ok(kernels)
}

/// The number at the start of a text.
fn leading(text: &str) -> Option<u32> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    text[..digits].parse().ok()
}

/// The code of each kernel of a cubin, as text.
fn disassemble(tools: &Path, path: &Path) -> Result<BTreeMap<String, String>, String> {
    let tool = tools.join("nvdisasm-13.2/nvidia/cu13/bin/nvdisasm");
    let out = Command::new(&tool).arg(path).output().map_err(|e| format!("{}: {e}", tool.display()))?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    let mut kernels: BTreeMap<String, String> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        if let Some(rest) = line.trim().strip_prefix(".section\t") {
            current = rest.trim().strip_prefix(".text.").and_then(|r| r.split(',').next()).map(str::to_owned);
        } else if let (Some(kernel), true) = (&current, line.trim_start().starts_with("/*")) {
            let code = kernels.entry(kernel.clone()).or_default();
            code.push_str(line);
            code.push('\n');
        }
    }
    if kernels.is_empty() { Err("no code is found in it".into()) } else { Ok(kernels) }
}

/// What is wrong with a kernel's code.
fn faults(kernel: &str, code: &str) -> Vec<String> {
    let has = |word: &str| code.lines().any(|line| line.split_whitespace().any(|w| w.starts_with(word)));
    let mut wrong = Vec::new();
    for word in ["LDL", "STL"] {
        if has(word) {
            wrong.push(format!("uses local memory ({word})"));
        }
    }
    let Some((_, needed)) = EXPECTED.iter().find(|(part, _)| kernel.contains(part)) else {
        wrong.push("is of no kind whose instructions are known".into());
        return wrong;
    };
    for choice in *needed {
        if !choice.split('|').any(has) {
            wrong.push(format!("lacks {choice}"));
        }
    }
    let mut pending = Pending::default();
    wrong.extend(code.lines().filter_map(|line| pending.fault(line)).take(1));
    wrong
}

/// Registers of `wgmma` products that run: they read A and write their sums until a wait, so that nothing else may write A or
/// use a sum. The compiler sees to the sums. It does not know of A, whose registers are free to it once a product is
/// issued (`bl_wgmma_wait` in kernels/platform_hopper.cuh holds them), and the emulated GPU has no registers.
#[derive(Default)]
struct Pending {
    a: Vec<u32>,
    sums: std::ops::Range<u32>,
}

impl Pending {
    /// Takes the next line; what is wrong with it. `/*1b50*/ IGMMA.64x256x32.S8.S8 R24, R152, gdesc[UR4], R24 ;` multiplies
    /// R152 .. R155 and adds to R24 .. R151 until `WARPGROUP.DEPBAR.LE gsb0, 0x0`.
    fn fault(&mut self, line: &str) -> Option<String> {
        let text = line.split("*/").nth(1)?.split(';').next()?.trim();
        let text = if text.starts_with('@') { text.split_once(' ')?.1.trim() } else { text };
        let (operation, operands) = text.split_once(' ')?;
        let register = |operand: &str| operand.trim().strip_prefix('R').and_then(leading);
        if operation.starts_with("IGMMA") {
            let mut registers = operands.split(',').map_while(register);
            let columns = operation.split('x').nth(1).and_then(leading);
            let (Some(sums), Some(a), Some(columns)) = (registers.next(), registers.next(), columns) else {
                return Some(format!("has a product that is not understood: {text}"));
            };
            self.a.extend(a..a + 4);
            self.sums = sums..sums + columns / 2;
            return None;
        }
        if operation.starts_with("WARPGROUP.DEPBAR") {
            *self = Pending::default();
            return None;
        }
        // Predicates may stand before the register that is written.
        let written = operands.split(',').find(|o| !o.trim().starts_with(['P', 'U'])).and_then(register);
        let width = match operation {
            o if o.contains(".128") => 4,
            o if o.contains(".64") || o.contains(".WIDE") => 2,
            _ => 1,
        };
        let overwrites = written.is_some_and(|w| (w..w + width).any(|r| self.a.contains(&r)));
        let mut names = operands.split(|c: char| !c.is_ascii_alphanumeric()).filter_map(register);
        if overwrites || names.any(|r| self.sums.contains(&r)) {
            return Some(format!("touches registers of products that run: {text}"));
        }
        None
    }
}
