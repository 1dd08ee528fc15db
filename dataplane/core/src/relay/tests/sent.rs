//! The verdict `send`: no server before it, one of the pool's after it, and another when that one does not take it.

use super::*;

const WAITING: Start = Start::Held { bytes: 32, time: Nanos::from_secs(3), ahead: false };
const SEND: Verdict = Verdict::Send { from: LocalEnd::Client, spare: true };
const ALONE: Verdict = Verdict::Send { from: LocalEnd::Client, spare: false };

fn connect(to: Towards) -> Command {
    Command::Connect { to, from: LocalEnd::Client }
}

/// Accepted, `len` octets received, judged: and what it does then.
fn sent(len: u32, verdict: Verdict) -> (Relay, Vec<Command>) {
    let mut relay = Relay::new(NOW, LIMITS, WAITING);
    drain(&mut relay);
    after(&mut relay, NOW, Event::Received { from: Side::Client, len });
    relay.handle_verdict(NOW, verdict);
    let commands = drain(&mut relay);
    (relay, commands)
}

#[test]
fn waiting_connects_to_nobody_until_the_verdict() {
    let mut relay = Relay::new(NOW, LIMITS, WAITING);
    let until = NOW.saturating_add(Nanos::from_secs(3));
    let first = Command::Recv { from: Side::Client, most: 32 };
    assert_eq!(drain(&mut relay), [first, Command::ArmTimer(until)]);
    // Nobody is called, so no call is late: only the hold ends.
    after(&mut relay, until, Event::Timer);
    assert_eq!(relay.poll_ask(), Some(Ask::Unidentified(Unread::HoldTime)));
    relay.handle_verdict(until, Verdict::Pass);
    let commands = drain(&mut relay);
    assert_eq!(commands, [CONNECT, Command::ArmTimer(until.saturating_add(LIMITS.connect))]);
}

#[test]
fn sent_goes_to_the_pools_server_with_the_held_bytes() {
    let (mut relay, commands) = sent(20, SEND);
    let pooled = Command::ArmTimer(NOW.saturating_add(LIMITS.pooled));
    let more = Command::Recv { from: Side::Client, most: 44 };
    assert!(commands.starts_with(&[connect(Towards::Server)]), "{commands:?}");
    assert!(commands.contains(&pooled) && !commands.contains(&more), "{commands:?}");
    let commands = after(&mut relay, NOW, Event::Connected);
    assert_eq!(commands[0], Command::Send { to: Side::Server, len: 20 });
}

#[test]
fn settled_at_accept_connects_at_once() {
    let from = LocalEnd::Gateway;
    let mut relay = Relay::new(NOW, LIMITS, Start::Settled(Verdict::Send { from, spare: true }));
    assert_eq!(drain(&mut relay)[0], Command::Connect { to: Towards::Server, from });
    // The gateway has no other port to try: the kernel has looked at all of them.
    let commands = after(&mut relay, NOW, Event::ConnectFailed(Failure::AddressTaken));
    let spare = Command::Connect { to: Towards::Spare, from };
    assert!(commands.starts_with(&[Command::Close(Side::Server), spare]), "{commands:?}");
}

#[test]
fn refused_server_is_blamed_and_another_tried_once() {
    for failure in [Failure::Refused, Failure::Unreachable, Failure::TimedOut, Failure::Reset] {
        let (mut relay, _) = sent(20, SEND);
        let commands = after(&mut relay, NOW, Event::ConnectFailed(failure));
        assert_eq!(
            commands,
            [Command::Blame(Towards::Server), Command::Close(Side::Server), connect(Towards::Spare)],
            "{failure:?}"
        );
        let commands = after(&mut relay, NOW, Event::ConnectFailed(failure));
        assert_eq!(commands[0], Command::Blame(Towards::Spare), "{failure:?}");
        assert!(commands.contains(&Command::Reset(Side::Client)), "{failure:?}: {commands:?}");
        assert_eq!(relay.ending(), Some(Ending::ConnectFailed(failure)));
    }
}

#[test]
fn pool_of_one_server_has_no_second_try() {
    let (mut relay, _) = sent(20, ALONE);
    let commands = after(&mut relay, NOW, Event::ConnectFailed(Failure::Refused));
    assert_eq!(commands[0], Command::Blame(Towards::Server));
    assert!(commands.contains(&Command::Reset(Side::Client)), "{commands:?}");
}

#[test]
fn want_of_resources_here_blames_no_server() {
    let (mut relay, _) = sent(20, ALONE);
    let commands = after(&mut relay, NOW, Event::ConnectFailed(Failure::NoResources));
    assert!(!commands.contains(&Command::Blame(Towards::Server)), "{commands:?}");
}

#[test]
fn clients_port_taken_at_the_pools_server_is_given_up_there_alone() {
    let (mut relay, _) = sent(20, SEND);
    let any = |to| Command::Connect { to, from: LocalEnd::ClientAnyPort };
    let taken = Event::ConnectFailed(Failure::AddressTaken);
    assert!(after(&mut relay, NOW, taken).contains(&any(Towards::Server)));
    let commands = after(&mut relay, NOW, Event::ConnectFailed(Failure::Refused));
    assert!(commands.contains(&connect(Towards::Spare)), "{commands:?}");
}

#[test]
fn silent_server_is_left_for_another_as_soon_as_its_connect_has_stopped() {
    let (mut relay, _) = sent(20, SEND);
    let late = NOW.saturating_add(LIMITS.pooled);
    let commands = after(&mut relay, late, Event::Timer);
    assert_eq!(commands[0], Command::Cancel(Side::Server), "{commands:?}");
    let commands = after(&mut relay, late, Event::ConnectFailed(Failure::Cancelled));
    assert!(
        commands.starts_with(&[
            Command::Blame(Towards::Server),
            Command::Close(Side::Server),
            connect(Towards::Spare)
        ]),
        "{commands:?}"
    );
    let too_late = late.saturating_add(LIMITS.pooled);
    let commands = after(&mut relay, too_late, Event::Timer);
    assert_eq!(commands[0], Command::Blame(Towards::Spare), "{commands:?}");
    assert_eq!(relay.ending(), Some(Ending::ConnectFailed(Failure::TimedOut)));
}

#[test]
fn server_that_answers_while_it_is_being_left_is_kept() {
    let (mut relay, _) = sent(20, SEND);
    after(&mut relay, NOW.saturating_add(LIMITS.pooled), Event::Timer);
    let commands = after(&mut relay, NOW, Event::Connected);
    assert_eq!(commands[0], Command::Send { to: Side::Server, len: 20 });
    relay.handle_stop();
    assert!(drain(&mut relay).contains(&Command::Reset(Side::Server)));
}

#[test]
fn sent_after_a_server_was_connected_ahead_is_denied() {
    let mut relay = Relay::new(NOW, LIMITS, HELD);
    drain(&mut relay);
    relay.handle_verdict(NOW, SEND);
    drain(&mut relay);
    assert_eq!(relay.ending(), Some(Ending::Denied));
}
