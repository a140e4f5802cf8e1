//! Who runs the pieces of a call: the calling thread alone, an own pool, or the host's threads.
//!
//! Work is split over output rows and rows of x, never over columns, so that how many threads there
//! are and which piece falls to which cannot change a bit of the result. Pieces are taken from a
//! counter, so that a thread that is late, or never comes, costs time and not correctness.

mod pool;
mod thread;

use std::ffi::c_void;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::error::{Error, Result, fail};
use crate::fault::caught;
use crate::fpmode::FpMode;

pub use pool::Pool;

/// Multiply-adds from which on a product is shared among threads: about 4 us of one thread's work, what
/// handing over costs.
pub const SHARE_FROM: usize = 1 << 19;

/// One task of a host's parallel-for.
pub type Task = unsafe extern "C" fn(task: *mut c_void, index: usize);
/// A host's parallel-for: `(user, count, run, task)`.
pub type ParallelFor = unsafe extern "C" fn(*mut c_void, usize, Option<Task>, *mut c_void);

/// Runs pieces of work. A piece is told its slot: at any time at most one piece runs in a slot, so
/// slots index scratch memory.
#[derive(Default)]
pub enum Executor {
    /// The calling thread.
    #[default]
    Serial,
    /// Threads of our own and the calling one.
    Pool(Pool),
    /// The host's threads and the calling one.
    Host(Host),
}

/// A host's parallel-for.
pub struct Host {
    /// The function.
    pub parallel_for: ParallelFor,
    /// Passed back.
    pub user: *mut c_void,
    /// Most tasks to hand over at a time.
    pub tasks: usize,
}

// SAFETY: the host promised that both may be used from any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

/// The work of one call: called with `(slot, piece)`.
pub type Work<'a> = &'a (dyn Fn(usize, usize) -> Result<()> + Sync);

impl Executor {
    /// A pool of `threads`, the caller counted; serial for 0 and 1.
    pub fn with_threads(threads: usize) -> Result<Executor> {
        if threads >= 2 && !watch_forks() {
            return Err(fail!(OutOfMemory, "what a fork() has to call"));
        }
        Ok(if threads < 2 { Executor::Serial } else { Executor::Pool(Pool::new(threads, available())?) })
    }

    /// The host's threads, in at most `tasks` tasks at a time.
    pub fn with_host(parallel_for: ParallelFor, user: *mut c_void, tasks: usize) -> Executor {
        Executor::Host(Host { parallel_for, user, tasks: tasks.max(1) })
    }

    /// How many slots there are.
    pub fn width(&self) -> usize {
        match self {
            Executor::Serial => 1,
            Executor::Pool(pool) => pool.threads(),
            Executor::Host(host) => host.tasks + 1, // the caller works too, in a slot of its own
        }
    }

    /// How many pieces run at a time at most. A host's last slot is the caller's, who works when the host is done.
    pub fn threads(&self) -> usize {
        match self {
            Executor::Host(host) => host.tasks,
            _ => self.width(),
        }
    }

    /// Calls `work(slot, piece)` once for each piece and comes back after the last; the first error
    /// (or panic) stops the rest.
    pub fn run(&self, pieces: usize, work: Work<'_>) -> Result<()> {
        match self {
            Executor::Pool(pool) if pieces > 1 => pool.run(pieces, work),
            Executor::Host(host) if pieces > 1 => host.run(pieces, work),
            _ => (0..pieces).try_for_each(|piece| work(0, piece)),
        }
    }
}

/// The pieces of one call, taken one after another by whoever comes.
struct Job<'a> {
    work: Work<'a>,
    pieces: usize,
    next: AtomicUsize,
    slots: AtomicUsize,
    failure: Mutex<Option<Error>>,
}

impl<'a> Job<'a> {
    fn new(pieces: usize, work: Work<'a>) -> Job<'a> {
        Job { work, pieces, next: AtomicUsize::new(0), slots: AtomicUsize::new(0), failure: Mutex::new(None) }
    }

    /// Takes pieces until there are none, in a slot of its own below `width`.
    fn help(&self, width: usize) {
        let slot = self.slots.fetch_add(1, Ordering::Relaxed);
        if slot >= width {
            return; // a host that starts more tasks than it was asked for
        }
        let result = caught(|| {
            loop {
                let piece = self.next.fetch_add(1, Ordering::Relaxed);
                if piece >= self.pieces {
                    return Ok(());
                }
                (self.work)(slot, piece)?;
            }
        });
        if let Err(error) = result {
            self.next.store(self.pieces, Ordering::Relaxed);
            self.failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
        }
    }

    fn result(self) -> Result<()> {
        self.failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }
}

impl Host {
    fn run(&self, pieces: usize, work: Work<'_>) -> Result<()> {
        /// What a task of the host gets: the job and how many slots it has.
        struct Shared<'a> {
            job: Job<'a>,
            width: usize,
        }
        unsafe extern "C" fn task(shared: *mut c_void, _index: usize) {
            let _mode = FpMode::enter();
            // SAFETY: `shared` is the struct below; the host comes back from its parallel-for only
            // after the last task has returned (its contract in the header).
            let shared = unsafe { &*shared.cast::<Shared<'_>>() };
            shared.job.help(shared.width);
        }
        // The last slot is the caller's, who works after the host has come back.
        let width = self.tasks + 1;
        let mut shared = Shared { job: Job::new(pieces, work), width: width - 1 };
        let count = self.tasks.min(pieces);
        // SAFETY: the host's function, called as the header says; `shared` outlives the call.
        unsafe { (self.parallel_for)(self.user, count, Some(task), (&raw mut shared).cast()) };
        // What the host left: it may call fewer tasks, or none. Its slots are free again.
        shared.job.slots.store(width - 1, Ordering::Relaxed);
        shared.job.help(width);
        shared.job.result()
    }
}

/// How often this process has come out of a fork() as the child.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Counts them from now on; whether it can.
pub(crate) fn watch_forks() -> bool {
    #[cfg(not(unix))]
    return true; // there is no fork()
    #[cfg(unix)]
    {
        static WATCHED: AtomicBool = AtomicBool::new(false);
        unsafe extern "C" fn in_child() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the handler only adds to an atomic.
        unsafe { at_fork(&WATCHED, None, None, Some(in_child)) }
    }
}

/// What fork() calls, in the parent before it and after it, and in the child; handed over once for each `watched`. Whether it
/// is; where memory was out, the next call tries again.
///
/// # Safety
/// The handlers do only what is allowed in a child of a process with threads.
#[cfg(unix)]
pub(crate) unsafe fn at_fork(
    watched: &AtomicBool,
    before: Option<unsafe extern "C" fn()>,
    in_parent: Option<unsafe extern "C" fn()>,
    in_child: Option<unsafe extern "C" fn()>,
) -> bool {
    // Not a `Once`, which a child that is forked meanwhile would wait for.
    if !watched.load(Ordering::Relaxed) && !watched.swap(true, Ordering::Relaxed) {
        // SAFETY: the caller's contract; the library stays loaded (build.rs: nodelete).
        if unsafe { libc::pthread_atfork(before, in_parent, in_child) } != 0 {
            watched.store(false, Ordering::Relaxed);
        }
    }
    watched.load(Ordering::Relaxed)
}

/// How many there were since [`watch_forks`].
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Refuses a pool whose threads are in the parent process.
fn check_fork(born: u32) -> Result<()> {
    if born == forks() {
        return Ok(());
    }
    Err(fail!(
        Forked,
        "the context has threads, which stayed behind in the parent of fork(); make one in the child"
    ))
}

/// The processors that this process may use: affinity and cgroup quota counted.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(executor: &Executor, pieces: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
        let busy: Vec<AtomicUsize> = (0..executor.width()).map(|_| AtomicUsize::new(0)).collect();
        let work = |slot: usize, piece: usize| {
            assert_eq!(busy[slot].fetch_add(1, Ordering::SeqCst), 0, "two pieces in slot {slot}");
            counts[piece].fetch_add(1, Ordering::SeqCst);
            busy[slot].fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        executor.run(pieces, &work).unwrap();
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    unsafe extern "C" fn nothing(_: *mut c_void, _: usize, _: Option<Task>, _: *mut c_void) {}
    unsafe extern "C" fn backwards(_: *mut c_void, count: usize, run: Option<Task>, task: *mut c_void) {
        // Twice as many as asked for, the last first.
        for i in (0..2 * count).rev() {
            // SAFETY: `task` is alive until this function returns.
            unsafe { run.unwrap()(task, i) };
        }
    }

    #[test]
    fn every_piece_runs_once_whoever_runs_it() {
        // Also as on a machine with fewer processors, or more, than this one has.
        for (threads, processors) in [(1, 1), (2, 2), (2, 1), (5, 1), (5, 2), (5, 5), (2, 64)] {
            let executor = Executor::Pool(Pool::new(threads, processors).unwrap());
            for pieces in [0, 1, 2, 3, 100, 1000] {
                assert!(counts(&executor, pieces).iter().all(|&n| n == 1));
            }
        }
        for host in [nothing as ParallelFor, backwards] {
            let executor = Executor::with_host(host, std::ptr::null_mut(), 4);
            assert!(counts(&executor, 100).iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn the_first_failure_comes_back_and_the_pool_lives_on() {
        let executor = Executor::with_threads(3).unwrap();
        for _ in 0..100 {
            let work = |_: usize, piece: usize| {
                if piece == 40 {
                    return Err(fail!(BadFile, "piece {piece}"));
                }
                assert!(piece < 90, "a panic in a piece");
                Ok(())
            };
            assert!(executor.run(64, &work).is_err_and(|e| e.text() == "piece 40"));
            assert!(executor.run(200, &work).is_err());
            assert!(counts(&executor, 50).iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn calls_inside_calls_and_beside_calls_finish() {
        let executor = Executor::with_threads(2).unwrap();
        let nested = |_: usize, _: usize| executor.run(8, &|_, _| Ok(()));
        executor.run(8, &nested).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert!(counts(&executor, 20).iter().all(|&n| n == 1));
                    }
                });
            }
        });
    }
}
