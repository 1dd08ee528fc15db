use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use super::*;

/// One that is this process, and what it hears and says. It is waited for 50 ms.
fn predecessor(name: &str) -> (Predecessor, UnixStream) {
    let (stream, other) = UnixStream::pair().expect("a pair");
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let name = SocketAddr::from_abstract_name(format!("weir-test-{}-{name}", std::process::id()));
    let socket = UnixListener::bind_addr(&name.expect("a name")).expect("bound");
    let lock = Lock::of_predecessor(socket.into());
    let (inherited, admin) = (Inherited::default(), PathBuf::new());
    (Predecessor { stream, pid: std::process::id(), lock, inherited, admin, ends: false }, other)
}

/// The number of a process that has ended.
fn of_the_dead() -> u32 {
    let mut child = Command::new("true").spawn().expect("true");
    child.wait().expect("ends");
    child.id()
}

#[test]
fn old_process_that_goes_is_followed() {
    let (mut new, mut old) = predecessor("goes");
    old.write_all(b"gone\nleft\n").unwrap();
    new.depart().unwrap();
    drop(new.dismiss());
    let mut said = String::new();
    old.read_to_string(&mut said).unwrap();
    assert_eq!(said, "done\nserves\n");
}

#[test]
fn old_process_is_waited_for_until_it_has_left_or_gone() {
    for last in ["left\n", ""] {
        let (new, mut old) = predecessor(&format!("leaves{}", last.len()));
        let dismissing = std::thread::spawn(move || drop(new.dismiss()));
        let mut said = [0; 7];
        old.read_exact(&mut said).unwrap();
        assert_eq!(said, *b"serves\n");
        assert!(!dismissing.is_finished(), "it has heard nothing yet");
        old.write_all(last.as_bytes()).unwrap();
        drop(old);
        dismissing.join().unwrap();
    }
}

#[test]
fn old_process_that_has_turned_away_and_lives_goes_on() {
    let (mut new, old) = predecessor("turned");
    drop(old);
    let failure = new.depart().unwrap_err();
    assert!(failure.message.contains("it has turned away"), "{failure}");
    assert_eq!(new.fate(), Fate::Lives);
}

#[test]
fn old_process_that_has_given_up_is_quoted() {
    let (mut new, mut old) = predecessor("refuses");
    old.write_all(b"{\"error\":\"it has waited\"}\n").unwrap();
    drop(old);
    assert!(new.depart().unwrap_err().message.ends_with("its place: it has waited"));
    assert_eq!(new.fate(), Fate::Lives);
}

#[test]
fn old_process_that_is_silent_cannot_say_afterwards_that_it_goes() {
    let (mut new, mut old) = predecessor("silent");
    new.depart().unwrap_err();
    assert_eq!(old.write_all(b"gone\n").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(new.fate(), Fate::Lives);
}

#[test]
fn old_process_that_died_is_followed() {
    let (mut new, old) = predecessor("died");
    new.pid = of_the_dead();
    drop(old);
    new.depart().unwrap();
}

#[test]
fn what_a_process_leaves_that_ended_is_nobodys() {
    for (last, fate) in [("", Fate::Died), ("ends\n", Fate::Stopped)] {
        let (mut new, mut old) = predecessor(&format!("{fate:?}"));
        new.pid = of_the_dead();
        old.write_all(last.as_bytes()).unwrap();
        drop(old);
        assert_eq!(new.fate(), fate);
    }
}

#[test]
fn place_of_a_process_that_was_told_to_end_is_not_taken() {
    let (mut new, mut old) = predecessor("ends");
    new.pid = of_the_dead();
    old.write_all(b"ends\n").unwrap();
    drop(old);
    assert!(new.depart().unwrap_err().message.contains("it was told to end"));
    assert_eq!(new.fate(), Fate::Stopped);
}
