//! `cargo xtask kernels [--check] [--tools FOLDER]`: compiles kernels/*.cu into kernels/prebuilt/; with
//! `--raw FOLDER` what is there, inflated, and tests/cuda/probes.cu into that folder, for tests/gpu.
//!
//! ```text
//! kernels/w2.cu --NVRTC--> w2.75.ptx.z  w2.80.ptx.z  w2.80.cubin.z ...     deflated, see `image`
//!                          list.rs      what Rust includes: (module, capability, exact, binary, bytes)
//!                          SHA256SUMS   of the sources, then of the files, and the compiler's version
//! ```
//! The compiler and the tools come from `tools/get-nvrtc.sh FOLDER`, in exact versions: the same sources give the
//! same bytes. With `--check` nothing is written: whatever would differ is a failure, and so are images that an
//! old driver could not take, and machine code that spills or lacks the instructions it was written for
//! ([`gate`]). `tests/kernel_images.rs` compares the sums in plain `cargo test`, without any tool.

mod gate;
mod nvrtc;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::root;
use nvrtc::Nvrtc;
use sha2::Digest;

/// What an image is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// 10 * major + minor of the compute capability.
    pub arch: u32,
    /// Uses instructions of that capability alone (`sm_90a`).
    pub exact: bool,
    /// Machine code; else PTX.
    pub binary: bool,
    /// Of PTX: the version that the text declares. NVRTC writes its own, which only the newest drivers read; the
    /// kernels need no more than this, as the assemblers of that time prove (`gate`).
    pub version: &'static str,
}

const fn ptx(arch: u32, version: &'static str) -> Target {
    Target { arch, exact: false, binary: false, version }
}
const fn cubin(arch: u32) -> Target {
    Target { arch, exact: false, binary: true, version: "" }
}

/// Machine code for Ampere (with 8.6 to 8.9) and Hopper; PTX for Turing, and for all that come later.
const EVERYWHERE: &[Target] = &[ptx(75, "6.5"), ptx(80, "7.0"), cubin(80), cubin(90)];
/// Kernels of wgmma and bulk copies.
const HOPPER: &[Target] = &[Target { exact: true, ..ptx(90, "8.0") }, Target { exact: true, ..cubin(90) }];

/// The targets of a module, from its name.
fn targets(module: &str) -> &'static [Target] {
    if module.starts_with("hopper") { HOPPER } else { EVERYWHERE }
}

impl Target {
    /// `90a`.
    pub fn name(self) -> String {
        format!("{}{}", self.arch, if self.exact { "a" } else { "" })
    }
    fn file(self, module: &str) -> String {
        format!("{module}.{}.{}.z", self.name(), if self.binary { "cubin" } else { "ptx" })
    }
}

/// A compiled module, as NVRTC gave it (PTX: lowered, ending with NUL).
pub struct Compiled {
    /// Stem of the source.
    pub module: String,
    /// What for.
    pub target: Target,
    /// The image.
    pub bytes: Vec<u8>,
}

/// Compiles, and writes or compares.
pub fn kernels(arguments: &[&str]) -> Result<(), String> {
    let (mut check, mut raw, mut tools) = (false, None, root().join("target/nvrtc"));
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match *word {
            "--check" => check = true,
            "--tools" => tools = words.next().ok_or("--tools FOLDER")?.into(),
            "--raw" => raw = Some(PathBuf::from(words.next().ok_or("--raw FOLDER")?)),
            other => {
                return Err(format!(
                    "`{other}`: cargo xtask kernels [--check | --raw FOLDER] [--tools FOLDER]"
                ));
            }
        }
    }
    let folder = root().join("kernels");
    let mut sources = sources(&folder)?;
    let nvrtc = Nvrtc::open(&tools)?;
    if let Some(out) = raw {
        inflate(&folder.join("prebuilt"), &out)?;
        return write_probes(&nvrtc, &mut sources, &out);
    }
    let compiled = compile(&nvrtc, &sources)?;
    let prebuilt = folder.join("prebuilt");
    let files = files(&sources, &compiled, &prebuilt, &nvrtc.version()?)?;
    if check {
        compare(&prebuilt, &files)?;
        println!("kernels/prebuilt is what the sources give: {} files", files.len());
        return gate::gate(&tools, &compiled);
    }
    let failed = |e: std::io::Error| format!("{}: {e}", prebuilt.display());
    std::fs::create_dir_all(&prebuilt).map_err(failed)?;
    for entry in std::fs::read_dir(&prebuilt).map_err(failed)? {
        std::fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
    }
    let mut total = 0;
    for (name, bytes) in &files {
        std::fs::write(prebuilt.join(name), bytes).map_err(failed)?;
        total += bytes.len();
    }
    println!("kernels/prebuilt: {} files, {} KiB", files.len(), total.div_ceil(1024));
    Ok(())
}

/// Names and texts of kernels/*.cu and *.cuh.
fn sources(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut found = BTreeMap::new();
    let failed = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    for entry in std::fs::read_dir(folder).map_err(|e| failed(folder, e))? {
        let path: PathBuf = entry.map_err(|e| failed(folder, e))?.path();
        if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.insert(name, std::fs::read(&path).map_err(|e| failed(&path, e))?);
        }
    }
    Ok(found)
}

fn compile(nvrtc: &Nvrtc, sources: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Compiled>, String> {
    let jobs: Vec<(&str, Target)> = sources
        .keys()
        .filter_map(|name| name.strip_suffix(".cu"))
        .flat_map(|module| targets(module).iter().map(move |target| (module, *target)))
        .collect();
    let results: Vec<Result<Compiled, String>> = parallel(&jobs, |(module, target)| {
        let bytes = nvrtc.compile(&format!("{module}.cu"), sources, *target)?;
        let bytes = if target.binary { bytes } else { lower(&bytes, target.version)? };
        Ok(Compiled { module: (*module).to_owned(), target: *target, bytes })
    });
    results.into_iter().collect()
}

/// The images of kernels/prebuilt, as the driver takes them: `w2.80.cubin`.
fn inflate(prebuilt: &Path, out: &Path) -> Result<(), String> {
    let failed = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    std::fs::create_dir_all(out).map_err(|e| failed(out, e))?;
    for entry in std::fs::read_dir(prebuilt).map_err(|e| failed(prebuilt, e))? {
        let path = entry.map_err(|e| failed(prebuilt, e))?.path();
        let (Some("z"), Some(name)) = (path.extension().and_then(|e| e.to_str()), path.file_stem()) else {
            continue;
        };
        let bytes = std::fs::read(&path).map_err(|e| failed(&path, e))?;
        let image = inflated(&bytes).ok_or_else(|| format!("{}: broken", path.display()))?;
        std::fs::write(out.join(name), image).map_err(|e| failed(out, e))?;
    }
    Ok(())
}

/// The probes for every target, as they are, `probes.90a.cubin`.
fn write_probes(nvrtc: &Nvrtc, sources: &mut BTreeMap<String, Vec<u8>>, out: &Path) -> Result<(), String> {
    let path = root().join("tests/cuda/probes.cu");
    let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    sources.insert("probes.cu".to_owned(), text);
    std::fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    for target in EVERYWHERE.iter().chain(HOPPER) {
        let bytes = nvrtc.compile("probes.cu", sources, *target)?;
        let bytes = if target.binary { bytes } else { lower(&bytes, target.version)? };
        let file = target.file("probes");
        let file = file.trim_end_matches(".z");
        std::fs::write(out.join(file), bytes).map_err(|e| format!("{file}: {e}"))?;
    }
    Ok(())
}

/// PTX that declares another version, without what only later ones know (hints that some bytes of a load are not
/// used) and without remarks, ending with NUL.
fn lower(text: &[u8], version: &str) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?.trim_end_matches('\0');
    let mut lowered = String::with_capacity(text.len());
    let kept = |line: &&str| {
        let line = line.trim();
        !(line.is_empty() || line.starts_with("//") || line.starts_with(".pragma \"used_bytes_mask"))
    };
    for line in text.lines().filter(kept) {
        if line.starts_with(".version") {
            writeln!(lowered, ".version {version}").map_err(|e| e.to_string())?;
        } else {
            lowered.push_str(line);
            lowered.push('\n');
        }
    }
    lowered.push('\0');
    Ok(lowered.into_bytes())
}

/// The files of kernels/prebuilt, of which `prebuilt` may have some.
fn files(
    sources: &BTreeMap<String, Vec<u8>>,
    compiled: &[Compiled],
    prebuilt: &Path,
    version: &str,
) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let failed = |e: std::fmt::Error| e.to_string();
    let images: Vec<Result<(String, Vec<u8>), String>> = parallel(compiled, |c| {
        let name = c.target.file(&c.module);
        // Deflating takes a second or two: what is there already, and right, is kept.
        let present = std::fs::read(prebuilt.join(&name)).unwrap_or_default();
        let right = inflated(&present).is_some_and(|bytes| bytes == c.bytes);
        let bytes = if right { present } else { image(&c.bytes)? };
        Ok((name, bytes))
    });
    let mut files: BTreeMap<String, Vec<u8>> = images.into_iter().collect::<Result<_, _>>()?;
    let mut list = String::from(
        "// Written by `cargo xtask kernels`: module, 10 * capability, exact, binary, deflated bytes.\n&[\n",
    );
    for c in compiled {
        let Target { arch, exact, binary, .. } = c.target;
        let file = c.target.file(&c.module);
        writeln!(list, "    (\"{}\", {arch}, {exact}, {binary}, include_bytes!(\"{file}\")),", c.module)
            .map_err(failed)?;
    }
    list.push_str("]\n");
    files.insert("list.rs".to_owned(), list.into_bytes());

    let mut sums = format!("# Written by `cargo xtask kernels` with NVRTC {version}.\n");
    for (name, bytes) in sources {
        writeln!(sums, "{}  ../{name}", sum(bytes)).map_err(failed)?;
    }
    for (name, bytes) in &files {
        writeln!(sums, "{}  {name}", sum(bytes)).map_err(failed)?;
    }
    files.insert("SHA256SUMS".to_owned(), sums.into_bytes());
    Ok(files)
}

/// An image as the library holds it: its length (u32, little endian), then its bytes as raw DEFLATE, as short as
/// an exhaustive search makes it (a tenth shorter than zlib's best).
fn image(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut file = (bytes.len() as u32).to_le_bytes().to_vec();
    zopfli::compress(zopfli::Options::default(), zopfli::Format::Deflate, bytes, &mut file)
        .map_err(|e| format!("deflating: {e}"))?;
    Ok(file)
}

/// The bytes of such an image.
fn inflated(image: &[u8]) -> Option<Vec<u8>> {
    let (length, deflated) = image.split_first_chunk::<4>()?;
    let bytes = miniz_oxide::inflate::decompress_to_vec(deflated).ok()?;
    (bytes.len() == u32::from_le_bytes(*length) as usize).then_some(bytes)
}

fn sum(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn compare(prebuilt: &Path, files: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    let mut wrong = Vec::new();
    for (name, bytes) in files {
        match std::fs::read(prebuilt.join(name)) {
            Ok(present) if present == *bytes => {}
            Ok(_) => wrong.push(format!("{name} differs")),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    for entry in std::fs::read_dir(prebuilt).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !files.contains_key(&name) {
            wrong.push(format!("{name} is not made from a source"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!(
        "kernels/prebuilt is not what the sources give: run `cargo xtask kernels`\n  {}",
        wrong.join("\n  ")
    ))
}

/// The results of a function for each job, on as many threads as there are cores, in the jobs' order.
pub fn parallel<T: Sync, R: Send>(jobs: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<R>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(jobs.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { break };
                    let result = work(job);
                    *results[at].lock().unwrap_or_else(|e| e.into_inner()) = Some(result);
                }
            });
        }
    });
    results.into_iter().filter_map(|slot| slot.into_inner().unwrap_or_else(|e| e.into_inner())).collect()
}
