use super::*;
use crate::flow::key::Tuple;

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn question(answers: &Answers, n: u32) -> Question {
    let at = |addr: Addr, port| Endpoint { addr, port };
    let (client, destination) = (at(Addr::v4([10, 1, 0, 2]), 40_000), at(Addr::v4([192, 0, 2, 10]), 443));
    let name = name(&format!("n{n}.example"));
    let tag = answers.tag(name.as_str(), &destination.addr);
    let key = FlowKey::of(&Tuple { src: client, dst: destination });
    Question { key, client, destination, name, tag, waits: true }
}

#[test]
fn address_literals_need_no_resolver_but_for_the_log() {
    use Need::{Ask, Known, Nothing};
    use Verified::{Differs, Matches, Unknown};
    let rows = [
        ("www.example", false, "192.0.2.1", Nothing, Ask { waits: false }, Ask { waits: true }),
        ("www.example", true, "192.0.2.1", Nothing, Known(Unknown), Known(Unknown)),
        ("192.0.2.1", false, "192.0.2.1", Nothing, Known(Matches), Known(Matches)),
        ("192.0.2.1", false, "192.0.2.2", Nothing, Ask { waits: false }, Known(Differs)),
        ("2001:DB8::1", false, "2001:db8::1", Nothing, Known(Matches), Known(Matches)),
        ("2001:db8:0::1", false, "2001:db8::1", Nothing, Known(Matches), Known(Matches)),
        ("2001:db8::1", false, "192.0.2.1", Nothing, Ask { waits: false }, Known(Differs)),
        ("::ffff:192.0.2.1", false, "192.0.2.1", Nothing, Known(Matches), Known(Matches)),
    ];
    for (text, hidden, destination, off, log, reset) in rows {
        for (mode, wanted) in [(VerifyHost::Off, off), (VerifyHost::Log, log), (VerifyHost::Reset, reset)] {
            let got = need(mode, name(text).as_str(), hidden, destination.parse().unwrap());
            assert_eq!(got, wanted, "{text} {hidden} {destination} {mode:?}");
        }
    }
}

#[test]
fn answers_change_decisions_only_where_the_mode_is_reset() {
    let allow = Decision { action: Action::Allow, cause: Cause::Otherwise };
    let of = |action, cause| Decision { action, cause };
    for mode in [VerifyHost::Off, VerifyHost::Log] {
        for verified in Verified::ALL {
            assert_eq!(rule(mode, verified, Action::Drop, allow), allow);
        }
    }
    let reset = |verified, unidentified| rule(VerifyHost::Reset, verified, unidentified, allow);
    assert_eq!(reset(Verified::Matches, Action::Drop), allow);
    assert_eq!(reset(Verified::Differs, Action::Allow), of(Action::Reset, Cause::HostMismatch));
    assert_eq!(reset(Verified::Unknown, Action::Allow), allow);
    assert_eq!(reset(Verified::Unknown, Action::Reset), of(Action::Reset, Cause::HostUnknown));
    assert_eq!(reset(Verified::Unknown, Action::Drop), of(Action::Drop, Cause::HostUnknown));
}

#[test]
fn answers_are_of_a_name_and_an_address_and_end() {
    let mut answers = Answers::new(&[7; 32]);
    let asked = question(&answers, 1);
    assert_eq!(answers.get(asked.tag, Nanos(0)), None);
    answers.learn(&asked.answer(Verified::Matches, Nanos::from_secs(60)), Nanos::from_secs(100));
    assert_eq!(answers.get(asked.tag, Nanos::from_secs(159)), Some(Verified::Matches));
    assert_eq!(answers.get(asked.tag, Nanos::from_secs(160)), None);
    let other = answers.tag("n1.example", &Addr::v4([192, 0, 2, 11]));
    assert_eq!(answers.get(other, Nanos::from_secs(100)), None);
    assert_ne!(Answers::new(&[8; 32]).tag("n1.example", &asked.destination.addr), asked.tag);
    answers.learn(&asked.answer(Verified::Differs, Nanos::from_secs(10)), Nanos::from_secs(101));
    assert_eq!(answers.get(asked.tag, Nanos::from_secs(102)), Some(Verified::Differs), "the newer one");
    answers.learn(&asked.answer(Verified::Unknown, Nanos(0)), Nanos::from_secs(103));
    assert_eq!(answers.get(asked.tag, Nanos::from_secs(104)), Some(Verified::Differs), "not to be kept");
}

#[test]
fn answers_at_capacity_make_room_for_the_newest() {
    let mut answers = Answers::new(&[7; 32]);
    for n in 0..100_000 {
        let asked = question(&answers, n);
        let now = Nanos(u64::from(n) * 1000);
        answers.learn(&asked.answer(Verified::Matches, Nanos::from_secs(60)), now);
        assert_eq!(answers.get(asked.tag, now), Some(Verified::Matches));
    }
    assert_eq!(answers.entries.len(), ANSWERS);
}
