//! A thread of the pool, made so that every failure is a status: `std::thread` allocates the record of a
//! thread past the library's allocator and aborts where there is no memory for it.

use crate::error::{Result, fail};

/// Stack of a thread, as `std` has it: kernels keep their scratch in the workspace.
#[cfg(unix)]
const STACK: usize = 2 << 20;

/// A thread that has been started. To be joined; dropped otherwise, it runs on.
pub(super) struct Thread {
    #[cfg(unix)]
    id: libc::pthread_t,
    #[cfg(not(unix))]
    handle: std::thread::JoinHandle<()>,
}

#[cfg(unix)]
type Start = Box<dyn FnOnce() + Send>;

#[cfg(unix)]
extern "C" fn start(work: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `spawn` gave it to this thread alone.
    let work = unsafe { Box::from_raw(work.cast::<Start>()) };
    // An unwinding panic must not leave an `extern "C"` function. (`Job::help` catches those of pieces.)
    let _ = crate::fault::caught(|| {
        work();
        Ok(())
    });
    std::ptr::null_mut()
}

impl Thread {
    /// Starts a thread.
    #[cfg(unix)]
    pub(super) fn spawn(work: impl FnOnce() + Send + 'static) -> Result<Thread> {
        let work: Start = Box::new(work);
        let work = Box::into_raw(Box::new(work));
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
        let mut id = std::mem::MaybeUninit::<libc::pthread_t>::uninit();
        // SAFETY: the attributes are initialised before they are used and destroyed after; `start` takes
        // the one pointer to `work` over where the thread starts, and only there.
        let code = unsafe {
            match libc::pthread_attr_init(attributes.as_mut_ptr()) {
                0 => {
                    // Where it is refused (a minimum above it), the default is good too.
                    let _ = libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
                    let code = libc::pthread_create(id.as_mut_ptr(), attributes.as_ptr(), start, work.cast());
                    libc::pthread_attr_destroy(attributes.as_mut_ptr());
                    code
                }
                code => code,
            }
        };
        if code != 0 {
            // SAFETY: no thread has taken it.
            drop(unsafe { Box::from_raw(work) });
            return Err(fail!(OutOfMemory, "a thread: {}", std::io::Error::from_raw_os_error(code)));
        }
        // SAFETY: pthread_create has written it.
        let id = unsafe { id.assume_init() };
        #[cfg(target_os = "linux")]
        // SAFETY: a thread that is not joined yet; a name of less than 16 bytes.
        unsafe {
            libc::pthread_setname_np(id, c"bitlinear".as_ptr());
        }
        Ok(Thread { id })
    }

    /// Starts a thread.
    #[cfg(not(unix))]
    pub(super) fn spawn(work: impl FnOnce() + Send + 'static) -> Result<Thread> {
        let handle = std::thread::Builder::new().name("bitlinear".into()).spawn(work);
        Ok(Thread { handle: handle.map_err(|e| fail!(OutOfMemory, "a thread: {e}"))? })
    }

    /// Waits for its end.
    pub(super) fn join(self) {
        #[cfg(unix)]
        // SAFETY: started by `spawn` and joined once, since this takes it.
        unsafe {
            libc::pthread_join(self.id, std::ptr::null_mut());
        }
        #[cfg(not(unix))]
        let _ = self.handle.join();
    }
}
