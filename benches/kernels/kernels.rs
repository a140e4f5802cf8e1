//! Every kernel that this CPU runs, by criterion: one group for each kernel and number of rows of x.
//!
//! `cd benches/kernels && cargo bench [-- FILTER]`; FILTER is a regular expression over names such as
//! `w4km_i8_avx2_1x64/q4_k m=1`. The weights, 512 x 4096, stay in the cache: this tells one version of
//! a kernel from another (criterion compares with its last run). How near a layer comes to the limits of
//! the machine, and to peers, is the business of `make bench`. BITLINEAR_ISA is not heeded: all instruction
//! sets take part, the scalar one too.

use std::hint::black_box;
use std::time::Duration;

use bitlinear::cpu::Isa;
use bitlinear::exec::Executor;
use bitlinear::layer::{Activation, Linear, Options};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::{Buffer, Heap};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::{layouts, synthetic};

const OUT: usize = 512;
const IN: usize = 4096;

fn kernels(criterion: &mut Criterion) {
    let heap = Heap::default();
    let isas = Isa::ALL.iter().copied().filter(|isa| isa.detected());
    for isa in isas {
        for (name, layout) in layouts() {
            for activation in [Activation::Auto, Activation::F32] {
                let matrix = synthetic(layout, OUT, IN, 1);
                let options = Options { activation, ..Options::default() };
                let linear = Linear::new(&matrix, &options, isa, &heap).expect("a layer");
                for m in [1, 2, 3, 4, 8, 64] {
                    let plan = linear.plan(m, &Executor::Serial);
                    // A layout without a kernel of this instruction set runs on another one's, which has its turn.
                    if plan.kernel.isa != isa {
                        continue;
                    }
                    let x: Vec<f32> = (0..m * IN).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
                    let mut y = vec![0f32; m * OUT];
                    let mut room = Buffer::zeroed(plan.workspace + 64, "bench").expect("memory");
                    let mut group = criterion.benchmark_group(plan.kernel.name());
                    group.throughput(Throughput::Elements((m * OUT * IN) as u64));
                    group.bench_function(BenchmarkId::from_parameter(format!("{name} m={m}")), |bencher| {
                        bencher.iter(|| {
                            let (x, y) = (MatrixRef::of(black_box(&x), IN), MatrixMut::of(&mut y, OUT));
                            linear
                                .forward(m, x, y, Some(room.bytes_mut()), &heap, &Executor::Serial)
                                .expect("forward");
                        });
                    });
                    group.finish();
                }
            }
        }
    }
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = kernels
}
criterion_main!(all);
