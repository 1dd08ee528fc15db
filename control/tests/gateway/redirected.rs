//! Connections whose destination the box changes itself (DNAT, a port forward), while it is closed.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use weir_control::demo::stage::Family;
use weir_control::lab::host_state;

use crate::config::DENIED;
use crate::starts::{closed, fails};
use crate::traffic::connect_from;
use crate::weir::PATIENCE;
use crate::world::{HTTP, World, fetch, prepare};

/// Nobody's intercept has these: where connections to the intercepted port are sent, and one that is sent to that.
const ASIDE: u16 = 9998;
const INWARD: u16 = 9997;

/// Somebody's own rules: what is intercepted goes to another port, another port and the box's own address to what is intercepted.
fn redirect(world: &World<'_>) {
    for (family, words) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let addresses = family.addresses();
        let (origin, own) = (addresses.servers[0], addresses.lan_gateway);
        let lines = format!(
            "table {words} mine {{ chain pre {{ type nat hook prerouting priority dstnat;
                {words} daddr {origin} tcp dport {HTTP} dnat to {}
                {words} daddr {origin} tcp dport {INWARD} dnat to {web}
                {words} daddr {own} tcp dport {HTTP} dnat to {web}
            }}\n}}\n",
            family.origin(ASIDE),
            web = family.origin(HTTP),
        );
        world.sh(&world.lab.gateway, &format!("nft '{lines}'"));
    }
}

/// Whether somebody takes a connection of a client to that address, in this time.
fn connects(world: &World<'_>, family: Family, target: SocketAddr, patience: Duration) -> bool {
    let client = family.addresses().client;
    world.lab.client.run(|| connect_from(client, target, patience)).is_ok()
}

/// Whether connections to what is intercepted come through; all others do.
#[track_caller]
fn assert_judged(world: &World<'_>, intercepted: bool, when: &str) {
    for family in Family::BOTH {
        let addresses = family.addresses();
        let patience = if intercepted { PATIENCE } else { Duration::from_millis(400) };
        assert_eq!(connects(world, family, family.origin(HTTP), patience), intercepted, "{when}, {family:?}");
        for (address, port) in [(addresses.servers[0], INWARD), (addresses.lan_gateway, HTTP)] {
            let target = SocketAddr::new(address, port);
            let answered =
                world.connect_to(family, target).is_ok_and(|mut s| fetch(&mut s, DENIED, 100).is_ok());
            assert!(answered, "{when}: {target} is not the intercept's");
        }
    }
}

#[test]
fn box_that_is_closed_judges_what_it_redirects_as_a_weir_that_runs_by_where_the_client_sent_it() {
    prepare(&closed(), |world| {
        let _listening = Family::BOTH.map(|family| {
            let aside = family.origin(ASIDE);
            world.lab.server.run(|| TcpListener::bind(aside)).expect("the address is free")
        });
        redirect(world);
        world.before = host_state(&world.lab.gateway).expect("looked at");
        assert_judged(world, true, "without weir");
        world.weir.write_config(&closed().to_string().replace("\"wan0\"", "\"wan9\""));
        fails(world);
        assert_judged(world, false, "closed");
        assert_eq!(world.weir.clean().code(), 0);
        world.assert_as_before();
        assert_judged(world, true, "opened");
    });
}
