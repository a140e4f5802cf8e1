use super::*;

fn random(count: usize) -> Vec<f32> {
    let mut seed = 7u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next() * 3.0).collect()
}

/// Values of every size, blocks of zeros, and, under a scale of a power of two, halves with what lies beside them.
fn varied(count: usize) -> Vec<f32> {
    let mut values = random(count);
    for (b, values) in values.chunks_mut(BLOCK).enumerate() {
        let size = [1.0, 0.0, 1e-7, 1e-15, 1e-30, 1e15, 1e30][b / 5 % 7];
        values.iter_mut().for_each(|v| *v *= size);
        if b % 9 == 3 {
            values[0] = 127.0;
            for (k, v) in values.iter_mut().enumerate().skip(1) {
                let half = k as f32 * 4.0 - 63.5;
                *v = [half, half.next_up(), half.next_down(), -half][k % 4];
            }
        }
    }
    values
}

/// Codes, scales, values and statistics of one update on another.
fn all(
    format: Format,
    values: &[f32],
    isa: Isa,
    executor: &Executor,
) -> (Vec<u8>, Vec<u32>, Vec<u32>, Statistics) {
    let count = values.len();
    let state = State::new(format, [1, 1, 1, count], true, isa).unwrap();
    state.pack(values, Update::Replace, executor).unwrap();
    state.pack(values, Update::Add { factor: 0.75 }, executor).unwrap();
    let mut codes = vec![9; format.code_bytes(count)];
    let (mut scales, mut out) = (vec![9.0; count.div_ceil(BLOCK)], vec![9.0; count]);
    state.read(&mut codes, &mut scales).unwrap();
    state.unpack(&mut out, executor).unwrap();
    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect();
    (codes, bits(scales), bits(out), state.statistics(false))
}

#[test]
fn every_instruction_set_and_any_threads_give_the_same_bits() {
    let pool = Executor::with_threads(3).unwrap();
    for format in Format::ALL {
        for count in [1, 31, 45, 1000, 3 * PIECE + 77] {
            // Of the varied ones the largest alone are in the statistics.
            for values in [random(count), varied(count)] {
                let want = all(format, &values, Isa::Scalar, &Executor::Serial);
                for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
                    for executor in [&Executor::Serial, &pool] {
                        let found = all(format, &values, isa, executor);
                        assert!(found == want, "{format:?} {count} {}", isa.name());
                    }
                }
            }
        }
    }
}

#[test]
fn an_update_is_decoded_multiplied_added_and_packed() {
    for format in Format::ALL {
        let (isa, serial) = (Isa::best(), Executor::Serial);
        let values = random(100);
        let state = State::new(format, [2, 5, 2, 5], false, isa).unwrap();
        state.pack(&values, Update::Replace, &serial).unwrap();
        let mut old = vec![0.0; 100];
        state.unpack(&mut old, &serial).unwrap();
        state.pack(&values, Update::Add { factor: -0.5 }, &serial).unwrap();
        let sum: Vec<f32> = old.iter().zip(&values).map(|(o, v)| -0.5 * o + v).collect();
        let other = State::new(format, [1, 1, 100, 1], false, isa).unwrap();
        other.pack(&sum, Update::Replace, &serial).unwrap();
        let (mut a, mut b) = (vec![0.0; 100], vec![1.0; 100]);
        state.unpack(&mut a, &serial).unwrap();
        other.unpack(&mut b, &serial).unwrap();
        assert_eq!(a, b);
        assert_eq!(state.statistics(false), Statistics::default());
    }
}

#[test]
fn a_failure_changes_nothing() {
    let (isa, serial) = (Isa::best(), Executor::Serial);
    for format in Format::ALL {
        let state = State::new(format, [1, 1, 2, PIECE], true, isa).unwrap();
        let mut out = vec![1.0; 2 * PIECE];
        state.unpack(&mut out, &serial).unwrap();
        assert!(out.iter().all(|v| v.to_bits() == 0));
        let mut values = random(2 * PIECE);
        state.pack(&values, Update::Replace, &serial).unwrap();
        state.unpack(&mut out, &serial).unwrap();
        let before = state.statistics(false);
        for bad in [f32::NAN, f32::INFINITY] {
            values[2 * PIECE - 3] = bad;
            let error = state.pack(&values, Update::Replace, &serial).unwrap_err();
            assert!(error.text().contains(&format!("value {}", 2 * PIECE - 3)), "{error}");
            values[2 * PIECE - 3] = 0.0;
        }
        assert!(state.pack(&values, Update::Add { factor: f32::NAN }, &serial).is_err());
        assert!(state.pack(&values, Update::Add { factor: f32::MAX }, &serial).is_err());
        assert!(state.pack(&values[1..], Update::Replace, &serial).is_err());
        let mut again = vec![0.0; 2 * PIECE];
        state.unpack(&mut again, &serial).unwrap();
        assert!(again == out && state.statistics(true) == before);
        assert_eq!(state.statistics(false), Statistics::default());
        let (codes, scales) = (vec![0xff; format.code_bytes(2 * PIECE)], vec![1.0; 2 * PIECE / BLOCK]);
        assert_eq!(state.write(&codes, &scales).is_err(), format == Format::Ternary);
    }
    assert!(State::new(Format::Int8, [1, 0, 1, 1], false, isa).is_err());
    assert!(State::new(Format::Int8, [1 << 40, 1 << 40, 1, 1], false, isa).is_err());
}

/// Statistics are those of their definition in f64, whatever the size of the values and on every machine.
#[test]
fn statistics_are_of_what_was_packed() {
    for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
        for format in Format::ALL {
            for size in [0.0, 1e-30, 1e-15, 1e-7, 1.0, 1e15, 1e30f32] {
                let count = 33 * BLOCK + 5;
                let state = State::new(format, [1, 1, 1, count], true, isa).unwrap();
                let values: Vec<f32> = random(count).into_iter().map(|v| v * size).collect();
                let mut restored = vec![0.0; count];
                state.pack(&values, Update::Replace, &Executor::Serial).unwrap();
                state.unpack(&mut restored, &Executor::Serial).unwrap();
                let errors = values.iter().zip(&restored).map(|(a, b)| (a - b).abs());
                let rms =
                    |v: &[f32]| (v.iter().map(|v| *v as f64 * *v as f64).sum::<f64>() / count as f64).sqrt();
                let found = state.statistics(false);
                let near = |found: f64, want: f64| (found - want).abs() <= 2e-7 * want;
                let mean = errors.clone().map(f64::from).sum::<f64>() / count as f64;
                assert!(near(found.original_rms, rms(&values)), "{format:?} {size} {found:?}");
                assert!(near(found.restored_rms, rms(&restored)), "{format:?} {size} {found:?}");
                assert!(near(found.mean_error, mean), "{format:?} {size} {found:?}");
                assert_eq!(found.max_error, errors.fold(0.0, f32::max), "{format:?} {size}");
            }
        }
    }
}
