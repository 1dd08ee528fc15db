//! What a plan wants of sysctls that depend on what else there is.

use super::*;
use crate::host::InterceptSpec;

const FORWARDING: &str = "sysctl -w net.ipv6.conf.all.forwarding=1";
const ACCEPT_RA: &str = "sysctl -w net.ipv6.conf.wan.accept_ra=2";

fn accept_ra() -> Key {
    Key::of_device(6, "wan", "accept_ra")
}

/// A host with two default routes by one device, both learned from routers.
fn host(forwarding: &str, value: &str) -> Observed {
    let forwarding = (Key::new("net/ipv6/conf/all/forwarding"), forwarding.to_owned());
    Observed {
        ipv6: true,
        sysctls: [forwarding, (accept_ra(), value.to_owned())].into(),
        ra_default_routes: vec!["wan".to_owned(), "wan".to_owned()],
        ..Observed::default()
    }
}

/// Commands and states of what is wanted of IPv6's sysctls, in their order.
fn wanted(seen: &Observed) -> Vec<(String, Status)> {
    let steps = sysctl_steps(&HostSpec::default(), seen);
    let all = steps.into_iter().map(|step| (step.action.title(), step.status));
    all.filter(|(title, _)| title.contains("net.ipv6.")).collect()
}

#[test]
fn learned_default_route_is_kept_before_forwarding_is_switched_on() {
    let both = [ACCEPT_RA, FORWARDING].map(|title| (title.to_owned(), Status::Missing));
    assert_eq!(wanted(&host("0", "1")), both);
}

#[test]
fn learned_default_route_that_is_in_no_danger_is_left_alone() {
    let (none, no_ipv6) = (Vec::new(), Observed { ipv6: false, ..host("0", "1") });
    let unlearned = Observed { ra_default_routes: none, ..host("0", "1") };
    let rows = [host("0", "0"), host("0", "2"), host("1", "1"), unlearned, no_ipv6];
    for seen in rows {
        assert!(wanted(&seen).iter().all(|(title, _)| title != ACCEPT_RA), "{seen:?}");
    }
}

#[test]
fn what_keeps_a_route_stays_wanted_while_it_is_weirs() {
    for (value, status) in [("2", Some(Status::Present)), ("1", Some(Status::Conflicting)), ("0", None)] {
        // The route may be gone for a moment.
        for routes in [Vec::new(), vec!["wan".to_owned()]] {
            let set = [(accept_ra(), "2".to_owned())].into();
            let seen = Observed { set, ra_default_routes: routes, ..host("1", value) };
            let found = wanted(&seen).into_iter().find(|(title, _)| title == ACCEPT_RA);
            assert_eq!(found.map(|(_, status)| status), status, "{value}");
        }
    }
}

#[test]
fn connections_that_take_over_marks_are_warned_of_where_there_is_a_relay() {
    let intercept = InterceptSpec {
        name: "web".to_owned(),
        from: vec!["lan".to_owned()],
        tagged: false,
        to: Vec::new(),
        ports: vec![(443, 443)],
        reject_quic: false,
    };
    let relayed = HostSpec { intercepts: vec![intercept], ..HostSpec::default() };
    for (spec, value, warned) in
        [(&relayed, "1", true), (&relayed, "0", false), (&HostSpec::default(), "1", false)]
    {
        let sysctls = [(Key::new("net/ipv4/tcp_fwmark_accept"), value.to_owned())].into();
        let warnings = warnings(spec, &Observed { sysctls, ..Observed::default() });
        let found = warnings.iter().any(|text| text.contains("sysctl -w net.ipv4.tcp_fwmark_accept=0"));
        assert_eq!(found, warned, "{value}: {warnings:?}");
    }
}
