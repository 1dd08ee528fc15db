//! The cases of weir-micro under criterion, and the handoff between workers, which needs more than weir-core.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_core::ids::PortId;
use weir_dataplane::handoff::{Crossing, Handoff};
use weir_micro::{BATCH, cases};
use weir_sys::waiter::Waiter;

fn micro(c: &mut Criterion) {
    let mut group = c.benchmark_group("micro");
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20);
    for case in cases::all() {
        // Prepared once, when criterion wants it.
        let mut work = None;
        group.bench_function(&case.name, |b| b.iter(work.get_or_insert_with(|| case.prepare())));
    }
    group.finish();
}

/// A frame's descriptor to another worker and out of its mailbox, on one core.
fn handoff(c: &mut Criterion) {
    let wakers = (0..2).map(|_| Waiter::new().expect("an eventfd").waker()).collect();
    let handoff = Handoff::new(wakers, 1024, 1024);
    let mut group = c.benchmark_group("micro");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("handoff", |b| {
        b.iter(|| {
            for frame in 0..BATCH {
                drop(handoff.send(1, Crossing::Send(PortId(0), frame)));
            }
            for _ in 0..BATCH {
                black_box(handoff.receive(1));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, micro, handoff);
criterion_main!(benches);
