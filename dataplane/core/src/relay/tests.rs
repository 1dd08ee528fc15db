mod doors;
mod judged;
mod second;
mod sent;
mod sim;
mod verified;

use super::*;
use crate::pace::{Rate, Rates, RulePace};

const NOW: Nanos = Nanos(1_000);
const LIMITS: Limits = Limits {
    buffer: 64,
    connect: Nanos::from_secs(5),
    pooled: Nanos::from_secs(2),
    idle: Nanos::from_secs(100),
    half_closed: Nanos::from_secs(50),
    quiet: Nanos::from_secs(30),
};
const HELD: Start = Start::Held { bytes: 32, time: Nanos::from_secs(3), ahead: true };
const CONNECT: Command = Command::Connect { to: Towards::Destination, from: LocalEnd::Client };

fn drain(relay: &mut Relay) -> Vec<Command> {
    std::iter::from_fn(|| relay.poll()).collect()
}

fn after(relay: &mut Relay, now: Nanos, event: Event) -> Vec<Command> {
    relay.handle(now, event);
    drain(relay)
}

fn span(at: u32, len: u32) -> Span {
    Span { at, len }
}

/// Open, connected, receiving from both.
fn established() -> Relay {
    let mut relay = Relay::new(NOW, LIMITS, Start::Settled(Verdict::Pass));
    drain(&mut relay);
    after(&mut relay, NOW, Event::Connected);
    relay
}

#[test]
fn accepted_connects_and_receives_at_once() {
    let mut relay = Relay::new(NOW, LIMITS, Start::Settled(Verdict::Pass));
    assert_eq!(
        drain(&mut relay),
        [
            CONNECT,
            Command::Recv { from: Side::Client, most: 64 },
            Command::ArmTimer(NOW.saturating_add(LIMITS.connect)),
        ]
    );
    let received = Event::Received { from: Side::Client, len: 10 };
    assert_eq!(
        after(&mut relay, NOW, received),
        [Command::Recv { from: Side::Client, most: 54 }],
        "not connected yet"
    );
    assert_eq!(
        after(&mut relay, NOW, Event::Connected),
        [Command::Send { to: Side::Server, len: 10 }, Command::Recv { from: Side::Server, most: 64 }]
    );
}

#[test]
fn held_sends_nothing_before_the_verdict_and_everything_after() {
    let mut relay = Relay::new(NOW, LIMITS, HELD);
    drain(&mut relay);
    after(&mut relay, NOW, Event::Connected);
    let commands = after(&mut relay, NOW, Event::Received { from: Side::Client, len: 20 });
    assert_eq!(commands, [Command::Recv { from: Side::Client, most: 12 }], "no more than the hold");
    assert_eq!(relay.poll_ask(), Some(Ask::Inspect { len: 20, budget: 32 }));
    assert_eq!(relay.poll_ask(), None);
    relay.handle_verdict(NOW, Verdict::Pass);
    assert_eq!(drain(&mut relay), [Command::Send { to: Side::Server, len: 20 }]);
}

#[test]
fn held_asks_why_it_goes_unread() {
    let client = Event::Received { from: Side::Client, len: 5 };
    let server = Event::Received { from: Side::Server, len: 5 };
    let full = Event::Received { from: Side::Client, len: 32 };
    let hold_over = NOW.saturating_add(Nanos::from_secs(3));
    let rows: [(&str, &[Event], Option<Unread>); 6] = [
        ("server first", &[server], Some(Unread::ServerFirst)),
        ("client, then server", &[client, server], None),
        ("client closes", &[Event::Eof(Side::Client)], Some(Unread::ClientClosed)),
        ("client closes after bytes", &[client, Event::Eof(Side::Client)], Some(Unread::ClientClosed)),
        ("hold full", &[full], Some(Unread::HoldFull)),
        ("hold over", &[client, Event::Timer], Some(Unread::HoldTime)),
    ];
    for (name, events, expected) in rows {
        let mut relay = Relay::new(NOW, LIMITS, HELD);
        drain(&mut relay);
        after(&mut relay, NOW, Event::Connected);
        for event in events {
            after(&mut relay, if *event == Event::Timer { hold_over } else { NOW }, *event);
        }
        let asks: Vec<Ask> = std::iter::from_fn(|| relay.poll_ask()).collect();
        let unread = asks.iter().find_map(|ask| match ask {
            Ask::Unidentified(why) => Some(*why),
            _ => None,
        });
        assert_eq!(unread, expected, "{name}: {asks:?}");
    }
}

#[test]
fn denied_resets_both_and_closes_when_nothing_is_under_way() {
    let mut relay = Relay::new(NOW, LIMITS, HELD);
    drain(&mut relay);
    after(&mut relay, NOW, Event::Connected);
    after(&mut relay, NOW, Event::Received { from: Side::Client, len: 20 });
    relay.handle_verdict(NOW, Verdict::Reset);
    assert_eq!(drain(&mut relay), [Command::Reset(Side::Server), Command::Reset(Side::Client)]);
    let cancelled = |side| Event::RecvFailed(side, Failure::Cancelled);
    assert_eq!(after(&mut relay, NOW, cancelled(Side::Client)), [Command::Close(Side::Client)]);
    assert_eq!(after(&mut relay, NOW, cancelled(Side::Server)), [Command::Close(Side::Server)]);
    assert!(relay.is_done());
    assert_eq!((relay.ending(), relay.traffic()), (Some(Ending::Denied), (0, 0)));
}

#[test]
fn dropped_hushes_the_client_until_the_quiet_time_is_over() {
    let mut relay = Relay::new(NOW, LIMITS, HELD);
    drain(&mut relay);
    after(&mut relay, NOW, Event::Received { from: Side::Client, len: 32 });
    relay.handle_verdict(NOW, Verdict::Drop);
    let until = NOW.saturating_add(LIMITS.quiet);
    assert_eq!(drain(&mut relay), [Command::Reset(Side::Server)], "the connect is under way");
    let commands = after(&mut relay, NOW, Event::ConnectFailed(Failure::Cancelled));
    assert_eq!(commands, [Command::Close(Side::Server)], "the client is watched since the hold is full");
    assert!(relay.needs_no_buffers() && !relay.is_done());
    // The timer armed before (hold) comes first.
    let early = NOW.saturating_add(Nanos::from_secs(3));
    assert_eq!(after(&mut relay, early, Event::Timer), [Command::ArmTimer(until)]);
    assert_eq!(after(&mut relay, until, Event::Timer), [Command::Reset(Side::Client)]);
    assert_eq!(after(&mut relay, until, Event::Unwatched(Side::Client)), [Command::Close(Side::Client)]);
    assert!(relay.is_done());
}

#[test]
fn refused_at_accept_never_connects() {
    let mut relay = Relay::new(NOW, LIMITS, Start::Settled(Verdict::Reset));
    assert_eq!(drain(&mut relay), [Command::Reset(Side::Client), Command::Close(Side::Client)]);
    assert!(relay.is_done());
}

#[test]
fn eof_travels_on_after_the_last_byte_and_the_other_direction_lives() {
    let mut relay = established();
    after(&mut relay, NOW, Event::Received { from: Side::Client, len: 8 });
    assert_eq!(after(&mut relay, NOW, Event::Eof(Side::Client)), [Command::Watch(Side::Client)]);
    let sent = Event::Sent { to: Side::Server, len: 5 };
    assert_eq!(after(&mut relay, NOW, sent), [Command::Send { to: Side::Server, len: 3 }]);
    let sent = Event::Sent { to: Side::Server, len: 3 };
    assert_eq!(after(&mut relay, NOW, sent), [Command::Shutdown(Side::Server)]);
    let received = Event::Received { from: Side::Server, len: 8 };
    assert!(after(&mut relay, NOW, received).contains(&Command::Send { to: Side::Client, len: 8 }));
    after(&mut relay, NOW, Event::Sent { to: Side::Client, len: 8 });
    assert_eq!(
        after(&mut relay, NOW, Event::Eof(Side::Server)),
        [Command::Shutdown(Side::Client), Command::Close(Side::Server), Command::Cancel(Side::Client)]
    );
    assert_eq!(after(&mut relay, NOW, Event::Unwatched(Side::Client)), [Command::Close(Side::Client)]);
    assert_eq!((relay.ending(), relay.traffic()), (Some(Ending::Finished), (8, 8)));
}

#[test]
fn full_buffer_stops_receiving_until_a_quarter_is_free() {
    let mut relay = established();
    let full = Event::Received { from: Side::Server, len: 64 };
    assert_eq!(
        after(&mut relay, NOW, full),
        [Command::Send { to: Side::Client, len: 64 }, Command::Watch(Side::Server)]
    );
    let sent = Event::Sent { to: Side::Client, len: 10 };
    assert_eq!(after(&mut relay, NOW, sent), [Command::Send { to: Side::Client, len: 54 }]);
    let sent = Event::Sent { to: Side::Client, len: 10 };
    assert_eq!(
        after(&mut relay, NOW, sent),
        [Command::Send { to: Side::Client, len: 44 }, Command::Recv { from: Side::Server, most: 20 }]
    );
    assert_eq!(relay.buffered(), 44);
}

#[test]
fn receive_without_memory_is_asked_for_again_after_a_send() {
    let mut relay = established();
    after(&mut relay, NOW, Event::Received { from: Side::Server, len: 8 });
    let starved = after(&mut relay, NOW, Event::NoRoom(Side::Server));
    assert_eq!(starved, [Command::Watch(Side::Server)], "its RST is still noticed");
    let commands = after(&mut relay, NOW, Event::Sent { to: Side::Client, len: 8 });
    assert_eq!(commands, [Command::Recv { from: Side::Server, most: 64 }]);
}

#[test]
fn failure_of_one_leg_resets_the_other() {
    let rows: [(&str, Event, Ending); 4] = [
        (
            "client RST",
            Event::RecvFailed(Side::Client, Failure::Reset),
            Ending::Failed(Side::Client, Failure::Reset),
        ),
        (
            "server RST",
            Event::RecvFailed(Side::Server, Failure::Reset),
            Ending::Failed(Side::Server, Failure::Reset),
        ),
        (
            "server gone",
            Event::RecvFailed(Side::Server, Failure::TimedOut),
            Ending::Failed(Side::Server, Failure::TimedOut),
        ),
        (
            "client unreachable",
            Event::RecvFailed(Side::Client, Failure::Unreachable),
            Ending::Failed(Side::Client, Failure::Unreachable),
        ),
    ];
    for (name, event, ending) in rows {
        let mut relay = established();
        let commands = after(&mut relay, NOW, event);
        assert!(commands.contains(&Command::Reset(Side::Client)), "{name}: {commands:?}");
        assert!(commands.contains(&Command::Reset(Side::Server)), "{name}: {commands:?}");
        assert_eq!(relay.ending(), Some(ending), "{name}");
    }
}

#[test]
fn client_reset_while_connecting_cancels_the_connect() {
    let mut relay = Relay::new(NOW, LIMITS, Start::Settled(Verdict::Pass));
    drain(&mut relay);
    let commands = after(&mut relay, NOW, Event::RecvFailed(Side::Client, Failure::Reset));
    assert_eq!(
        commands,
        [Command::Reset(Side::Server), Command::Reset(Side::Client), Command::Close(Side::Client)]
    );
    assert!(!relay.is_done());
    // The connect may have been faster than its cancellation.
    assert_eq!(after(&mut relay, NOW, Event::Connected), [Command::Close(Side::Server)]);
    assert!(relay.is_done());
}

#[test]
fn connect_failure_resets_the_client() {
    for failure in [Failure::Refused, Failure::Unreachable, Failure::TimedOut, Failure::NoResources] {
        let mut relay = Relay::new(NOW, LIMITS, HELD);
        drain(&mut relay);
        let commands = after(&mut relay, NOW, Event::ConnectFailed(failure));
        assert!(commands.contains(&Command::Reset(Side::Client)), "{failure:?}: {commands:?}");
        assert_eq!(relay.ending(), Some(Ending::ConnectFailed(failure)));
    }
}

#[test]
fn clients_port_taken_connects_from_another_once() {
    let mut relay = Relay::new(NOW, LIMITS, Start::Settled(Verdict::Pass));
    drain(&mut relay);
    assert_eq!(
        after(&mut relay, NOW, Event::ConnectFailed(Failure::AddressTaken)),
        [
            Command::Close(Side::Server),
            Command::Connect { to: Towards::Destination, from: LocalEnd::ClientAnyPort }
        ]
    );
    after(&mut relay, NOW, Event::ConnectFailed(Failure::AddressTaken));
    assert_eq!(relay.ending(), Some(Ending::ConnectFailed(Failure::AddressTaken)));
}

#[test]
fn timeouts_end_what_makes_no_progress() {
    let connect = NOW.saturating_add(LIMITS.connect);
    let mut relay = Relay::new(NOW, LIMITS, Start::Settled(Verdict::Pass));
    drain(&mut relay);
    after(&mut relay, connect, Event::Timer);
    assert_eq!(relay.ending(), Some(Ending::ConnectFailed(Failure::TimedOut)));

    // The timer of the connect comes late and is armed anew for the idle time, counted from the last byte.
    let mut relay = established();
    after(&mut relay, connect, Event::Received { from: Side::Client, len: 1 });
    let idle = connect.saturating_add(LIMITS.idle);
    assert_eq!(after(&mut relay, connect, Event::Timer), [Command::ArmTimer(idle)]);
    after(&mut relay, idle, Event::Timer);
    assert_eq!(relay.ending(), Some(Ending::Idle));

    let mut relay = established();
    after(&mut relay, NOW, Event::Eof(Side::Client));
    after(&mut relay, NOW.saturating_add(LIMITS.half_closed), Event::Timer);
    assert_eq!(relay.ending(), Some(Ending::Idle), "half-closed waits less");
}

#[test]
fn reset_while_back_pressured_is_noticed_also_behind_a_fin_in_either_direction() {
    let full = Event::Received { from: Side::Client, len: 64 };
    let rows: [&[Event]; 4] = [
        &[full],
        &[full, Event::Eof(Side::Server)],
        &[Event::Eof(Side::Server), full],
        &[Event::Received { from: Side::Client, len: 9 }, Event::Eof(Side::Client), Event::Eof(Side::Server)],
    ];
    for events in rows {
        let mut relay = established();
        let mut commands = Vec::new();
        for event in events {
            commands.extend(after(&mut relay, NOW, *event));
        }
        assert!(commands.contains(&Command::Watch(Side::Client)), "{events:?}: {commands:?}");
        let commands = after(&mut relay, NOW, Event::Hangup(Side::Client));
        assert!(commands.contains(&Command::Reset(Side::Server)), "{events:?}: {commands:?}");
        assert_eq!(relay.ending(), Some(Ending::Failed(Side::Client, Failure::Reset)), "{events:?}");
    }
}

#[test]
fn leg_that_cannot_be_watched_is_not_asked_for_again() {
    let mut relay = established();
    let commands = after(&mut relay, NOW, Event::Received { from: Side::Client, len: 64 });
    assert!(commands.contains(&Command::Watch(Side::Client)), "{commands:?}");
    assert_eq!(after(&mut relay, NOW, Event::Unwatched(Side::Client)), []);
    assert_eq!(relay.ending(), None);
}

#[test]
fn late_completions_change_nothing() {
    let mut relay = established();
    for event in [
        Event::Connected,
        Event::ConnectFailed(Failure::Refused),
        Event::Sent { to: Side::Server, len: 1 },
        Event::SendFailed(Side::Client, Failure::Reset),
        Event::Received { from: Side::Client, len: 65 },
        Event::Hangup(Side::Client),
    ] {
        assert_eq!(after(&mut relay, NOW, event), [], "{event:?}");
    }
    assert_eq!((relay.ending(), relay.traffic(), relay.buffered()), (None, (0, 0), 0));
}

#[test]
fn bandwidth_makes_octets_wait_for_their_turn_and_the_timer_says_when() {
    let now = Nanos::from_secs(10);
    let mut relay = Relay::new(now, LIMITS, Start::Settled(Verdict::Pass));
    let rates = Rates { connection: Some(Rate(100)), ..Rates::default() };
    relay.handle_throttle(RulePace::new(rates).expect("a rate").throttle());
    drain(&mut relay);
    after(&mut relay, now, Event::Connected);
    let commands = after(&mut relay, now, Event::Received { from: Side::Client, len: 20 });
    assert!(commands.contains(&Command::Send { to: Side::Server, len: 20 }), "{commands:?}");
    after(&mut relay, now, Event::Sent { to: Side::Server, len: 20 });
    let commands = after(&mut relay, now, Event::Received { from: Side::Client, len: 44 });
    // A tenth of a second is there at once, and 20 octets take two.
    let turn = now.saturating_add(Nanos::from_millis(100));
    assert!(commands.contains(&Command::ArmTimer(turn)), "{commands:?}");
    assert!(!commands.iter().any(|command| matches!(command, Command::Send { .. })), "{commands:?}");
    let commands = after(&mut relay, turn, Event::Timer);
    assert!(commands.contains(&Command::Send { to: Side::Server, len: 44 }), "{commands:?}");
    // The other direction has its own.
    let commands = after(&mut relay, turn, Event::Received { from: Side::Server, len: 30 });
    assert!(commands.contains(&Command::Send { to: Side::Client, len: 30 }), "{commands:?}");
}
