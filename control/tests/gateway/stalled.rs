//! What weir did not see, because it did not breathe for a moment and steering let it pass, does not hold a connection
//! up for good, and is no way around a rule.

use std::time::Duration;

use rustix::process::Signal;
use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, DENIED, Settings};
use crate::raw::RawClient;
use crate::weir::{PATIENCE, until};
use crate::world::{HTTP, World, play};

/// How long steering waits for a heartbeat: longer than a machine that does other things too stands still, since what is asked for then
/// passes by.
const HEARTBEAT: &str = "400ms";
/// Longer than that.
const STALE: Duration = Duration::from_millis(1200);
/// Between two transmissions of a client's request.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// The answers to SYNs go astray: they count as sent, and so are sent again (the kernel forgets a connection whose SYN-ACK cannot be
/// sent again, `inet_rtx_syn_ack`).
const HOLD_BACK: &str = "nft add table netdev late; \
    nft 'add chain netdev late out { type filter hook egress device server0 priority 0; }'; \
    nft add rule netdev late out tcp sport 80 tcp flags '& (syn | ack) == syn | ack' counter fwd to lo";

#[test]
fn answer_to_a_syn_that_passed_by_is_asked_for_again() {
    play(&Settings { heartbeat: HEARTBEAT, ..Settings::default() }, |world| {
        world.meet_neighbours();
        for (port, family) in (42_000..).step_by(10).zip(Family::BOTH) {
            for (port, name) in (port..).zip([ALLOWED, DENIED]) {
                miss_the_answer(world, RawClient::new(world, family, port, HTTP), name);
            }
        }
    });
}

/// The SYN goes through weir, the SYN-ACK past it, and then the client's request comes to it.
fn miss_the_answer(world: &mut World<'_>, mut client: RawClient, name: &str) {
    world.sh(&world.lab.server, HOLD_BACK);
    client.send_syn();
    until("the server answers", || {
        !world.sh(&world.lab.server, "nft list table netdev late").contains("counter packets 0")
    });
    world.weir.signal(Signal::STOP);
    std::thread::sleep(STALE);
    let watch = world.watch();
    world.sh(&world.lab.server, "nft delete table netdev late");
    client.expect_syn_ack();
    // The client's ACK passes by as well: for the server the connection is open.
    client.send_segment(client.next, b"", |_| {});
    std::thread::sleep(RETRANSMISSION);
    world.weir.signal(Signal::CONT);
    world.weir.status();
    std::thread::sleep(STALE);
    let request = format!("GET /whoami HTTP/1.1\r\nhost: {name}\r\n\r\n");
    let answered = (0..PATIENCE.as_millis() / RETRANSMISSION.as_millis()).find_map(|_| {
        client.send_segment(client.next, request.as_bytes(), |_| {});
        client.receive(RETRANSMISSION, |tcp| tcp.rst || tcp.acknowledgment_number != client.next)
    });
    let answered =
        answered.unwrap_or_else(|| panic!("{name}, {}: stuck; {}", client.local, world.weir.status()));
    assert_eq!(answered.rst, name == DENIED, "{name}: {answered:?}");
    assert_eq!(answered.sequence_number, client.expected, "{name}: {answered:?}");
    let (_, far) = watch.stop(client.local);
    let crossed: usize =
        far.tcp.iter().map(|f| if f.source == client.local { f.payload.len() } else { 0 }).sum();
    assert_eq!(crossed > 0, name == ALLOWED, "{name}: {crossed} bytes crossed");
}
