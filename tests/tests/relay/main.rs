//! The relay between the kernel's own TCP on both sides: what a client and a server see of it.

mod bounds;
mod judged;
mod lab;
mod limits;
mod sent;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::net::{SendFlags, send};

use lab::{CLIENTS, Lab, SERVERS, SOON, by_rule, counted, everything, flow, is_reset, pattern, until};
use weir_dataplane::relay::Counter;

const MIB: usize = 1 << 20;

#[test]
fn connected_each_end_sees_the_other_and_not_the_gateway() {
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    for (client, server) in CLIENTS.into_iter().zip(SERVERS) {
        let origin = lab.serve(server, |mut stream| {
            let seen = stream.peer_addr().unwrap().to_string();
            stream.write_all(seen.as_bytes()).unwrap();
        });
        let mut stream = lab.connect(origin);
        assert_eq!(stream.peer_addr().unwrap(), origin);
        let mut seen = String::new();
        stream.read_to_string(&mut seen).unwrap();
        let own = stream.local_addr().unwrap();
        assert_eq!((own.ip(), seen), (client, own.to_string()));
    }
    counted(&relay, Counter::Accepted, 2);
}

#[test]
fn ten_mebibytes_cross_both_ways_at_once() {
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    for (seed, server) in SERVERS.into_iter().enumerate() {
        let (up, down) = (pattern(seed as u64, 10 * MIB), pattern(99 + seed as u64, 10 * MIB));
        let (result, received) = channel();
        let sent = down.clone();
        let origin = lab.serve(server, move |stream| {
            result.send(exchange(stream, &sent)).unwrap();
        });
        assert!(exchange(lab.connect(origin), &up) == down, "{server}: client's");
        assert!(received.recv_timeout(SOON).unwrap() == up, "{server}: server's");
    }
    counted(&relay, Counter::Finished, 2);
    let counters = relay.counters();
    let bytes = (counters.get(Counter::BytesUp), counters.get(Counter::BytesDown));
    assert_eq!(bytes, (20 * MIB as u64, 20 * MIB as u64));
}

/// Sends all, FIN, and reads to the end, at the same time.
fn exchange(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    })
}

#[test]
fn half_closed_by_either_end_the_other_direction_goes_on() {
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    for server in SERVERS {
        // The client closes first; the server answers when it has read everything.
        let origin = lab.serve(server, |mut stream| {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).unwrap();
            stream.write_all(&request).unwrap();
        });
        let mut stream = lab.connect(origin);
        let request = pattern(1, 3 * MIB);
        stream.write_all(&request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == request, "{server}");

        // The server closes first.
        let (result, received) = channel();
        let origin = lab.serve(server, move |mut stream| {
            stream.write_all(b"go on").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            result.send(bytes).unwrap();
        });
        let mut stream = lab.connect(origin);
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "go on");
        stream.write_all(&request).unwrap();
        drop(stream);
        assert!(received.recv_timeout(SOON).unwrap() == request, "{server}");
    }
    counted(&relay, Counter::Finished, 4);
    assert!(relay.flows(10).is_empty());
}

#[test]
fn slow_reader_stops_the_sender_and_gets_every_byte() {
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    for (seed, server) in SERVERS.into_iter().enumerate() {
        let bytes = pattern(seed as u64, 64 * MIB);
        let sent = bytes.clone();
        let origin = lab.serve(server, move |mut stream| stream.write_all(&sent).unwrap());
        let mut stream = lab.connect(origin);
        // It stalls once the buffers of both ends and of the relay are full.
        let mut last = 0;
        until("a stall", || {
            std::thread::sleep(Duration::from_millis(300));
            let now = relay.counters().get(Counter::BytesDown);
            std::mem::replace(&mut last, now) == now && now > 0
        });
        let stalled = flow(&relay, |flow| flow.server == origin);
        assert!(stalled.buffered <= 2 * 256 * 1024, "{} octets held", stalled.buffered);
        assert!((stalled.bytes_down as usize) < bytes.len() / 2, "{} octets went", stalled.bytes_down);
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received == bytes, "{server}");
    }
}

/// As an abort of telnet or FTP. The urgent octet itself is not in the stream, neither here nor without a relay (RFC 6093, section 3.1).
#[test]
fn octets_around_urgent_data_arrive_without_anything_more_being_sent() {
    let lab = Lab::new();
    let _relay = lab.relay(by_rule());
    for (seed, server) in SERVERS.into_iter().enumerate() {
        for length in [3, 200_000, 8 * MIB] {
            let bytes = pattern(seed as u64, length);
            let (result, received) = channel();
            let around = [&bytes[..], &bytes].concat();
            let (expected, answer) = (around.len(), bytes.clone());
            let origin = lab.serve(server, move |mut stream| {
                let mut seen = vec![0; expected];
                result.send(stream.read_exact(&mut seen).map(|()| seen)).unwrap();
                urge(&mut stream, &answer);
                // It says nothing more, neither octets nor its end.
                let _ = stream.read(&mut [0]);
            });
            let mut stream = lab.connect(origin);
            urge(&mut stream, &bytes);
            let seen = received.recv_timeout(SOON).expect("nothing stalls").unwrap();
            assert!(seen == around, "{server}, {length} octets before and after");
            let mut answer = vec![0; expected];
            stream.read_exact(&mut answer).expect("nothing stalls");
            assert!(answer == around, "from {server}, {length} octets before and after");
        }
    }
}

/// Octets, an urgent one, and the octets again.
fn urge(stream: &mut TcpStream, octets: &[u8]) {
    stream.write_all(octets).unwrap();
    send(&*stream, b"!", SendFlags::OOB).unwrap();
    stream.write_all(octets).unwrap();
}

#[test]
fn end_that_comes_with_the_last_octets_leaves_with_them() {
    const SEEN: &str = "table inet seen { chain in { type filter hook input priority 0;
        tcp flags & fin == fin meta length > 1000 counter comment \"both\"\n}\n}";
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    lab::nft(&lab.client, SEEN);
    for server in SERVERS {
        let origin = lab.serve(server, |mut stream| {
            stream.read_exact(&mut [0; 4]).unwrap();
            // In one segment with FIN.
            send(&stream, &[7; 1100], SendFlags::MORE).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let _ = stream.read(&mut [0]);
        });
        let mut stream = lab.connect(origin);
        stream.write_all(b"ping").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == [7; 1100], "{server}");
    }
    counted(&relay, Counter::Finished, 2);
    let listed = lab::nft_list(&lab.client);
    assert!(listed.contains("counter packets 2 "), "{listed}");
}

#[test]
fn reset_of_either_end_reaches_the_other() {
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    for server in SERVERS {
        let origin = lab.serve(server, |mut stream| {
            stream.read_exact(&mut [0; 4]).unwrap();
            lab::reset(stream);
        });
        let mut stream = lab.connect(origin);
        stream.write_all(b"ping").unwrap();
        assert!(is_reset(&stream), "{server}: server's RST");

        let (result, received) = channel();
        let origin = lab.serve(server, move |mut stream| {
            stream.read_exact(&mut [0; 4]).unwrap();
            result.send(is_reset(&stream)).unwrap();
        });
        let mut stream = lab.connect(origin);
        stream.write_all(b"ping").unwrap();
        flow(&relay, |flow| flow.server == origin && flow.bytes_up == 4);
        lab::reset(stream);
        assert!(received.recv_timeout(SOON).unwrap(), "{server}: client's RST");
    }
    counted(&relay, Counter::ServerFailed, 2);
    counted(&relay, Counter::ClientFailed, 2);
    assert_eq!(relay.counters().failures(weir_core::relay::Failure::Reset), 4);
}

#[test]
fn reset_while_the_receiver_is_stalled_reaches_it_also_behind_fins() {
    let lab = Lab::new();
    let relay = lab.relay(by_rule());
    // Who has sent FIN before: the server, and the client behind what it could send.
    let cases = [(false, false), (true, false), (false, true), (true, true)];
    for (server, (server_ends, client_ends)) in
        SERVERS.into_iter().flat_map(|server| cases.map(|case| (server, case)))
    {
        let (result, received) = channel();
        let (go, gone) = channel();
        let gone = std::sync::Arc::new(std::sync::Mutex::new(gone));
        // Reads nothing until the client is gone: the relay's buffer is full and it receives nothing, either.
        let origin = lab.serve(server, move |mut stream| {
            if server_ends {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            gone.lock().unwrap().recv_timeout(SOON).unwrap();
            let end = std::iter::repeat_with(|| stream.read(&mut [0; 65536])).find(|r| !matches!(r, Ok(1..)));
            result.send(end.unwrap().map_err(|e| e.kind())).unwrap();
        });
        let mut stream = lab.connect(origin);
        if server_ends {
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        }
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        while stream.write(&[0; 65536]).is_ok() {}
        if client_ends {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        lab::reset(stream);
        until("the relay to notice", || relay.flows(10).is_empty());
        go.send(()).unwrap();
        let end = received.recv_timeout(SOON).unwrap();
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "{server} {server_ends} {client_ends}");
    }
}

#[test]
fn two_hundred_connections_at_once_keep_apart() {
    let lab = Lab::new();
    let config = weir_dataplane::relay::RelayConfig { workers: 2, ..lab::config() };
    let relay = lab.relay_with(everything(), &config);
    let origins: Vec<SocketAddr> = SERVERS
        .iter()
        .map(|server| {
            lab.serve(*server, |mut stream| {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            })
        })
        .collect();
    let mut streams: Vec<TcpStream> = (0..200).map(|i| lab.connect(origins[i % 2])).collect();
    until("200 flows", || relay.flows(1000).len() == 200);
    let sent: Vec<Vec<u8>> = (0..200).map(|i| pattern(i, 50_000 + i as usize)).collect();
    // Neither TLS nor HTTP: allowed as unidentified.
    for (stream, bytes) in streams.iter_mut().zip(&sent) {
        stream.write_all(b"\0").unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for (stream, bytes) in streams.iter_mut().zip(&sent) {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received[0] == 0 && received[1..] == bytes[..]);
    }
    counted(&relay, Counter::Finished, 200);
    lab::until("none is active", || relay.counters().active() == 0);
}
