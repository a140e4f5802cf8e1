//! What the project wants to reach (issue 7): fractions of limits, and ratios to peers.

/// Fractions on a machine with AVX-512 VNNI.
pub struct Target {
    pub format: &'static str,
    /// m = 1, weights from DRAM: of read bandwidth, counted in bytes of the stored format.
    pub one: f64,
    /// Of the multiply-add peak at 8, 32 and at least 128 rows. 0: none.
    pub rows: [f64; 3],
    /// Times as fast as the best peer at m = 1 and at m >= 128.
    pub peers: [f64; 2],
}

const fn target(format: &'static str, one: f64, rows: [f64; 3], peers: [f64; 2]) -> Target {
    Target { format, one, rows, peers }
}

const TARGETS: [Target; 19] = [
    target("ternary", 0.88, [0.60, 0.75, 0.82], [2.0, 5.0]),
    target("tq2_0", 0.88, [0.50, 0.65, 0.72], [2.0, 5.0]),
    target("tq1_0", 0.75, [0.45, 0.65, 0.72], [2.0, 5.0]),
    target("q2_0", 0.88, [0.50, 0.65, 0.72], [2.0, 5.0]),
    target("pq2_0", 0.88, [0.50, 0.65, 0.72], [2.0, 5.0]),
    target("ptq1_0", 0.75, [0.45, 0.65, 0.72], [2.0, 5.0]),
    target("sign", 0.60, [0.45, 0.70, 0.75], [3.5, 6.0]),
    target("q1_0", 0.60, [0.45, 0.70, 0.75], [3.5, 6.0]),
    target("int4", 0.88, [0.40, 0.55, 0.65], [1.1, 1.5]),
    target("q4_0", 0.88, [0.40, 0.55, 0.65], [1.1, 1.5]),
    target("q4_1", 0.88, [0.35, 0.50, 0.60], [1.0, 1.0]),
    target("q2_k", 0.80, [0.30, 0.45, 0.55], [1.0, 1.0]),
    target("q3_k", 0.80, [0.30, 0.45, 0.55], [1.0, 1.0]),
    target("q4_k", 0.88, [0.40, 0.55, 0.65], [1.15, 1.5]),
    target("q5_k", 0.80, [0.30, 0.45, 0.55], [1.0, 1.0]),
    target("q6_k", 0.80, [0.30, 0.45, 0.55], [1.05, 2.5]),
    target("int8", 0.94, [0.45, 0.65, 0.85], [0.97, 0.95]),
    target("q8_0", 0.94, [0.45, 0.65, 0.65], [1.0, 1.0]),
    target("f16", 0.90, [0.0, 0.0, 0.75], [1.0, 1.0]),
];

/// Without VNNI: this part of the read bandwidth's fraction, nothing of the peak's, and never slower than
/// ggml.
pub const AVX2_PART: f64 = 0.6;

/// The target of a format.
pub fn of(format: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.format == format)
}
