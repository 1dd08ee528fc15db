//! One connection of each kind and family under policies that differ.

use super::*;
use crate::policy::{InterceptSpec, NameSet, PolicyBuilder, PoolSpec, RuleSpec};

const CLIENTS: [&str; 2] = ["10.77.1.2:4000", "[fd77:1::2]:4000"];
const SERVERS: [&str; 2] = ["10.77.2.2:443", "[fd77:2::2]:443"];
const POOL: [&str; 2] = ["10.77.2.9:443", "[fd77:2::9]:443"];

fn live(family: usize) -> Live<'static> {
    let server = SERVERS[family].parse().unwrap();
    Live {
        port: Some(PortId(0)),
        on_relay: false,
        client: CLIENTS[family].parse().unwrap(),
        destination: server,
        server,
        signed: false,
        evidence: Evidence::Found,
        protocol: Some(Protocol::Tls),
        host: Some("a.example"),
        ech: false,
        alpn: &[b"h2"],
        verified: None,
        hello_retry: false,
    }
}

fn policy(edit: impl FnOnce(InterceptSpec) -> InterceptSpec) -> Policy {
    let spec = edit(InterceptSpec::new("web").from_port(PortId(0)).to_any().tcp([443]));
    let pool = POOL.iter().fold(PoolSpec::new("pool"), |pool, addr| pool.server(addr.parse().unwrap()));
    PolicyBuilder::new(2).intercept(spec).pool(pool).build().unwrap()
}

fn by_name(action: Action) -> RuleSpec {
    let names = NameSet::parse(["a.example"]).unwrap();
    RuleSpec { host: Some(names.into()), ..RuleSpec::new(action) }
}

fn by_alpn(action: Action) -> RuleSpec {
    RuleSpec { alpn: vec!["h2".into()], ..RuleSpec::new(action) }
}

const SEND: Action = Action::Send(crate::ids::PoolId(0));

#[test]
fn verdict_of_a_live_connection_is_that_of_a_new_one() {
    let rows: [(&str, RuleSpec, Outcome); 6] = [
        ("refused by name", by_name(Action::Reset), Outcome::Ended),
        ("refused by ALPN", by_alpn(Action::Drop), Outcome::Ended),
        ("allowed by name", by_name(Action::Allow), Outcome::Kept),
        ("sent elsewhere", by_name(SEND), Outcome::Elsewhere),
        ("relayed at the SYN", RuleSpec::new(Action::Relay), Outcome::Kept),
        ("of another name", RuleSpec { tcp: vec![80..=80], ..by_name(Action::Reset) }, Outcome::Kept),
    ];
    for (what, rule, wanted) in rows {
        let policy = policy(|spec| spec.rule(rule));
        for family in 0..2 {
            assert_eq!(judge(&policy, &live(family)).outcome, wanted, "{what}, family {family}");
        }
    }
}

#[test]
fn what_is_not_known_decides_only_where_addresses_do() {
    for family in 0..2 {
        let unknown = Live { evidence: Evidence::Unknown, protocol: None, host: None, ..live(family) };
        let refuse_all = policy(|spec| spec.rule(RuleSpec::new(Action::Reset)));
        assert_eq!(judge(&refuse_all, &unknown).outcome, Outcome::Ended);
        let after_name = policy(|spec| spec.rule(by_name(Action::Allow)).rule(RuleSpec::new(Action::Reset)));
        assert_eq!(judge(&after_name, &unknown).outcome, Outcome::Unknown);
        let differing = policy(|spec| InterceptSpec { unidentified: Action::Reset, ..spec });
        assert_eq!(judge(&differing, &unknown).outcome, Outcome::Unknown);
        let nothing = Live { evidence: Evidence::Nothing, ..unknown };
        assert_eq!(judge(&differing, &nothing).outcome, Outcome::Ended);
    }
}

#[test]
fn connection_that_is_not_intercepted_any_more_goes_on() {
    let policy = policy(|spec| InterceptSpec { tcp: vec![80..=80], ..spec }.rule(by_name(Action::Reset)));
    for (family, server) in POOL.iter().enumerate() {
        let again = judge(&policy, &live(family));
        assert_eq!((again.outcome, again.intercept), (Outcome::Kept, None));
        let sent = Live { server: server.parse().unwrap(), ..live(family) };
        assert_eq!(judge(&policy, &sent).outcome, Outcome::Elsewhere);
    }
}

#[test]
fn connection_that_was_sent_stays_where_its_pool_still_has_the_server() {
    let to_pool = policy(|spec| spec.rule(by_name(SEND)));
    for (family, server) in POOL.iter().enumerate() {
        let sent = Live { server: server.parse().unwrap(), ..live(family) };
        assert_eq!(judge(&to_pool, &sent).outcome, Outcome::Kept);
        let gone = Live { server: "192.0.2.1:443".parse().unwrap(), ..sent };
        assert_eq!(judge(&to_pool, &gone).outcome, Outcome::Elsewhere);
        let signed = Live { signed: true, ..live(family) };
        assert_eq!(judge(&to_pool, &signed).outcome, Outcome::Ended);
    }
}

/// What is known of a name decides under `verify_host`; no resolver is asked, so that what is not known stays.
#[test]
fn verify_host_is_judged_by_what_is_known_of_the_name() {
    use crate::policy::VerifyHost;
    let strict = policy(|spec| InterceptSpec {
        verify_host: VerifyHost::Reset,
        unidentified: Action::Drop,
        ..spec.rule(by_alpn(Action::Allow))
    });
    let log = policy(|spec| InterceptSpec { verify_host: VerifyHost::Log, ..spec });
    let rows = [
        (Some(Verified::Matches), Outcome::Kept, Action::Allow),
        (Some(Verified::Differs), Outcome::Ended, Action::Reset),
        (Some(Verified::Unknown), Outcome::Ended, Action::Drop),
        (None, Outcome::Unverified, Action::Allow),
    ];
    for (family, server) in SERVERS.into_iter().enumerate() {
        for (verified, outcome, action) in rows {
            let live = Live { verified, ..live(family) };
            let again = judge(&strict, &live);
            let decided = again.decision.map(|decision| decision.action);
            assert_eq!((again.outcome, decided), (outcome, Some(action)), "{verified:?}");
            assert_eq!(judge(&log, &live).outcome, Outcome::Kept, "what is logged passes");
            // Nothing is compared where no name is asked for.
            assert_eq!(judge(&strict, &Live { host: None, ..live }).outcome, Outcome::Kept);
        }
        let literal = server.parse::<SocketAddr>().unwrap().ip().to_string();
        assert_eq!(judge(&strict, &Live { host: Some(&literal), ..live(family) }).outcome, Outcome::Kept);
        let mut tally = Tally::default();
        tally.count(&judge(&strict, &live(family)));
        assert_eq!(tally, Tally { unverified: 1, ..Tally::default() });
    }
}
