//! What this machine can do: the denominators of the report.
//!
//! Reading is a sum over 256 MiB a thread; multiply-adds run in registers, sixteen (AVX2: twelve)
//! accumulators deep. Every figure is the best of many tries. All are taken at the beginning of a run, reading
//! again with every matrix.

use std::hint::spin_loop;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Limits for a number of threads.
#[derive(Clone, Serialize, Deserialize)]
pub struct Limits {
    pub threads: usize,
    /// Bytes a second from DRAM.
    pub read: f64,
    /// int8 multiply-adds a second of the best exact instruction sequence that this CPU has.
    pub integer: f64,
    /// Which that is.
    pub integer_by: String,
    /// int8 multiply-adds a second where 16-bit sums are enough (AVX2: vpmaddubsw, vpaddw).
    pub integer_16: f64,
    /// f32 multiply-adds a second.
    pub float: f64,
    /// Seconds for a word to another spinning thread and back; 0 for one thread.
    pub ping: f64,
    /// Seconds from waking a sleeping thread to its first word; 0 for one thread.
    pub wake: f64,
}

const BYTES: usize = 256 << 20;
const STEPS: usize = 20_000;

/// The loops.
#[cfg(target_arch = "x86_64")]
#[path = "../../common/peak.rs"]
mod peak;

/// Multiply-adds a second of a loop on each of the threads at once.
#[cfg(target_arch = "x86_64")]
fn rate(threads: usize, l: &peak::Loop) -> f64 {
    let seconds = together(threads, 25, |_| (l.run)(STEPS));
    (threads * STEPS * l.macs) as f64 / seconds
}

/// The shortest time in which all threads do `work` at once.
fn together(threads: usize, tries: usize, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let zero = Instant::now();
    let times: Vec<Vec<(Duration, Duration)>> = std::thread::scope(|scope| {
        let run = |i: usize| {
            let (barrier, work) = (&barrier, &work);
            move || {
                let mut times = Vec::new();
                for _ in 0..tries {
                    barrier.wait();
                    let start = zero.elapsed();
                    work(i);
                    times.push((start, zero.elapsed()));
                }
                times
            }
        };
        let others: Vec<_> = (1..threads).map(|i| scope.spawn(run(i))).collect();
        let own = run(0)();
        std::iter::once(own).chain(others.into_iter().map(|o| o.join().expect("a thread"))).collect()
    });
    let length = |i: usize| {
        let start = times.iter().map(|t| t[i].0).min().expect("a thread");
        let end = times.iter().map(|t| t[i].1).max().expect("a thread");
        (end - start).as_secs_f64()
    };
    (0..tries).map(length).fold(f64::MAX, f64::min)
}

/// A word to a thread that spins and one that sleeps, and back.
fn hand_off() -> (f64, f64) {
    const ROUNDS: usize = 2000;
    let word = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for i in 0..ROUNDS {
                while word.load(Ordering::Acquire) != 2 * i + 1 {
                    spin_loop();
                }
                word.store(2 * i + 2, Ordering::Release);
            }
            for i in ROUNDS..ROUNDS + 200 {
                while word.load(Ordering::Acquire) != 2 * i + 1 {
                    std::thread::park();
                }
                word.store(2 * i + 2, Ordering::Release);
            }
        });
        let round = |i: usize, wake: bool| {
            let start = Instant::now();
            word.store(2 * i + 1, Ordering::Release);
            if wake {
                other.thread().unpark();
            }
            while word.load(Ordering::Acquire) != 2 * i + 2 {
                spin_loop();
            }
            start.elapsed().as_secs_f64()
        };
        let ping = (0..ROUNDS).map(|i| round(i, false)).fold(f64::MAX, f64::min);
        let wake = (ROUNDS..ROUNDS + 200)
            .map(|i| {
                std::thread::sleep(Duration::from_micros(200));
                round(i, true)
            })
            .fold(f64::MAX, f64::min);
        (ping, wake)
    })
}

/// Zeroed memory on huge pages where the system gives them, as bitlinear asks for its weights.
fn memory() -> Vec<u8> {
    let mut bytes = vec![0u8; BYTES];
    // SAFETY: advice on memory that is ours; a refusal does not matter.
    unsafe {
        let address = bytes.as_mut_ptr() as usize & !4095;
        libc::madvise(address as *mut libc::c_void, BYTES, libc::MADV_HUGEPAGE);
    }
    bytes.fill(1);
    bytes
}

/// Bytes a second from DRAM: the best of some tries. Neighbours on the same memory change it from minute to
/// minute, so that a run asks more than once.
#[cfg(target_arch = "x86_64")]
pub fn read(threads: usize, tries: usize) -> Option<f64> {
    let read = peak::read()?;
    let parts: Vec<Vec<u8>> = (0..threads).map(|_| memory()).collect();
    Some((threads * BYTES) as f64 / together(threads, tries, |i| read(&parts[i])))
}

/// As above.
#[cfg(not(target_arch = "x86_64"))]
pub fn read(_: usize, _: usize) -> Option<f64> {
    None
}

/// Measures them; None where this program knows no loops for the CPU.
#[cfg(target_arch = "x86_64")]
pub fn measure(threads: usize) -> Option<Limits> {
    let (integer, float) = (peak::integer()?, peak::float()?);
    let (ping, wake) = if threads > 1 { hand_off() } else { (0.0, 0.0) };
    Some(Limits {
        threads,
        read: read(threads, 12)?,
        integer: rate(threads, &integer),
        integer_by: integer.by.into(),
        integer_16: rate(threads, &peak::integer_16()?),
        float: rate(threads, &float),
        ping,
        wake,
    })
}

/// Measures them; None where this program knows no loops for the CPU.
#[cfg(not(target_arch = "x86_64"))]
pub fn measure(_: usize) -> Option<Limits> {
    None
}
