//! What everybody who is measured can do.

/// Which matrices of the ring each piece of work multiplies with.
pub type Windows = Vec<Vec<usize>>;

/// A library with a ring of matrices of one shape and format.
pub trait Contestant {
    /// "ggml repack".
    fn name(&self) -> &str;

    /// Makes ready to multiply m rows of x (f32, they touch) with the matrices of any window.
    fn prepare(&mut self, m: usize, x: &[f32], windows: &Windows);

    /// Multiplies x with each matrix of a window.
    fn run(&mut self, window: usize);

    /// y [m, out_features] of the last matrix.
    fn output(&mut self) -> Vec<f32>;

    /// What the first rows of its weights stand for; they repeat.
    fn reference(&self) -> &[f32];

    /// Root mean square of the errors over that of y, above which the contestant is set up wrongly. Int8
    /// activations cost about 0.005 with a scale for each row of x, half of it with groups.
    fn tolerance(&self) -> f64 {
        0.02
    }

    /// The kernel that it says it runs.
    fn kernel(&self) -> Option<String> {
        None
    }
}
