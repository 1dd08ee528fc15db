//! What is measured.

use std::hint::black_box;
use std::sync::Arc;

use weir_core::flow::key::{FlowHasher, FlowKey};
use weir_core::flow::record::Flow;
use weir_core::flow::table::{Capacity, FlowTable};
use weir_core::frame::{Frame as _, HeapFrame};
use weir_core::ids::{InterceptId, Nanos, PortId};
use weir_core::inspect::{Inspector, Outcome};
use weir_core::parse::{Meta, plain_into};
use weir_core::policy::{Action, Facts, InterceptSpec, NameSet, Policy, PolicyBuilder, Protocol, RuleSpec};
use weir_core::tcp::seq::Seq;
use weir_core::tcp::translate::{TimestampMode, Translation};

use crate::bed::{
    Bed, CAPACITY, Ends, Kind, LAN, REQUEST, SMALL, Spread, meta_of, numbers, segment, traffic,
};
use crate::{BATCH, Case};

/// A million.
const MANY: u32 = 1_000_000;
/// NOP, NOP, timestamps 100 and 200; NOP, NOP, one SACK block.
const OPTIONS: [u8; 24] = [1, 1, 8, 10, 0, 0, 0, 100, 0, 0, 0, 200, 1, 1, 5, 10, 0, 0, 20, 0, 0, 0, 24, 0];

/// All of them.
pub fn all() -> Vec<Case> {
    let families = [("ipv4", false), ("ipv6", true)];
    let mut cases: Vec<Case> = families.into_iter().map(|(name, v6)| parsing(name, v6)).collect();
    for flows in [1000, MANY] {
        cases.extend([lookup(flows, true), lookup(flows, false)]);
    }
    for (name, v6) in families {
        cases.extend(["identity", "delta", "everything"].map(|kind| splicing(name, v6, kind)));
    }
    cases.extend([inspecting("http", REQUEST.to_vec()), inspecting("tls", client_hello("www.example"))]);
    cases.extend([1000, MANY].map(deciding));
    cases.extend([1000, 100_000, MANY].map(touching));
    cases.extend([1000, MANY].map(copying));
    for (name, v6) in families {
        for flows in [1, 1000, 100_000, MANY] {
            cases.push(pipeline(name, v6, flows, Spread::Uniform));
            if flows >= 1000 {
                cases.push(pipeline(name, v6, flows, Spread::Zipf));
            }
        }
    }
    cases
}

fn parsing(family: &str, v6: bool) -> Case {
    Case::new(format!("parse/{family}"), move || {
        let Ends { client, server } = Ends::of(1, v6);
        let bytes = segment(client, server, Kind::Ack(2000, 5001), &[], &[7; 6]);
        let mut meta = Meta::NONE;
        move || {
            for _ in 0..BATCH {
                assert!(plain_into(black_box(&bytes), black_box(&mut meta)));
            }
        }
    })
}

/// A connection that is there, or is not.
fn lookup(flows: u32, is_hit: bool) -> Case {
    let what = if is_hit { "hit" } else { "miss" };
    let case = Case::new(format!("flow/{what}/{flows}"), move || {
        let capacity = Capacity { fast: flows as usize, kernel: 16 };
        let mut table = FlowTable::new(capacity, FlowHasher::new(1), Nanos(1));
        for n in 0..flows {
            table.insert(Flow::new(&Ends::of(n, false).tuple(), LAN, InterceptId(0), 1, Nanos(1)));
        }
        let key = |n| {
            let mut tuple = Ends::of(n, false).tuple();
            tuple.dst.port += u16::from(!is_hit);
            FlowKey::of(&tuple)
        };
        let keys: Vec<FlowKey> = numbers(flows, Spread::Uniform).into_iter().map(key).collect();
        let mut at = 0;
        move || {
            for _ in 0..BATCH {
                at = if at + 1 < keys.len() { at + 1 } else { 0 };
                assert_eq!(black_box(table.find(&keys[at])).is_some(), is_hit);
            }
        }
    });
    if flows == MANY { case.uncounted() } else { case }
}

fn translation(v6: bool, kind: &str) -> Translation {
    let client = Ends::of(1, v6).tuple();
    let server = Ends::of(2, v6).tuple();
    let identity = Translation {
        client,
        server: client,
        delta: 0,
        start: Seq(1001),
        prefix: 0,
        base: Seq(5001),
        timestamps: TimestampMode::None,
        sack: true,
        server_scale: 7,
        shift_to_client: 0,
        shift_to_server: 0,
        ecn: true,
        acked: true,
    };
    match kind {
        "identity" => identity,
        "delta" => Translation { delta: 0x1234_5678, ..identity },
        _ => Translation {
            server,
            delta: 0x1234_5678,
            timestamps: TimestampMode::Both { offset: 70_000, first: 1 },
            shift_to_server: -2,
            ..identity
        },
    }
}

/// Segments of the client, for its server.
fn splicing(family: &str, v6: bool, kind: &'static str) -> Case {
    Case::new(format!("splice/{kind}/{family}"), move || {
        let Ends { client, server } = Ends::of(1, v6);
        let options: &[u8] = if kind == "everything" { &OPTIONS } else { &[] };
        let bytes = segment(client, server, Kind::Ack(2000, 6001), options, &[7; 6]);
        let meta: Meta = meta_of(&bytes);
        let mut frames: Vec<HeapFrame> =
            (0..BATCH).map(|_| HeapFrame::from_packet(&bytes, CAPACITY)).collect();
        let mut translation = translation(v6, kind);
        // Only what is read and written by position matters: a frame may be rewritten again and again.
        move || {
            for frame in &mut frames {
                let _ = black_box(translation.to_server(frame, &meta, Nanos(3)));
            }
        }
    })
}

/// A ClientHello with one cipher suite and this name (RFC 8446 4.1.2, RFC 6066 3).
fn client_hello(name: &str) -> Vec<u8> {
    fn with_length(octets: usize, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32).to_be_bytes();
        [&length[4 - octets..], body].concat()
    }
    let server_name = with_length(2, &[&[0][..], &with_length(2, name.as_bytes())].concat());
    let alpn = with_length(2, &[with_length(1, b"h2"), with_length(1, b"http/1.1")].concat());
    let extension = |kind: u8, body: &[u8]| [&[0, kind][..], &with_length(2, body)].concat();
    let extensions = [extension(0, &server_name), extension(16, &alpn), extension(21, &[0; 300])].concat();
    let body = [
        &[3, 3][..],
        &[9; 32],
        &with_length(1, &[8; 32]),
        &with_length(2, &[0x13, 1]),
        &with_length(1, &[0]),
        &with_length(2, &extensions),
    ]
    .concat();
    let handshake = [&[1][..], &with_length(3, &body)].concat();
    [&[22, 3, 1][..], &with_length(2, &handshake)].concat()
}

fn inspecting(what: &str, bytes: Vec<u8>) -> Case {
    Case::new(format!("inspect/{what}"), move || {
        let bytes = bytes.clone();
        assert!(
            matches!(Inspector::default().inspect(&bytes, 16_384), Outcome::Done(found) if found.host.is_some())
        );
        move || {
            for _ in 0..BATCH {
                black_box(Inspector::default().inspect(black_box(&bytes), 16_384));
            }
        }
    })
}

/// A verdict by a list of so many names, none of which is asked for every second time.
fn deciding(names: u32) -> Case {
    let case = Case::new(format!("policy/names/{names}"), move || {
        let all: Vec<String> = (0..names).map(|n| format!("host{n}.example")).collect();
        let rule = RuleSpec {
            host: Some(Arc::new(NameSet::parse(all.iter().map(String::as_str)).expect("names"))),
            ..RuleSpec::new(Action::Reset)
        };
        let web = InterceptSpec::new("web").from_port(LAN).to_any().tcp([80]).rule(rule);
        let policy: Policy = PolicyBuilder::new(1).intercept(web).build().expect("a valid policy");
        let asked: Vec<String> =
            numbers(2 * names, Spread::Uniform).into_iter().map(|n| format!("host{n}.example")).collect();
        let Ends { client, server } = Ends::of(1, false);
        let mut at = 0;
        move || {
            for _ in 0..BATCH {
                at = if at + 1 < asked.len() { at + 1 } else { 0 };
                let facts = Facts {
                    client: client.0,
                    server: server.0,
                    server_port: 80,
                    protocol: Some(Protocol::Http),
                    host: Some(&asked[at]),
                    ech: false,
                    alpn: &[],
                    hello_retry: false,
                };
                black_box(policy.get(InterceptId(0)).map(|web| web.decide(&facts)));
            }
        }
    });
    if names == MANY { case.uncounted() } else { case }
}

/// What a packet's cache lines cost by themselves: one of the index's tags and one of its slots are read, then two of the connection are
/// read and written, for a batch at a time; nothing is computed. No pipeline with these tables can be faster.
fn touching(flows: u32) -> Case {
    Case::new(format!("memory/{flows}"), move || {
        let buckets = (2 * flows as usize).next_power_of_two();
        let (tags, slots) = (vec![1_u64; buckets / 8], vec![1_u32; buckets]);
        let mut records = vec![[1_u64; size_of::<Flow>() / 8]; flows as usize];
        let order = numbers(flows, Spread::Uniform);
        let mut at = 0;
        move || {
            let batch = &order[at..at + BATCH];
            at = if at + BATCH < order.len() { at + BATCH } else { 0 };
            let bucket = |n: &u32| n.wrapping_mul(2_654_435_761) as usize % buckets;
            let index: u64 = batch.iter().map(bucket).map(|n| tags[n / 8] + u64::from(slots[n])).sum();
            let lines: u64 = batch.iter().map(|n| &records[*n as usize]).map(|of| of[0] + of[8]).sum();
            for n in batch {
                let record = &mut records[*n as usize];
                (record[0], record[8]) = (index, lines);
            }
        }
    })
    .uncounted()
}

/// All stages, for small segments of allowed connections, both directions in turn. The copy into the frame, which a NIC does,
/// is in it.
fn pipeline(family: &str, v6: bool, flows: u32, spread: Spread) -> Case {
    let kind = format!("{spread:?}").to_lowercase();
    let case = Case::new(format!("pipeline/{family}/{kind}/{flows}"), move || passing(flows, v6, spread));
    if flows > 1000 { case.uncounted() } else { case }
}

/// Batches of such segments; each call does one.
pub fn passing(flows: u32, v6: bool, spread: Spread) -> impl FnMut() + 'static {
    let mut bed = Bed::new(flows, v6);
    let mut source = Source::new(flows, v6, spread);
    move || {
        source.copy(|port, frame| bed.receive(port, frame));
        bed.handle_arrived(Nanos(3));
        std::mem::swap(&mut source.frames, &mut bed.out.tx);
        assert_eq!(source.frames.len(), BATCH, "a packet was not sent on");
    }
}

/// What of that is the copy: the same segments into the same frames, and nothing done to them.
fn copying(flows: u32) -> Case {
    let case = Case::new(format!("copy/{flows}"), move || {
        let (mut source, mut sent) = (Source::new(flows, false, Spread::Uniform), Vec::with_capacity(BATCH));
        move || {
            source.copy(|port, frame| sent.push((port, frame)));
            std::mem::swap(&mut source.frames, &mut sent);
        }
    });
    if flows > 1000 { case.uncounted() } else { case }
}

/// In the place of a NIC.
struct Source {
    packets: Vec<(PortId, [u8; SMALL])>,
    at: usize,
    /// Where the next ones go: all of a batch.
    frames: Vec<(PortId, HeapFrame)>,
}

impl Source {
    fn new(flows: u32, v6: bool, spread: Spread) -> Self {
        let frames = (0..BATCH).map(|_| (LAN, HeapFrame::new(CAPACITY))).collect();
        Self { packets: traffic(flows, v6, spread), at: 0, frames }
    }

    /// Copies a batch, and gives it away.
    #[inline(always)]
    fn copy(&mut self, mut give: impl FnMut(PortId, HeapFrame)) {
        let batch = &self.packets[self.at..self.at + BATCH];
        self.at = if self.at + BATCH < self.packets.len() { self.at + BATCH } else { 0 };
        for ((_, mut frame), (port, bytes)) in self.frames.drain(..).zip(batch) {
            frame.set_len(bytes.len());
            if let Some(head) = frame.data_mut().first_chunk_mut() {
                *head = *bytes;
            }
            give(*port, frame);
        }
    }
}
