//! Threads of our own: joined when the pool goes, spinning briefly after work and then asleep.
//!
//! A call publishes its job, works on it itself, withdraws it and waits for the threads that are still
//! inside it. A thread that wants to enter counts itself in *before* it looks at the job, and the
//! caller withdraws the job *before* it looks at the count; both with sequential consistency, so that
//! either the thread sees no job or the caller sees the thread.
//!
//! One call has the pool at a time. Another one that comes meanwhile (from a second host thread, or
//! from inside a piece) does its work alone: it would wait longer than it would gain.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Job, Work, check_fork, forks};
use crate::error::{Result, fail};
use crate::fpmode::FpMode;
use crate::memory::reserve;

/// How long a thread looks out for the next job before it sleeps: longer than the gap between two
/// layers of a model, shorter than a scheduler's slice.
const SPIN: Duration = Duration::from_micros(50);

/// A pool of threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
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
    /// Threads that sleep, or are about to.
    asleep: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<()>,
    /// There is a job, or the pool goes.
    wake: Condvar,
    /// The last thread has left the job.
    done: Condvar,
}

impl Pool {
    /// A pool of `threads`, the caller counted.
    pub(super) fn new(threads: usize) -> Result<Pool> {
        let shared = Arc::new(Shared {
            job: AtomicPtr::new(ptr::null_mut()),
            epoch: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            width: threads,
            asleep: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let mut pool = Pool { shared, threads: Vec::new(), busy: AtomicBool::new(false), born: forks() };
        reserve(&mut pool.threads, threads - 1, "threads")?;
        for i in 1..threads {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("bitlinear-{i}"))
                .spawn(move || shared.serve())
                // Dropping the pool joins the threads that were started before.
                .map_err(|e| fail!(OutOfMemory, "thread {i} of {threads}: {e}"))?;
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
        self.shared.publish(&job);
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
        drop(self.shared.lock.lock());
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // threads do not panic: `Job::help` catches
        }
    }
}

impl Shared {
    fn publish(&self, job: &Job<'_>) {
        self.job.store(ptr::from_ref(job).cast_mut().cast(), Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock()); // a thread that is about to sleep has seen the epoch, or hears this
            self.wake.notify_all();
        }
    }

    fn withdraw(&self) {
        self.job.store(ptr::null_mut(), Ordering::SeqCst);
        let begin = Instant::now();
        while self.inside.load(Ordering::SeqCst) > 0 {
            std::hint::spin_loop();
            if begin.elapsed() > SPIN {
                // A thread has lost its processor in the middle of a piece: let it have this one.
                let mut guard = self.lock.lock().unwrap_or_else(|e| e.into_inner());
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
                drop(self.lock.lock());
                self.done.notify_all();
            }
        }
    }

    /// Waits for another epoch than `seen`; `None` when the pool goes.
    fn next_epoch(&self, seen: usize) -> Option<usize> {
        let begin = Instant::now();
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
                break;
            }
        }
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(|e| e.into_inner());
        while !self.stop.load(Ordering::SeqCst) && self.epoch.load(Ordering::SeqCst) == seen {
            guard = self.wake.wait(guard).unwrap_or_else(|e| e.into_inner());
        }
        drop(guard);
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        (!self.stop.load(Ordering::SeqCst)).then(|| self.epoch.load(Ordering::SeqCst))
    }
}
