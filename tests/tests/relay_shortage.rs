//! The relay when the process runs out of file descriptors: a limit of the whole process, so a process of its own.

#[path = "relay/lab.rs"]
#[allow(dead_code, reason = "written for the relay's other tests, too")]
mod lab;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use weir_dataplane::relay::Counter;

use lab::{Lab, SERVERS, by_rule, until};

/// Allows `more` descriptors above the lowest free number.
fn limit(more: u64) {
    let next = std::fs::File::open("/dev/null").expect("a file");
    let current = u64::try_from(next.as_raw_fd()).expect("a number") + more;
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).expect("a lower limit");
}

#[test]
fn without_descriptors_accepting_pauses_and_goes_on_when_there_are_some() {
    let lab = Lab::new();
    // Before the relay starts: io_uring keeps the limit of when an accept was submitted.
    limit(100);
    let relay = lab.relay(by_rule());
    for server in SERVERS {
        let origin = lab.serve(server, |mut stream| {
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).expect("a byte");
            stream.write_all(&byte).expect("an answer");
        });
        let before = relay.counters().get(Counter::AcceptBackoff);
        let socket = lab.client.run(|| {
            let domain = socket2::Domain::for_address(origin);
            socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket")
        });
        let socket = socket.expect("the client");
        // Descriptors of the connection before are given back a little after it.
        until("the last connection is gone", || relay.flows(1).is_empty());
        let mut all = Vec::new();
        for _ in 0..20 {
            all.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()));
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        socket.connect(&origin.into()).expect("the backlog takes it");
        until("a second pause", || relay.counters().get(Counter::AcceptBackoff) > before + 1);
        drop(all);
        let mut stream: std::net::TcpStream = socket.into();
        stream.set_read_timeout(Some(lab::SOON)).expect("a timeout");
        stream.write_all(b"x").expect("sent");
        stream.read_exact(&mut [0; 1]).expect("an answer");
    }
}
