use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::*;

const CONFIG: RingConfig = RingConfig { entries: 8, buffers: 4, buffer_size: 4096 };
const SECOND: Option<Duration> = Some(Duration::from_secs(1));

fn ring() -> Ring {
    Ring::new(CONFIG).expect("io_uring")
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

fn pair() -> (TcpStream, OwnedFd) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (theirs, ours.into())
}

#[test]
fn received_octets_are_readable_when_complete_and_not_before() {
    let mut ring = ring();
    let (mut theirs, ours) = pair();
    let socket = ring.add(ours);
    let buffer = ring.take_buffer().unwrap();
    assert!(ring.recv(socket, buffer, 100, 50, 7));
    assert!(ring.bytes(buffer, 0, 100).is_some());
    assert!(ring.bytes(buffer, 149, 1).is_none(), "the kernel may be writing there");
    assert!(!ring.recv(socket, buffer, 0, 10, 8), "one writer at a time");
    theirs.write_all(b"hello").unwrap();
    let completion = next(&mut ring);
    assert_eq!(completion.token, 7);
    assert!(matches!(completion.outcome, Outcome::Done(5)));
    assert_eq!(ring.bytes(buffer, 100, 5).unwrap(), b"hello");
    assert!(ring.send(socket, buffer, 100, 5, 9));
    assert!(matches!(next(&mut ring).outcome, Outcome::Done(5)));
    let mut echo = [0; 5];
    theirs.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello");
}

#[test]
fn parts_outside_a_buffer_are_refused() {
    let mut ring = ring();
    let (_theirs, ours) = pair();
    let socket = ring.add(ours);
    let buffer = ring.take_buffer().unwrap();
    assert!(!ring.recv(socket, buffer, 4000, 97, 1));
    assert!(!ring.send(socket, buffer, u32::MAX, 2, 1));
    assert!(ring.bytes(buffer, 4096, 1).is_none());
    assert_eq!(ring.under_way(), 1, "the wake-up alone");
}

#[test]
fn buffer_given_back_early_is_free_after_the_kernel_is_done() {
    let mut ring = ring();
    let (_theirs, ours) = pair();
    let socket = ring.add(ours);
    let buffer = ring.take_buffer().unwrap();
    ring.recv(socket, buffer, 0, 10, 1);
    ring.give_back(buffer);
    ring.give_back(buffer);
    assert_eq!(ring.buffers_free(), 3);
    ring.close(socket);
    assert!(matches!(next(&mut ring).outcome, Outcome::Failed(Errno::CANCELED)));
    assert_eq!(ring.buffers_free(), 4);
    assert!(!ring.recv(socket, buffer, 0, 10, 1), "closed");
}

#[test]
fn accept_goes_on_and_connect_completes() {
    let mut ring = ring();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = ring.add(listener.into());
    assert!(ring.accept(listener, 1));
    for _ in 0..3 {
        let _client = TcpStream::connect(address).unwrap();
        let completion = next(&mut ring);
        assert_eq!(completion.token, 1);
        assert!(matches!(completion.outcome, Outcome::Accepted(_)));
        if !completion.more {
            ring.accept(listener, 1);
        }
    }
    ring.close(listener);
    let completion = next(&mut ring);
    assert!(!completion.more && matches!(completion.outcome, Outcome::Failed(Errno::CANCELED)));
    let socket = ring.add(Socket::new(Domain::IPV4, Type::STREAM, None).unwrap().into());
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    assert!(ring.connect(socket, nobody, 2));
    assert!(matches!(next(&mut ring).outcome, Outcome::Failed(Errno::CONNREFUSED)));
}

#[test]
fn watch_tells_of_a_reset() {
    let mut ring = ring();
    let (theirs, ours) = pair();
    let socket = ring.add(ours);
    ring.watch(socket, 3);
    socket2::SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
    drop(theirs);
    let Outcome::Done(events) = next(&mut ring).outcome else { panic!("poll events") };
    assert_ne!(events & libc::POLLERR as u32, 0);
}

#[test]
fn watch_outlives_fin_and_tells_of_the_reset_after_it() {
    let mut ring = ring();
    let (theirs, ours) = pair();
    let socket = ring.add(ours);
    ring.watch(socket, 3);
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    let mut out = Vec::new();
    ring.wait(Some(Duration::from_millis(50)), &mut out).unwrap();
    ring.wait(Some(Duration::from_millis(50)), &mut out).unwrap();
    assert!(out.is_empty(), "{out:?}");
    socket2::SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
    drop(theirs);
    assert!(matches!(next(&mut ring).outcome, Outcome::Done(events) if events & libc::POLLERR as u32 != 0));
}

#[test]
fn watch_stopped_completes_as_cancelled() {
    let mut ring = ring();
    let (_theirs, ours) = pair();
    let socket = ring.add(ours);
    ring.watch(socket, 3);
    ring.cancel(socket);
    assert!(matches!(next(&mut ring).outcome, Outcome::Failed(Errno::CANCELED)));
    assert_eq!(ring.under_way(), 1, "the wake-up alone");
}

#[test]
fn wake_ends_the_wait_once_for_many_calls() {
    let mut ring = ring();
    let waker = ring.waker();
    for _ in 0..2 {
        waker.wake();
        waker.wake();
        assert!(matches!(next(&mut ring).outcome, Outcome::Woken));
    }
    let mut out = Vec::new();
    ring.wait(Some(Duration::from_millis(20)), &mut out).unwrap();
    assert!(out.is_empty());
}

#[test]
fn more_operations_than_entries_all_complete() {
    let mut ring = Ring::new(RingConfig { entries: 4, buffers: 64, buffer_size: 64 }).unwrap();
    let mut others = Vec::new();
    for token in 0..64 {
        let (theirs, ours) = pair();
        let (socket, buffer) = (ring.add(ours), ring.take_buffer().unwrap());
        assert!(ring.recv(socket, buffer, 0, 64, token));
        others.push(theirs);
    }
    for theirs in &mut others {
        theirs.write_all(b"x").unwrap();
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
fn dropped_ring_leaves_nothing_under_way() {
    let mut ring = ring();
    let (mut theirs, ours) = pair();
    let socket = ring.add(ours);
    let buffer = ring.take_buffer().unwrap();
    ring.recv(socket, buffer, 0, 4096, 1);
    ring.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
    drop(ring);
    // The socket was the ring's: its end is seen at once.
    theirs.set_read_timeout(SECOND).unwrap();
    assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn trimmed_buffers_come_back_empty() {
    let mut ring = ring();
    let (mut theirs, ours) = pair();
    let socket = ring.add(ours);
    let buffer = ring.take_buffer().unwrap();
    ring.recv(socket, buffer, 0, 10, 1);
    theirs.write_all(b"secret").unwrap();
    next(&mut ring);
    ring.give_back(buffer);
    ring.trim(0);
    let again = ring.take_buffer().unwrap();
    assert_eq!(ring.bytes(again, 0, 6).unwrap(), [0; 6]);
}

#[test]
fn reused_place_does_not_answer_to_its_old_key() {
    let mut slab = Slab::new();
    let old = slab.insert('a');
    assert_eq!(slab.remove(old), Some('a'));
    let new = slab.insert('b');
    assert_eq!(new.index, old.index);
    assert!(slab.get(old).is_none() && slab.remove(old).is_none());
    assert_eq!(slab.get(new), Some(&'b'));
    assert_eq!(Key::from_bits(new.to_bits()), new);
}
