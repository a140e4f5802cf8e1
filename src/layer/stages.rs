//! What the stages of a call took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::limits::LAYERS_MAX;

/// A stage around the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The norm of rows of x.
    Norm,
    /// Their rotation.
    Rotation,
    /// Their way into the form that kernels take: codes and scales, or floats in packed order.
    Quantize,
    /// From products to y: scale, bias, epilogue, conversion and writing.
    Epilogue,
}

impl Stage {
    /// All of them, in the order of their numbers.
    pub const ALL: [Stage; 4] = [Stage::Norm, Stage::Rotation, Stage::Quantize, Stage::Epilogue];
}

/// Time and numbers of the stages of one call, summed over the threads that worked on it.
#[derive(Default)]
pub struct Stages {
    stages: [Count; Stage::ALL.len()],
    /// Of the products, for each layer of the call.
    products: [AtomicU64; LAYERS_MAX],
}

#[derive(Default)]
struct Count {
    nanoseconds: AtomicU64,
    numbers: AtomicU64,
}

impl Stages {
    /// Adds to a stage.
    pub fn add(&self, stage: Stage, time: Duration, numbers: usize) {
        let count = &self.stages[stage as usize];
        count.nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        count.numbers.fetch_add(numbers as u64, Ordering::Relaxed);
    }

    /// Adds to the products of the call's layer of that number.
    pub fn add_product(&self, number: usize, time: Duration) {
        if let Some(product) = self.products.get(number) {
            product.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// Nanoseconds of a stage, and the numbers that it worked on: both 0 where it did not run.
    pub fn of(&self, stage: Stage) -> (u64, u64) {
        let count = &self.stages[stage as usize];
        (count.nanoseconds.load(Ordering::Relaxed), count.numbers.load(Ordering::Relaxed))
    }

    /// Nanoseconds of the products of the call's layer of that number.
    pub fn of_product(&self, number: usize) -> u64 {
        self.products.get(number).map_or(0, |product| product.load(Ordering::Relaxed))
    }
}
