//! What a context has on a device beside its layers: the device itself, the count of its bytes there, and
//! *lanes* for calls with host pointers, each a stream of its own with memory on both sides.
//!
//! ```text
//! x --f32--> pinned memory --> device memory --kernels--> device memory --> pinned memory --> y
//! ```
//! A call takes a resting lane, or makes one; so there are as many as calls ran at the same time, and they
//! never wait for each other.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use super::device::{Device, Slow};
use super::memory::{Count, DeviceMemory, Pinned, Stream};
use crate::error::Result;

/// A device, as one context has it.
pub struct Lanes {
    /// The device.
    pub device: Arc<Device>,
    /// Bytes that were allocated there for the context.
    pub count: Count,
    resting: Mutex<Vec<Lane>>,
}

/// A stream and the memory of a call.
pub struct Lane {
    /// On it everything of the call happens.
    pub stream: Stream,
    pinned: Option<Pinned>,
    memory: Option<DeviceMemory>,
}

impl Lanes {
    /// That device, made where the process has not used it yet.
    pub fn new(index: u32) -> Result<Lanes> {
        let device = Device::of(index)?;
        device.enter()?; // one that is lost is not held any longer than by what is on it
        Ok(Lanes { device, count: Arc::new(AtomicU64::new(0)), resting: Mutex::default() })
    }

    /// Runs a call on a lane with that much memory on both sides. The stream has been waited for when this
    /// comes back, also after a failure.
    pub fn call<T>(
        &self,
        slow: &Slow<'_>,
        host: usize,
        device: usize,
        work: impl FnOnce(&Stream, &mut [u8], &DeviceMemory) -> Result<T>,
    ) -> Result<T> {
        let resting = || self.resting.lock().unwrap_or_else(|e| e.into_inner());
        let taken = resting().pop();
        let mut lane = match taken {
            Some(lane) => lane,
            None => Lane { stream: Stream::new(slow, &self.device)?, pinned: None, memory: None },
        };
        let result = lane.room(slow, self, host, device).and_then(|()| {
            let Lane { stream, pinned: Some(pinned), memory: Some(memory) } = &mut lane else {
                return Err(crate::error::fail!(Internal, "a lane without memory"));
            };
            work(stream, pinned.bytes(), memory)
        });
        // What a failed call has left under way uses the lane's memory.
        let waited = lane.stream.wait(slow);
        let result = result.and_then(|value| waited.map(|()| value));
        let mut resting = resting();
        if result.is_ok() && resting.try_reserve(1).is_ok() {
            resting.push(lane);
        }
        result
    }
}

impl Lane {
    /// At least that many bytes on both sides; what is too small is given back first.
    fn room(&mut self, slow: &Slow<'_>, lanes: &Lanes, host: usize, device: usize) -> Result<()> {
        if self.pinned.as_mut().is_none_or(|pinned| pinned.bytes().len() < host) {
            self.pinned = None;
            self.pinned = Some(Pinned::new(slow, &lanes.device, host)?);
        }
        if self.memory.as_ref().is_none_or(|memory| memory.size() < device) {
            self.memory = None;
            self.memory = Some(DeviceMemory::new(slow, &lanes.device, device, &lanes.count)?);
        }
        Ok(())
    }
}
