//! SYN cookies of the steering program against those of weir-core: the same SYN gives the same SYN-ACK, octet by octet, and
//! weir-core takes the cookie back. What is not a plain SYN goes to the worker as it came.

use std::net::IpAddr;

use weir_core::flow::key::Tuple;
use weir_core::frame::{Frame as _, HeapFrame};
use weir_core::ids::Nanos;
use weir_core::parse::{Parsed, parse};
use weir_core::tcp::cookie::{Carried, Cookies, period};
use weir_core::tcp::options::{SynOptions, Timestamps};
use weir_core::tcp::seq::Seq;
use weir_core::wire::build::{SegmentOptions, syn_ack};
use weir_sys::netns::Namespace;
use weir_sys::steering::{
    CookieKey, CookiePromise, CookieState, ExpressBatch, ExpressFlow, InterceptTable, Outcome, Sizes, Splice,
    Steering, Trial,
};
use weir_sys::{clock, ethtool};
use weir_tests::bench::{client_of, server_of};
use weir_tests::packet::{ACK, BOTH, ECE, Family, SYN, Seg};
use weir_tests::random::Random;

const TX: u32 = 3;
const REDIRECT: u32 = 4;
const PROMISE: CookiePromise = CookiePromise { mss_v4: 1460, mss_v6: 1440, window: 16_384 };
const SECRET: [u8; 32] = *b"thirty-two octets of no secrecy.";
const SECOND: u64 = 1_000_000_000;
/// The address that test frames are sent to.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

struct Bench {
    steering: Steering,
    cookies: Cookies,
    device: u32,
    _socket: std::os::fd::OwnedFd,
}

impl Bench {
    fn new(state: CookieState) -> Self {
        let done = std::process::Command::new("ip")
            .args(["link", "add", "lan", "type", "veth", "peer", "name", "peer"])
            .status();
        assert!(done.expect("install iproute2").success());
        ethtool::set_up("lan", true).unwrap();
        let device = ethtool::index_of("lan").unwrap();
        let mut steering = Steering::load(&Sizes { express_flows: 4, ..Sizes::default() }).unwrap();
        steering.set_port(device, 0).unwrap();
        let socket = rustix::net::socket(rustix::net::AddressFamily::XDP, rustix::net::SocketType::RAW, None);
        let socket = socket.unwrap();
        steering.set_socket(0, 0, &socket).unwrap();
        let mut table = InterceptTable::default();
        let all = || ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        // 443 answers with cookies always, 80 under pressure, 25 not at all; 8080 is the relay's.
        for (bit, port) in [443, 80, 25, 8080].into_iter().enumerate() {
            table.add(bit as u32, all(), [(port, port)], [0], port == 8080);
        }
        (table.cookies_always, table.cookies_auto) = (1, 2);
        steering.set_intercepts(&table).unwrap();
        steering.set_limits(SECOND, false).unwrap();
        steering.heartbeat(clock::monotonic_ns() + 3600 * SECOND).unwrap();
        let bench = Self { steering, cookies: Cookies::new(SECRET), device, _socket: socket };
        bench.give_keys();
        bench.steering.cookies().set_state(state).unwrap();
        bench
    }

    fn give_keys(&self) {
        let now = period(Nanos(clock::monotonic_ns()));
        for period in [now, now + 1] {
            let key = CookieKey { period, key: self.cookies.key(period), clock: self.cookies.clock_key() };
            self.steering.cookies().set_key(&key, &PROMISE).unwrap();
        }
    }

    fn run(&mut self, frame: &[u8]) -> Trial {
        self.steering.run_on(self.device, frame).unwrap()
    }

    /// The frame goes to the worker, as it came.
    fn goes_to_worker(&mut self, what: &str, frame: &[u8]) {
        let trial = self.run(frame);
        assert_eq!((trial.action, trial.frame.as_slice()), (REDIRECT, frame), "{what}");
    }

    /// The SYN is answered, as weir-core would.
    fn is_answered(&mut self, what: &str, seg: &Seg) {
        let frame = seg.frame();
        let from = clock::monotonic_ns();
        let trial = self.run(&frame);
        let to = clock::monotonic_ns();
        assert_eq!(trial.action, TX, "{what}");
        let Ok(Parsed::Tcp(syn)) = parse(&frame) else { panic!("{what}: not TCP") };
        let Ok(Parsed::Tcp(meta)) = parse(&trial.frame) else { panic!("{what}: no answer") };
        assert_eq!(meta.segment_sum(&trial.frame), 0xffff, "{what}: checksum");
        let offered = SynOptions::read(syn.options_of(&frame));
        let mss = offered.mss.unwrap_or(if syn.v6 { 1220 } else { 536 });
        let carried = Carried { mss, window_scale: offered.window_scale, sack: offered.sack };
        let back = self.cookies.check(&syn.tuple, syn.seq, meta.seq, Nanos(to));
        let back = back.unwrap_or_else(|| panic!("{what}: no cookie of ours"));
        assert!(back.mss <= mss.max(88), "{what}: {back:?}");
        assert_eq!((back.window_scale, back.sack), (carried.window_scale, carried.sack), "{what}");
        let answer = SynOptions::read(meta.options_of(&trial.frame));
        let val = answer.timestamps.map(|t| t.val);
        if let Some(val) = val {
            let first = self.cookies.clock(&syn.tuple, Nanos(from));
            let span = self.cookies.clock(&syn.tuple, Nanos(to)).wrapping_sub(first);
            assert!(val.wrapping_sub(first) <= span, "{what}: TSval {val}, {first} and {span} more");
        }
        let options = SegmentOptions {
            mss: Some(if syn.v6 { PROMISE.mss_v6 } else { PROMISE.mss_v4 }),
            window_scale: offered.window_scale.map(|_| 7),
            sack: offered.sack,
            timestamps: offered.timestamps.map(|t| Timestamps { val: val.unwrap_or(0), ecr: t.val }),
        };
        let mut expected = HeapFrame::from_packet(&frame, 256);
        let made = self.cookies.make(&syn.tuple, syn.seq, &carried, Nanos(to));
        let made = if made == meta.seq {
            made
        } else {
            self.cookies.make(&syn.tuple, syn.seq, &carried, Nanos(from))
        };
        syn_ack(&mut expected, &syn, made, PROMISE.window, &options).unwrap();
        assert_eq!(trial.frame, expected.data(), "{what}: {seg:?}");
    }
}

fn with_bench(state: CookieState, work: impl FnOnce(&mut Bench) + Send) {
    Namespace::new().unwrap().run(|| work(&mut Bench::new(state))).unwrap();
}

fn syn(family: Family, port: u16) -> Seg {
    Seg::new((client_of(family), 40_000), (server_of(family), port), SYN, 0x1234_5678, 0)
}

/// Options as clients have them, and as they could.
fn random_options(random: &mut Random) -> Vec<u8> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    let mss = [0, 1, 88, 89, 535, 536, 1219, 1220, 1300, 1380, 1440, 1459, 1460, 8939, 8940, 65_535];
    let mss: u16 = mss[random.below(mss.len() as u64) as usize];
    if !random.one_in(6) {
        all.push([vec![2, 4], mss.to_be_bytes().to_vec()].concat());
    }
    if !random.one_in(3) {
        all.push(vec![3, 3, random.below(20) as u8]);
    }
    if !random.one_in(3) {
        all.push(vec![4, 2]);
    }
    if random.one_in(2) {
        let val = random.draw() as u32;
        all.push([vec![8, 10], val.to_be_bytes().to_vec(), vec![0; 4]].concat());
    }
    // Multipath TCP's and Fast Open's are not taken.
    if random.one_in(8) {
        all.push(vec![34, 2]);
    }
    if random.one_in(8) {
        all.push(vec![30, 4, 0, 1]);
    }
    for place in (1..all.len()).rev() {
        all.swap(place, random.below(place as u64 + 1) as usize);
    }
    let mut options = Vec::new();
    for option in all {
        options.extend(std::iter::repeat_n(1, random.below(3) as usize));
        options.extend(option);
    }
    options.truncate(40);
    let end = if random.one_in(2) { 0 } else { 1 };
    while options.len() % 4 != 0 {
        options.push(end);
    }
    options
}

/// Whether the walk through the options is whole: what was cut is for the worker.
fn is_whole(options: &[u8]) -> bool {
    let mut at = 0;
    while let Some(kind) = options.get(at) {
        match kind {
            0 => return true,
            1 => at += 1,
            _ => match options.get(at + 1) {
                Some(len) if *len >= 2 && at + usize::from(*len) <= options.len() => at += usize::from(*len),
                _ => return false,
            },
        }
    }
    true
}

#[test]
fn answers_are_those_of_the_core() {
    with_bench(CookieState::All, |bench| {
        let mut random = Random::new(1);
        for seed in 0..4000_u32 {
            bench.give_keys();
            let family = BOTH[random.below(2) as usize];
            let mut seg = syn(family, if random.one_in(2) { 443 } else { 80 });
            seg.src.1 = random.draw() as u16;
            seg.seq = random.draw() as u32;
            seg.src.0 = match seg.src.0 {
                IpAddr::V4(_) => IpAddr::from([10, 1, random.draw() as u8, random.draw() as u8]),
                IpAddr::V6(_) => IpAddr::from((0xfd00_u128 << 112 | u128::from(random.draw())).to_be_bytes()),
            };
            seg.options = random_options(&mut random);
            if random.one_in(8) {
                seg.payload = vec![7; random.below(600) as usize];
            }
            if random.one_in(8) {
                seg.flags |= ECE;
            }
            let what = format!("seed {seed}: {:?}", seg.options);
            if is_whole(&seg.options) {
                bench.is_answered(&what, &seg);
            } else {
                bench.goes_to_worker(&what, &seg.frame());
            }
        }
    });
}

#[test]
fn no_plain_syn_is_for_the_worker() {
    with_bench(CookieState::All, |bench| {
        for family in BOTH {
            let plain = || syn(family, 443);
            bench.is_answered("plain", &plain());
            bench.goes_to_worker("no SYN", &plain().flags(ACK).frame());
            bench.goes_to_worker("SYN-ACK", &plain().flags(SYN | ACK).frame());
            bench.goes_to_worker("wrong checksum", &plain().damaged().frame());
            bench.goes_to_worker(
                "TCP-MD5",
                &plain().options(&[&[19, 18][..], &[0; 16], &[1, 1]].concat()).frame(),
            );
            bench.goes_to_worker("TCP-AO", &plain().options(&[&[29, 16][..], &[0; 14]].concat()).frame());
            bench.goes_to_worker("option without end", &plain().options(&[2, 4, 5, 180, 3, 9, 1, 1]).frame());
            bench.goes_to_worker("option of no length", &plain().options(&[2, 0, 5, 180]).frame());
            bench.goes_to_worker("MSS of another length", &plain().options(&[2, 3, 5, 1]).frame());
            bench.goes_to_worker("no cookies", &syn(family, 25).frame());
            let mut more = plain();
            match family {
                Family::V4 => more.ip_options = vec![1; 4],
                Family::V6 => more.extensions = vec![(60, vec![0; 8])],
            }
            bench.goes_to_worker("IP options", &more.frame());
            let frame = plain().frame();
            let tagged = [&frame[..12], &[0x81, 0, 0xe0, 0], &frame[12..]].concat();
            bench.goes_to_worker("priority tag", &tagged);
        }
    });
}

#[test]
fn syn_from_where_none_can_come_from_is_for_the_worker() {
    with_bench(CookieState::All, |bench| {
        let four = ["0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.2.3", "255.255.255.255"];
        let six = ["::", "::1", "ff02::1", "fe80::1", "febf::1", "::ffff:10.1.0.2"];
        for from in four.into_iter().chain(six) {
            let from: IpAddr = from.parse().unwrap();
            let mut seg = syn(if from.is_ipv4() { Family::V4 } else { Family::V6 }, 443);
            seg.src.0 = from;
            let frame = seg.frame();
            assert!(parse(&frame).is_err(), "{from}: the worker drops it");
            bench.goes_to_worker(&from.to_string(), &frame);
        }
        for from in
            ["10.1.0.2", "126.0.0.1", "223.255.255.255", "fec0::1", "::2", "fd00::1", "100::ffff:a01:2"]
        {
            let from: IpAddr = from.parse().unwrap();
            let mut seg = syn(if from.is_ipv4() { Family::V4 } else { Family::V6 }, 443);
            seg.src.0 = from;
            bench.is_answered(&from.to_string(), &seg);
        }
    });
}

#[test]
fn state_says_whose_syns_are_answered() {
    for (state, always, auto) in
        [(CookieState::Off, false, false), (CookieState::Always, true, false), (CookieState::All, true, true)]
    {
        with_bench(state, |bench| {
            for family in BOTH {
                for (port, answers) in [(443, always), (80, auto), (25, false)] {
                    let before = bench.steering.cookies().syns().unwrap();
                    let seg = syn(family, port);
                    if answers {
                        bench.is_answered("in state", &seg);
                    } else {
                        bench.goes_to_worker("not in state", &seg.frame());
                    }
                    // Counted are those that could be answered.
                    let counted = bench.steering.cookies().syns().unwrap() - before;
                    assert_eq!(counted, u64::from(port != 25), "{state:?} {port}");
                }
            }
        });
    }
}

/// A flood from the addresses of an open connection is one of many SYNs, too.
#[test]
fn syn_of_a_connection_that_is_stood_by_for_is_counted_and_answered_like_any_other() {
    for (state, answers) in [(CookieState::Off, false), (CookieState::All, true)] {
        with_bench(state, |bench| {
            let express = bench.steering.express();
            assert_eq!(express.set_link(bench.device, MAC, false).unwrap(), 0);
            express.enable(true).unwrap();
            for family in BOTH {
                let seg = syn(family, 443);
                let end = |(ip, port): (IpAddr, u16)| std::net::SocketAddr::new(ip, port);
                let ends = (end(seg.src), end(seg.dst));
                let flow = ExpressFlow {
                    client: ends,
                    server: ends,
                    client_link: 0,
                    server_link: 0,
                    server_hop: 0,
                    client_hop: 0,
                    stands_by: true,
                    from: None,
                    splice: Splice::default(),
                };
                assert_eq!(express.insert(&mut ExpressBatch::new(1), &[flow]).unwrap(), 1);
                let before = bench.steering.cookies().syns().unwrap();
                if answers {
                    bench.is_answered("stood by for", &seg);
                } else {
                    bench.goes_to_worker("stood by for", &seg.frame());
                }
                assert_eq!(bench.steering.cookies().syns().unwrap(), before + 1, "it is counted");
                bench.goes_to_worker("what follows is the worker's", &seg.clone().flags(ACK).frame());
            }
        });
    }
}

#[test]
fn syn_that_the_program_has_no_key_for_is_for_the_worker() {
    with_bench(CookieState::All, |bench| {
        let old = period(Nanos(clock::monotonic_ns())) - 2;
        for period in [old, old + 1] {
            let key = CookieKey { period, key: bench.cookies.key(period), clock: bench.cookies.clock_key() };
            bench.steering.cookies().set_key(&key, &PROMISE).unwrap();
        }
        BOTH.into_iter().for_each(|family| bench.goes_to_worker("old keys", &syn(family, 443).frame()));
    });
}

#[test]
fn tuple_of_the_kernel_road_is_for_the_worker() {
    with_bench(CookieState::All, |bench| {
        for family in BOTH {
            let seg = syn(family, 443);
            let (client, server) = (seg.src.into(), seg.dst.into());
            bench.steering.kernel_flows().insert(client, server, clock::monotonic_ns()).unwrap();
            bench.goes_to_worker("entry of the kernel map", &seg.frame());
            bench.steering.kernel_flows().remove(client, server).unwrap();
            bench.is_answered("entry gone", &seg);
        }
    });
}

#[test]
fn hung_gateway_answers_nothing() {
    with_bench(CookieState::All, |bench| {
        bench.steering.heartbeat(1).unwrap();
        for family in BOTH {
            let frame = syn(family, 443).frame();
            let trial = bench.run(&frame);
            assert_eq!((trial.action, trial.frame), (2, frame), "XDP_PASS");
        }
        let counters = bench.steering.counters().unwrap();
        assert_eq!((counters.of(Outcome::Cookie), counters.of(Outcome::StalePass)), (0, 2));
    });
}

/// The cookie's input is the client's SYN: [`Tuple`] from client to destination.
#[test]
fn cookie_of_another_client_is_none() {
    with_bench(CookieState::All, |bench| {
        for family in BOTH {
            let seg = syn(family, 443);
            let trial = bench.run(&seg.frame());
            let Ok(Parsed::Tcp(meta)) = parse(&trial.frame) else { panic!("no answer") };
            let own = meta.tuple.reversed();
            let now = Nanos(clock::monotonic_ns());
            assert!(bench.cookies.check(&own, Seq(seg.seq), meta.seq, now).is_some());
            let mut other: Tuple = own;
            other.src.port ^= 1;
            assert!(bench.cookies.check(&other, Seq(seg.seq), meta.seq, now).is_none());
        }
    });
}
