//! What receives say is left.

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};

use rustix::event::{PollFd, PollFlags, poll};

use super::*;

/// Both ends, and a listener that was told.
fn pairs() -> impl Iterator<Item = (TcpStream, TcpStream)> {
    [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].into_iter().map(|address| {
        let listener = TcpListener::bind((address, 0)).unwrap();
        say_what_is_left(&listener).unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (theirs, listener.accept().unwrap().0)
    })
}

/// Waits until so many octets can be received at once.
fn wait_for(ours: &TcpStream, octets: usize) {
    let mut room = vec![0; octets + 1];
    while ours.peek(&mut room).unwrap() < octets {
        std::thread::yield_now();
    }
}

/// Waits for FIN.
fn wait_for_end(ours: &TcpStream) {
    let mut fds = [PollFd::new(ours, PollFlags::RDHUP)];
    poll(&mut fds, None).unwrap();
}

#[test]
fn receive_tells_whether_octets_are_left() {
    for (mut theirs, ours) in pairs() {
        theirs.write_all(b"octets").unwrap();
        wait_for(&ours, 6);
        let mut room = [0; 4];
        assert_eq!(recv_and_look(&ours, &mut room).unwrap(), (4, Some(true)));
        assert_eq!(
            recv_and_look(&ours, &mut room[..2]).unwrap(),
            (2, Some(false)),
            "also where all room is taken"
        );
        assert_eq!(&room, b"tste");
        assert_eq!(recv_and_look(&ours, &mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn receive_tells_whether_the_end_is_left() {
    for (mut theirs, ours) in pairs() {
        theirs.write_all(b"last").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        wait_for_end(&ours);
        let mut room = [0; 64];
        assert_eq!(recv_and_look(&ours, &mut room).unwrap(), (4, Some(true)));
        assert_eq!(recv_and_look(&ours, &mut room).unwrap().0, 0);
    }
}

#[test]
fn receive_that_ends_before_urgent_data_tells_of_what_is_behind() {
    for (mut theirs, ours) in pairs() {
        theirs.write_all(b"abort").unwrap();
        rustix::net::send(&theirs, b"!", SendFlags::OOB).unwrap();
        theirs.write_all(b"go on").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        wait_for_end(&ours);
        let mut room = [0; 64];
        assert_eq!(recv_and_look(&ours, &mut room).unwrap(), (5, Some(true)));
        assert_eq!(recv_and_look(&ours, &mut room).unwrap(), (5, Some(true)));
        assert_eq!(recv_and_look(&ours, &mut room).unwrap().0, 0);
    }
}

#[test]
fn receive_of_a_socket_that_was_not_told_says_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    theirs.write_all(b"octets").unwrap();
    wait_for(&ours, 6);
    assert_eq!(recv_and_look(&ours, &mut [0; 64]).unwrap(), (6, None));
    say_what_is_left(&ours).unwrap();
    theirs.write_all(b"more").unwrap();
    wait_for(&ours, 4);
    assert_eq!(recv_and_look(&ours, &mut [0; 64]).unwrap(), (4, Some(false)));
}
