//! Threads of our own: joined when the pool goes, spinning briefly after work and then asleep.
//!
//! A call publishes its job, works on it itself, withdraws it and waits for the threads that are still
//! inside it. A thread that wants to enter counts itself in *before* it looks at the job, and the
//! caller withdraws the job *before* it looks at the count; both with sequential consistency, so that
//! either the thread sees no job or the caller sees the thread.
//!
//! More threads at work than there are processors only push each other off them. So a call wakes no more
//! than are missing until there is one at work for each processor (the caller's counted), and none
//! where enough are awake already: the threads of a pool that is too large sleep on.
//!
//! One call has the pool at a time. Another one that comes meanwhile (from a second host thread, or
//! from inside a piece) does its work alone: it would wait longer than it would gain.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::thread::Thread;
use super::{Job, Work, check_fork, forks};
use crate::error::Result;
use crate::fpmode::FpMode;
use crate::memory::reserve;

/// How long a thread looks out for the next job before it sleeps: longer than the gap between two
/// layers of a model, shorter than a scheduler's slice.
const SPIN: Duration = Duration::from_micros(50);

/// A pool of threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    /// Held by the call that has the pool.
    busy: AtomicBool,
    born: u32,
}

struct Shared {
    /// The job to help with, or NULL.
    job: AtomicPtr<Job<'static>>,
    /// Changes with every job, so that a thread enters each job once.
    epoch: AtomicUsize,
    /// Threads inside the job.
    inside: AtomicUsize,
    /// Slots, the caller's counted.
    width: usize,
    /// As many threads are woken at most.
    helpers: usize,
    /// Threads that sleep and have not been called. Changes under the lock.
    asleep: AtomicUsize,
    stop: AtomicBool,
    /// Threads that were called and have not woken yet.
    called: Mutex<usize>,
    /// A thread was called, or the pool goes.
    wake: Condvar,
    /// The last thread has left the job.
    done: Condvar,
}

impl Pool {
    /// A pool of `threads`, the caller counted, for a machine with `processors`.
    pub(super) fn new(threads: usize, processors: usize) -> Result<Pool> {
        let shared = Arc::new(Shared {
            job: AtomicPtr::new(ptr::null_mut()),
            epoch: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            width: threads,
            helpers: threads.min(processors).saturating_sub(1),
            asleep: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            called: Mutex::new(0),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let mut pool = Pool { shared, threads: Vec::new(), busy: AtomicBool::new(false), born: forks() };
        reserve(&mut pool.threads, threads - 1, "threads")?;
        for i in 1..threads {
            let shared = pool.shared.clone();
            // Dropping the pool joins the threads that were started before.
            let thread = Thread::spawn(move || shared.serve())
                .map_err(|e| e.within(format_args!("thread {i} of {threads}")))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub(super) fn threads(&self) -> usize {
        self.shared.width
    }

    pub(super) fn run(&self, pieces: usize, work: Work<'_>) -> Result<()> {
        check_fork(self.born)?;
        if self.busy.swap(true, Ordering::Acquire) {
            return (0..pieces).try_for_each(|piece| work(0, piece));
        }
        let job = Job::new(pieces, work);
        self.shared.publish(&job, self.shared.helpers.min(pieces - 1));
        job.help(self.shared.width);
        self.shared.withdraw();
        self.busy.store(false, Ordering::Release);
        job.result()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.born != forks() {
            // The threads are in the parent process: there is nothing to join here.
            self.threads.drain(..).for_each(std::mem::forget);
            return;
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.lock());
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            thread.join();
        }
    }
}

impl Shared {
    /// Shows the job to who is awake, and wakes others until `helpers` are.
    fn publish(&self, job: &Job<'_>, helpers: usize) {
        self.job.store(ptr::from_ref(job).cast_mut().cast(), Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.missing(helpers) > 0 {
            let mut called = self.lock();
            // A thread that was about to sleep has seen the new epoch by now, or sleeps.
            let missing = self.missing(helpers);
            self.asleep.fetch_sub(missing, Ordering::SeqCst);
            *called += missing;
            (0..missing).for_each(|_| self.wake.notify_one());
        }
    }

    /// How many sleeping threads have to be called so that `helpers` are awake.
    fn missing(&self, helpers: usize) -> usize {
        let asleep = self.asleep.load(Ordering::SeqCst);
        let awake = (self.width - 1).saturating_sub(asleep);
        helpers.saturating_sub(awake).min(asleep)
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.called.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn withdraw(&self) {
        self.job.store(ptr::null_mut(), Ordering::SeqCst);
        let begin = Instant::now();
        while self.inside.load(Ordering::SeqCst) > 0 {
            std::hint::spin_loop();
            if begin.elapsed() > SPIN {
                // A thread has lost its processor in the middle of a piece: let it have this one.
                let mut guard = self.lock();
                while self.inside.load(Ordering::SeqCst) > 0 {
                    guard = self.done.wait(guard).unwrap_or_else(|e| e.into_inner());
                }
                return;
            }
        }
    }

    /// What a thread of the pool does all its life.
    fn serve(&self) {
        let _mode = FpMode::enter();
        let mut seen = 0;
        while let Some(epoch) = self.next_epoch(seen) {
            seen = epoch;
            self.inside.fetch_add(1, Ordering::SeqCst);
            let job = self.job.load(Ordering::SeqCst);
            if !job.is_null() {
                // SAFETY: the job is on the stack of `Pool::run`, which withdraws it and then waits
                // until `inside` is 0 before it returns; this thread counted itself in before it
                // saw the job.
                unsafe { &*job }.help(self.width);
            }
            if self.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
                drop(self.lock());
                self.done.notify_all();
            }
        }
    }

    /// Waits for another epoch than `seen`, first awake and then asleep; `None` when the pool goes.
    fn next_epoch(&self, seen: usize) -> Option<usize> {
        let mut begin = Instant::now();
        loop {
            for _ in 0..64 {
                if self.stop.load(Ordering::Relaxed) {
                    return None;
                }
                let epoch = self.epoch.load(Ordering::SeqCst);
                if epoch != seen {
                    return Some(epoch);
                }
                std::hint::spin_loop();
            }
            if begin.elapsed() > SPIN {
                self.sleep(seen);
                begin = Instant::now();
            }
        }
    }

    /// Sleeps until the thread is called, or the pool goes; not at all where the epoch has changed.
    fn sleep(&self, seen: usize) {
        let mut called = self.lock();
        self.asleep.fetch_add(1, Ordering::SeqCst);
        // A call changes the epoch before it looks who sleeps: either this sees the new epoch, or the
        // call sees this thread.
        if self.epoch.load(Ordering::SeqCst) != seen {
            self.asleep.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        while *called == 0 && !self.stop.load(Ordering::SeqCst) {
            called = self.wake.wait(called).unwrap_or_else(|e| e.into_inner());
        }
        *called = called.saturating_sub(1); // who called has counted the thread as awake
    }
}
