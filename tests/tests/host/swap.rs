//! Real traffic while the rules come, change and go: nobody's connection is refused or lost, no packet goes missing.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_control::host::{HostSpec, InterceptSpec};

use crate::space::{host, isolated, sh};
use crate::tproxy::{Addresses, V4, V6, ask, ask_within, at, echo, inside, lab, origin, relay, web};

/// A SYN that is lost is sent again after a second.
const LOST: Duration = Duration::from_millis(900);
/// How long a connection is waited for whose rules have gone.
const STUCK: Duration = Duration::from_secs(3);
/// What a change is given to show what it breaks.
const SETTLE: Duration = Duration::from_millis(250);

/// One connection: when it began and ended, and what it came to.
#[derive(Debug)]
struct Tried {
    start: Instant,
    end: Instant,
    /// Whether the relay carried it, or why it failed.
    result: Result<bool, String>,
}

/// Clients that connect again and again, and one that sends datagrams.
struct Traffic {
    tried: Arc<Mutex<Vec<Tried>>>,
    sent: Arc<AtomicU64>,
    back: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start() -> Self {
        let mut traffic = Self {
            tried: Arc::default(),
            sent: Arc::default(),
            back: Arc::default(),
            end: Arc::default(),
            threads: Vec::new(),
        };
        for of in [&V4, &V6] {
            let (tried, end) = (traffic.tried.clone(), traffic.end.clone());
            traffic.threads.push(std::thread::spawn(move || connect(of, &tried, &end)));
            let (sent, back, end) = (traffic.sent.clone(), traffic.back.clone(), traffic.end.clone());
            traffic.threads.push(std::thread::spawn(move || datagrams(of, &sent, &back, &end)));
        }
        traffic
    }

    /// Ends it; all connections.
    fn stop(self) -> Vec<Tried> {
        self.end.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (sent, back) = (self.sent.load(Ordering::Relaxed), self.back.load(Ordering::Relaxed));
        assert!(sent > 200 && sent == back, "{back} of {sent} forwarded packets came back");
        std::mem::take(&mut *self.tried.lock().unwrap())
    }
}

fn connect(of: &Addresses, tried: &Mutex<Vec<Tried>>, end: &AtomicBool) {
    // Each port once: TIME_WAIT of an earlier connection has its own ways with a SYN.
    for port in 20_000..u16::MAX {
        if end.load(Ordering::Relaxed) {
            return;
        }
        let start = Instant::now();
        let result = match ask_within(at(of.client, port), at(of.server, 80), STUCK) {
            Ok(answer) if answer.contains("origin ") && answer.ends_with("hello") => {
                Ok(answer.starts_with("relay"))
            }
            Ok(answer) => Err(format!("cut off after {answer:?}")),
            Err(error) => Err(error.to_string()),
        };
        tried.lock().unwrap().push(Tried { start, end: Instant::now(), result });
    }
}

/// Sends a datagram every few milliseconds, each with a number of its own, and counts those that come back.
fn datagrams(of: &Addresses, sent: &AtomicU64, back: &AtomicU64, end: &AtomicBool) {
    let socket = inside("client", || UdpSocket::bind(at(of.client, 0)).unwrap());
    let target: SocketAddr = at(of.server, 4433);
    let mut missing = BTreeMap::new();
    let mut number = 0_u64;
    let hear = |missing: &mut BTreeMap<u64, Instant>, patience| {
        socket.set_read_timeout(Some(patience)).unwrap();
        let mut datagram = [0; 8];
        socket.recv(&mut datagram).is_ok_and(|_| missing.remove(&u64::from_ne_bytes(datagram)).is_some())
    };
    let start = Instant::now();
    while !end.load(Ordering::Relaxed) {
        number += 1;
        missing.insert(number, Instant::now());
        socket.send_to(&number.to_ne_bytes(), target).unwrap();
        hear(&mut missing, SETTLE);
        std::thread::sleep(Duration::from_millis(4));
    }
    // On a busy machine some are late, and not lost.
    while hear(&mut missing, LOST) {}
    let lost: Vec<Duration> = missing.values().map(|at| *at - start).collect();
    assert!(lost.is_empty(), "to {target}, sent and lost after {lost:?}");
    sent.fetch_add(number, Ordering::Relaxed);
    back.fetch_add(number - missing.len() as u64, Ordering::Relaxed);
}

/// What was done when, from its beginning to its end.
type Done = Vec<(String, Instant, Instant)>;

fn change(spec: &HostSpec, done: &mut Done) {
    let start = Instant::now();
    host(async |h| h.apply(spec).await).unwrap();
    let HostSpec { mark, mask, table, priority, listen, .. } = spec;
    done.push((format!("{mark:#x}/{mask:#x} {table} {priority} {listen}"), start, Instant::now()));
    std::thread::sleep(SETTLE);
}

/// What went on while a connection did, in milliseconds from its start.
fn around(one: &Tried, done: &Done, removals: &[(Instant, Instant)]) -> String {
    let from = |at: Instant| match at.checked_duration_since(one.start) {
        Some(after) => after.as_secs_f64() * 1000.0,
        None => -(one.start - at).as_secs_f64() * 1000.0,
    };
    let near = |at: Instant| from(at) > -400.0 && at < one.end + SETTLE;
    let done = done.iter().map(|(what, start, end)| (what.as_str(), *start, *end));
    let all = done.chain(removals.iter().map(|(start, end)| ("removed", *start, *end)));
    let mut near: Vec<_> = all.filter(|(_, _, end)| near(*end)).collect();
    near.sort_by_key(|(_, start, _)| *start);
    near.iter()
        .map(|(what, start, end)| format!("\n{what}: {:.1} to {:.1}", from(*start), from(*end)))
        .collect()
}

isolated! {
    fn rules_that_come_change_and_go_under_traffic_lose_no_connection_and_no_packet() {
        lab();
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for of in [&V4, &V6] {
            origin(of, 80);
            relay(of, 12377);
            relay(of, 4000);
            echo(Some("server"), at(of.server, 4433));
            // The first packets wait for neighbours and for link-local addresses.
            while ask(at(of.client, 19_999), at(of.server, 80)).is_err() {
                std::thread::sleep(SETTLE);
            }
        }
        let first = web();
        let numbers = |mark, mask, table, priority, listen| HostSpec { mark, mask, table, priority, listen, ..web() };
        // One number at a time, then all of them, then other intercepts.
        let mut others = vec![
            numbers(0x78, 0xff, 177, 1077, 12377),
            numbers(0x77, 0xfff, 177, 1077, 12377),
            numbers(0x77, 0xff, 1000, 1077, 12377),
            numbers(0x77, 0xff, 177, 999, 12377),
            numbers(0x77, 0xff, 177, 1077, 4000),
            numbers(0x1000, 0xf000, 1001, 998, 4000),
        ];
        let elsewhere = InterceptSpec { to: vec!["10.2.0.0/24".parse().unwrap(), "fd02::/64".parse().unwrap()], ..web().intercepts[0].clone() };
        others.push(HostSpec { intercepts: vec![elsewhere], ..web() });
        let traffic = Traffic::start();
        let mut done = Done::new();
        let mut removals = Vec::new();
        for _ in 0..2 {
            change(&first, &mut done);
            (0..10).for_each(|_| drop(host(async |h| h.apply(&first).await).unwrap()));
            for other in &others {
                change(other, &mut done);
                change(&first, &mut done);
            }
            let start = Instant::now();
            host(async |h| h.remove().await).unwrap();
            removals.push((start, Instant::now()));
            std::thread::sleep(SETTLE);
        }
        let tried = traffic.stop();
        let relayed = tried.iter().filter(|one| one.result == Ok(true)).count();
        let direct = tried.iter().filter(|one| one.result == Ok(false)).count();
        assert!(relayed > 100 && direct > 10, "{relayed} relayed, {direct} direct: too little traffic to tell");
        for one in &tried {
            // What the relay carries ends with the rules that bring it its packets.
            let under_removal = removals.iter().any(|(start, end)| one.start <= *end && one.end >= *start);
            if !under_removal {
                assert!(one.result.is_ok() && one.end - one.start < LOST, "{one:?} of {relayed} and {direct}: {}", around(one, &done, &removals));
            }
        }
    }
}
