//! Would five ternary codes a byte (1.6 bits a weight) be faster than four (2 bits) where memory binds? Probes
//! of the inner loop of one row of x, beside the limit; `docs/performance/ternary.md` says what came out.
//!
//! `cargo bench --bench ternary`: 64 rows of W a tile, one sequential stream a thread, weights from cache and
//! from DRAM, on 1, 2, ... threads. Ways take turns; the shortest round of each counts.
//!
//! ```text
//! 2 bits   bits 2 i .. of byte j of a lane: column 4 i + j      a quad: shift, mask
//! digits   byte = ceil(v 256 / 243) of v = five base-3 digits, the first on top; digit i of byte j: column
//!          4 i + j      a quad: its digit is 3 t / 256; the next t is 3 t mod 256
//! ```

#[cfg(target_arch = "x86_64")]
fn main() {
    probes::main();
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("the probes are written for x86-64");
}

#[cfg(target_arch = "x86_64")]
mod probes {
    use core::arch::x86_64::*;
    use std::time::Instant;

    use bitlinear::cpu;
    use bitlinear::exec::available;
    use bitlinear::memory::Buffer;

    /// How far ahead a line is asked for, as the kernels do.
    const AHEAD: usize = 4096;
    const COLUMNS: usize = 2560;
    /// Bytes of a unit of 64 rows: a line for each of four panels.
    const UNIT: usize = 256;
    /// Units that one panel takes before the next one does.
    const SPAN: usize = 16;

    type Sums = [i32; 64];
    /// A tile times a row of x: sums of code times x.
    type Run = unsafe fn(&[u8], &[i8], &mut Sums);

    /// The loops that all probes share: panel by panel of a span, in the order of addresses. `$unit` adds the
    /// products of one line with the quads of x from its column on.
    macro_rules! probe {
        ($name:ident, $features:literal, $columns:literal, $vectors:literal, $zero:expr, $store:expr, $unit:expr) => {
            #[target_feature(enable = $features)]
            fn $name(tile: &[u8], x: &[i8], out: &mut Sums) {
                let mut sums = [[$zero; $vectors]; 4];
                for (units, x) in tile.chunks(SPAN * UNIT).zip(x.chunks(SPAN * $columns)) {
                    for (p, sums) in sums.iter_mut().enumerate() {
                        let mut acc = *sums;
                        for (unit, x) in units.as_chunks::<UNIT>().0.iter().zip(x.as_chunks::<$columns>().0) {
                            let line = &unit.as_chunks::<64>().0[p];
                            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(AHEAD).cast());
                            $unit(line, x, &mut acc);
                        }
                        *sums = acc;
                    }
                }
                for (out, v) in out.chunks_exact_mut(16 / $vectors).zip(sums.as_flattened()) {
                    // SAFETY: `out` has as many i32 as the vector.
                    unsafe { $store(out.as_mut_ptr().cast(), *v) };
                }
            }
        };
    }

    /// Quad `i` of x.
    fn quad(x: &[i8], i: usize) -> i32 {
        let q = &x[4 * i..][..4];
        i32::from_le_bytes([q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8])
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn half(line: &[u8; 64], h: usize) -> __m256i {
        // SAFETY: 32 bytes of the line from 32 h on.
        unsafe { _mm256_loadu_si256(line[32 * h..][..32].as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_products(part: __m256i, codes: __m256i, x: i32) -> __m256i {
        _mm256_add_epi16(part, _mm256_maddubs_epi16(codes, _mm256_set1_epi32(x)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_part(acc: &mut __m256i, part: __m256i) {
        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(part, _mm256_set1_epi16(1)));
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn two_bits_unit(line: &[u8; 64], x: &[i8; 16], acc: &mut [__m256i; 2]) {
        let three = _mm256_set1_epi8(3);
        for (h, acc) in acc.iter_mut().enumerate() {
            let v = half(line, h);
            let mut part = add_products(_mm256_setzero_si256(), _mm256_and_si256(v, three), quad(x, 0));
            part = add_products(part, _mm256_and_si256(_mm256_srli_epi16::<2>(v), three), quad(x, 1));
            part = add_products(part, _mm256_and_si256(_mm256_srli_epi16::<4>(v), three), quad(x, 2));
            part = add_products(part, _mm256_and_si256(_mm256_srli_epi16::<6>(v), three), quad(x, 3));
            add_part(acc, part);
        }
    }
    probe!(two_bits_avx2, "avx2", 16, 2, _mm256_setzero_si256(), _mm256_storeu_si256, two_bits_unit);

    /// 3 t / 256 by averages: (t + t / 2) / 2 has the digit in its top two bits. They round up: of t - 1.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn digit_by_average(t: __m256i) -> __m256i {
        let t = _mm256_subs_epu8(t, _mm256_set1_epi8(1));
        let v = _mm256_avg_epu8(t, _mm256_avg_epu8(t, _mm256_setzero_si256()));
        _mm256_and_si256(_mm256_srli_epi16::<6>(v), _mm256_set1_epi8(3))
    }

    /// 3 t / 256 by comparing t - 128 (which the line holds then) with the two places where it changes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn digit_by_comparing(t: __m256i) -> __m256i {
        let above = |t, least: i8| _mm256_cmpgt_epi8(t, _mm256_set1_epi8(least));
        _mm256_sub_epi8(_mm256_sub_epi8(_mm256_setzero_si256(), above(t, -43)), above(t, 42))
    }

    macro_rules! digits {
        ($unit:ident, $probe:ident, $digit:ident) => {
            #[inline]
            #[target_feature(enable = "avx2")]
            fn $unit(line: &[u8; 64], x: &[i8; 20], acc: &mut [__m256i; 2]) {
                for (h, acc) in acc.iter_mut().enumerate() {
                    let (mut t, mut part) = (half(line, h), _mm256_setzero_si256());
                    for i in 0..5 {
                        part = add_products(part, $digit(t), quad(x, i));
                        t = _mm256_add_epi8(t, _mm256_add_epi8(t, t));
                    }
                    add_part(acc, part);
                }
            }
            probe!($probe, "avx2", 20, 2, _mm256_setzero_si256(), _mm256_storeu_si256, $unit);
        };
    }
    digits!(average_unit, digits_by_average, digit_by_average);
    digits!(comparing_unit, digits_by_comparing, digit_by_comparing);

    /// The limit: every line is read and added.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn read_unit(line: &[u8; 64], _: &[i8; 16], acc: &mut [__m256i; 2]) {
        for (h, acc) in acc.iter_mut().enumerate() {
            *acc = _mm256_add_epi32(*acc, half(line, h));
        }
    }
    probe!(read_avx2, "avx2", 16, 2, _mm256_setzero_si256(), _mm256_storeu_si256, read_unit);

    /// What a probe of codes must give.
    fn expected(codes: impl Fn(usize, usize) -> i32, x: &[i8]) -> Sums {
        std::array::from_fn(|row| x.iter().enumerate().map(|(k, q)| codes(row, k) * *q as i32).sum())
    }

    /// A ternary code of a row and a column.
    fn code(row: usize, column: usize) -> usize {
        (row * 7919 + column * 104_729 + row * column) % 3
    }

    /// A tile of those codes, `per_byte` in each byte; digits less `offset`.
    fn tile(per_byte: usize, offset: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for first in (0..COLUMNS).step_by(4 * per_byte) {
            for row in 0..64 {
                for j in 0..4 {
                    let digits = (0..per_byte).map(|i| code(row, first + 4 * i + j));
                    bytes.push(match per_byte {
                        4 => digits.enumerate().fold(0, |byte, (i, c)| byte | c << (2 * i)) as u8,
                        _ => ((digits.fold(0, |v, c| 3 * v + c) * 256).div_ceil(243) as u8)
                            .wrapping_sub(offset),
                    });
                }
            }
        }
        bytes
    }

    struct Way {
        name: &'static str,
        run: Run,
        tile: Vec<u8>,
    }

    pub(super) fn main() {
        if !std::is_x86_feature_detected!("avx2") {
            println!("the probes need AVX2");
            return;
        }
        let x: Vec<i8> = (0..COLUMNS).map(|k| (k * 37 % 255) as u8 as i8).map(|q| q.max(-127)).collect();
        let ways = [
            Way { name: "reading", run: read_avx2, tile: tile(4, 0) },
            Way { name: "2 bits", run: two_bits_avx2, tile: tile(4, 0) },
            Way { name: "digits, average", run: digits_by_average, tile: tile(5, 0) },
            Way { name: "digits, compare", run: digits_by_comparing, tile: tile(5, 128) },
        ];
        let want = expected(|row, k| code(row, k) as i32, &x);
        for way in &ways[1..] {
            let mut sums = [0; 64];
            // SAFETY: AVX2 was detected above.
            unsafe { (way.run)(&way.tile, &x, &mut sums) };
            assert!(sums == want, "{}", way.name);
        }
        println!("machine: {}; GMAC/s, and GB/s of weights", cpu::name());
        for (place, total) in [("cache", 1usize << 19), ("DRAM", 128 << 20)] {
            // Every thread has a stream of its own.
            let rings: Vec<Buffer> = ways
                .iter()
                .map(|way| {
                    let mut ring =
                        Buffer::zeroed(total / way.tile.len() * way.tile.len(), "bench").expect("memory");
                    ring.bytes_mut()
                        .chunks_exact_mut(way.tile.len())
                        .for_each(|to| to.copy_from_slice(&way.tile));
                    ring
                })
                .collect();
            for threads in 1..=available().min(4) {
                let mut best = [f64::MAX; 4];
                for _ in 0..if total > 1 << 20 { 12 } else { 200 } {
                    for ((way, ring), best) in ways.iter().zip(&rings).zip(&mut best) {
                        *best = best.min(time(way, ring.bytes(), &x, threads));
                    }
                }
                print!("{place:5} {threads} threads:");
                for (way, seconds) in ways.iter().zip(best) {
                    let (macs, bytes) = (64.0 * COLUMNS as f64 / seconds, way.tile.len() as f64 / seconds);
                    print!("  {} {:.1} ({:.1})", way.name, macs / 1e9, bytes / 1e9);
                }
                println!();
            }
        }
    }

    /// Seconds of a tile, where each thread goes through its part of the ring.
    fn time(way: &Way, ring: &[u8], x: &[i8], threads: usize) -> f64 {
        let tiles: Vec<&[u8]> = ring.chunks_exact(way.tile.len()).collect();
        let per_thread = tiles.len() / threads;
        // A ring that fits the cache is gone through often, so that starting threads does not count.
        let rounds = if ring.len() > 1 << 20 { 1 } else { 200 };
        let work = |tiles: &[&[u8]]| {
            let mut sums = [0; 64];
            for _ in 0..rounds {
                for tile in tiles {
                    // SAFETY: AVX2 was detected in `main`.
                    unsafe { (way.run)(tile, x, &mut sums) };
                    std::hint::black_box(&mut sums);
                }
            }
        };
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for part in tiles.chunks_exact(per_thread).take(threads).skip(1) {
                scope.spawn(move || work(part));
            }
            work(&tiles[..per_thread]);
        });
        begin.elapsed().as_secs_f64() / (rounds * per_thread * threads) as f64
    }
}
