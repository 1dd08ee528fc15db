use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::setup::{Notice, build_with, checked};
use super::*;
use crate::sockopt;

const SECOND: Option<Duration> = Some(Duration::from_secs(1));

/// As every kernel since 5.19 has it, and as newer ones do.
const NOTICES: [Notice; 2] = [Notice::Cooperative, Notice::Deferred];

/// One of each kind.
fn rings() -> impl Iterator<Item = Ring> {
    NOTICES.into_iter().map(|notice| {
        let ring = checked(build_with(8, notice)).and_then(Ring::on);
        ring.unwrap_or_else(|error| panic!("{notice:?}: {error}"))
    })
}

/// The next completion that is not a wake-up.
fn next(ring: &mut Ring) -> Completion {
    let mut out = Vec::new();
    for _ in 0..10 {
        ring.wait(SECOND, &mut out).unwrap();
        if let Some(completion) = out.pop() {
            assert!(out.is_empty(), "one completion at a time: {out:?}");
            return completion;
        }
    }
    panic!("nothing completed");
}

/// What the next completion of a watch says.
fn ready(ring: &mut Ring) -> Readiness {
    match next(ring) {
        Completion { token: 7, outcome: Outcome::Ready(ready), more: true } => ready,
        completion => panic!("{completion:?}"),
    }
}

fn nothing_comes(ring: &mut Ring) {
    let mut out = Vec::new();
    ring.wait(Some(Duration::from_millis(30)), &mut out).unwrap();
    ring.wait(Some(Duration::from_millis(30)), &mut out).unwrap();
    assert!(out.is_empty(), "{out:?}");
}

fn pair() -> (TcpStream, OwnedFd) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (theirs, ours.into())
}

#[test]
fn watch_tells_what_is_there_and_what_comes() {
    for mut ring in rings() {
        let (mut theirs, ours) = pair();
        ring.watch(&ours, 7);
        assert_eq!(ready(&mut ring), Readiness { writable: true, ..Readiness::default() });
        nothing_comes(&mut ring);
        for word in [&b"one"[..], b"two"] {
            theirs.write_all(word).unwrap();
            assert!(ready(&mut ring).readable);
            // Also where what came before was not taken.
            nothing_comes(&mut ring);
        }
        let mut got = [0; 8];
        assert_eq!(sockopt::recv_now(&ours, &mut got).unwrap(), 6);
        assert_eq!(sockopt::recv_now(&ours, &mut got).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn watch_tells_of_room_after_there_was_none() {
    for mut ring in rings() {
        let (mut theirs, ours) = pair();
        ring.watch(&ours, 7);
        assert!(ready(&mut ring).writable);
        let octets = vec![0; 1 << 20];
        let mut sent = 0;
        let full = loop {
            match sockopt::send_now(&ours, &octets, false) {
                Ok(len) => sent += len,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
        let mut room = vec![0; sent];
        theirs.read_exact(&mut room).unwrap();
        assert!(ready(&mut ring).writable);
    }
}

#[test]
fn watch_tells_fin_and_reset_apart() {
    for mut ring in rings() {
        let (theirs, ours) = pair();
        ring.watch(&ours, 7);
        assert!(ready(&mut ring).writable);
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let fin = ready(&mut ring);
        assert!(fin.readable && fin.ended && !fin.hung, "{fin:?}");
        nothing_comes(&mut ring);
        socket2::SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
        drop(theirs);
        assert!(ready(&mut ring).hung);
    }
}

#[test]
fn closed_socket_is_gone_at_once_and_its_watch_ends() {
    for mut ring in rings() {
        let (mut theirs, ours) = pair();
        ring.watch(&ours, 7);
        assert!(ready(&mut ring).writable);
        ring.close(ours, 7);
        let completion = next(&mut ring);
        assert!(
            !completion.more && matches!(completion.outcome, Outcome::Failed(Errno::CANCELED)),
            "{completion:?}"
        );
        theirs.set_read_timeout(SECOND).unwrap();
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
        // One that was never submitted.
        let (mut theirs, ours) = pair();
        ring.watch(&ours, 8);
        ring.close(ours, 8);
        theirs.set_read_timeout(SECOND).unwrap();
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn socket_closed_before_its_news_were_told_is_gone_at_once() {
    for mut ring in rings() {
        let (mut theirs, ours) = pair();
        ring.watch(&ours, 7);
        assert!(ready(&mut ring).writable);
        theirs.write_all(b"x").unwrap();
        assert_eq!(sockopt::recv_now(&ours, &mut [0; 1]).unwrap(), 1);
        ring.close(ours, 7);
        let mut out = Vec::new();
        while !out.iter().any(|completion: &Completion| !completion.more) {
            let before = out.len();
            ring.wait(SECOND, &mut out).unwrap();
            assert!(out.len() > before, "the watch has not ended: {out:?}");
        }
        theirs.set_read_timeout(SECOND).unwrap();
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn accept_goes_on_until_its_listener_is_closed() {
    for mut ring in rings() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        ring.accept(&listener, 1);
        for _ in 0..3 {
            let _client = TcpStream::connect(address).unwrap();
            let completion = next(&mut ring);
            assert_eq!(completion.token, 1);
            assert!(matches!(completion.outcome, Outcome::Accepted(_)));
            if !completion.more {
                ring.accept(&listener, 1);
            }
        }
        ring.close_listener(listener.into(), 1);
        let completion = next(&mut ring);
        assert!(!completion.more && matches!(completion.outcome, Outcome::Failed(Errno::CANCELED)));
    }
}

#[test]
fn connect_is_told_as_room_or_as_a_failure() {
    for mut ring in rings() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        for refused in [false, true] {
            if refused {
                rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
            }
            let (socket, _) = sockopt::own_stream(address).unwrap();
            let begun = sockopt::connect_now(&socket, address);
            ring.watch(&socket, 7);
            // How many completions it takes is the kernel's to say.
            let (mut ready, mut out) = (Readiness::default(), Vec::new());
            while !ready.writable || ready.hung != refused {
                ring.wait(SECOND, &mut out).unwrap();
                assert!(!out.is_empty(), "{ready:?}");
                for completion in out.drain(..) {
                    let Outcome::Ready(more) = completion.outcome else { panic!("{completion:?}") };
                    ready.add(more);
                }
            }
            let error = begun.and_then(|()| sockopt::take_error(&socket)).err();
            assert_eq!(error.map(|e| e.kind()), refused.then_some(std::io::ErrorKind::ConnectionRefused));
        }
    }
}

#[test]
fn wake_ends_the_wait_once_for_many_calls() {
    for mut ring in rings() {
        let waker = ring.waker();
        for _ in 0..2 {
            waker.wake();
            waker.wake();
            assert!(matches!(next(&mut ring).outcome, Outcome::Woken));
        }
        nothing_comes(&mut ring);
    }
}

#[test]
fn completions_that_the_kernel_lost_are_said_to_be_and_the_waker_still_wakes() {
    for mut ring in rings() {
        let waker = ring.waker();
        for lost in [libc::EBADR, libc::ENOMEM, libc::EBADR] {
            let mut out = Vec::new();
            ring.after(Err(std::io::Error::from_raw_os_error(lost)), &mut out).unwrap();
            let is_lost = matches!(out[..], [Completion { outcome: Outcome::Lost, .. }]);
            assert_eq!(is_lost, lost == libc::EBADR, "{out:?}");
            // Its watch is there, or began anew.
            for _ in 0..2 {
                nothing_comes_but_wakes(&mut ring);
                waker.wake();
                assert!(matches!(next(&mut ring).outcome, Outcome::Woken));
            }
        }
        nothing_comes(&mut ring);
    }
}

fn nothing_comes_but_wakes(ring: &mut Ring) {
    let mut out = Vec::new();
    ring.wait(Some(Duration::from_millis(30)), &mut out).unwrap();
    assert!(out.iter().all(|completion| matches!(completion.outcome, Outcome::Woken)), "{out:?}");
}

#[test]
fn more_operations_than_entries_all_complete() {
    let mut ring = Ring::new(4).unwrap();
    let pairs: Vec<_> = (0..64).map(|_| pair()).collect();
    for (token, (_, ours)) in (0..).zip(&pairs) {
        ring.watch(ours, token);
    }
    let (mut seen, mut out) = (Vec::new(), Vec::new());
    while seen.len() < 64 {
        ring.wait(SECOND, &mut out).unwrap();
        assert!(!out.is_empty(), "{} of 64", seen.len());
        seen.extend(out.drain(..).map(|completion| completion.token));
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..64));
}

#[test]
fn dropped_ring_lets_go_of_sockets_and_of_connections_nobody_saw() {
    for mut ring in rings() {
        let (mut theirs, ours) = pair();
        ring.watch(&ours, 7);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        ring.accept(&listener, 1);
        ring.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        let mut unseen = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop((ring, ours, listener));
        for stream in [&mut theirs, &mut unseen] {
            stream.set_read_timeout(SECOND).unwrap();
            // FIN, or a RST where the connection was not even accepted.
            let end = stream.read(&mut [0; 1]);
            assert!(!matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock), "{end:?}");
        }
    }
}

#[test]
fn reused_place_does_not_answer_to_its_old_key() {
    let mut slab = Slab::new();
    let old = slab.insert('a');
    assert_eq!((slab.remove(old), slab.key(old.index)), (Some('a'), None));
    let new = slab.insert('b');
    assert_eq!((new.index, slab.key(old.index)), (old.index, Some(new)));
    assert!(slab.get(old).is_none() && slab.remove(old).is_none());
    assert_eq!(slab.get(new), Some(&'b'));
    assert_eq!(Key::from_bits(new.to_bits()), new);
}

#[test]
fn slab_grows_by_blocks_and_keeps_what_it_has() {
    let mut slab = Slab::new();
    let keys: Vec<Key> = (0..1000).map(|n| slab.insert(n)).collect();
    assert!(keys.iter().zip(0..).all(|(key, n)| slab.get(*key) == Some(&n) && key.index == n));
    for key in keys.iter().step_by(2) {
        slab.remove(*key);
    }
    assert_eq!((slab.len(), slab.iter().count()), (500, 500));
}
