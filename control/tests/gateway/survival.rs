//! Many transfers in the express lane while weir is killed and started again: the kernel carries them, and a new weir takes
//! them over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use weir_control::demo::client::{self, Response};
use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, Settings};
use crate::express::ready;
use crate::idle::assert_idle;
use crate::send::{POOLED, sending, servers};
use crate::weir::until;
use crate::world::{HTTP, World, fetch_intact, play};

/// Transfers at once: each way, of both families, to where the client wanted and to a pool's server.
const TRANSFERS: usize = 1000;
/// Octets of a transfer, and how many of them a second: long enough to be killed in.
const BODY: u64 = 720 << 10;
const RATE: u64 = 20 << 10;

struct Transfer {
    client: SocketAddr,
    host: &'static str,
    progress: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<Response>>,
}

impl Transfer {
    fn start(world: &World<'_>, number: usize) -> Self {
        let (family, host) = (Family::BOTH[number & 1], [ALLOWED, POOLED][number >> 1 & 1]);
        let mut stream = world.connect(family, HTTP);
        let client = stream.local_addr().expect("connected");
        let progress = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&progress);
        let path = format!("/bytes/{BODY}?rate={RATE}");
        let thread = std::thread::spawn(move || client::get(&mut stream, host, &path, &counter));
        Self { client, host, progress, thread }
    }

    fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}

/// RSTs that came in at both ends since [`count_resets`].
pub fn resets(world: &World<'_>) -> Vec<u64> {
    let count = |namespace| {
        let listed: serde_json::Value =
            serde_json::from_str(&world.sh(namespace, "nft -j list counter inet resets seen")).expect("JSON");
        listed["nftables"][1]["counter"]["packets"].as_u64().expect("a counter")
    };
    [&world.lab.client, &world.lab.server].map(count).to_vec()
}

pub fn count_resets(world: &World<'_>) {
    let table = "table inet resets { counter seen { }; chain input { type filter hook input priority 0; \
                 tcp flags & rst == rst counter name seen; }; }";
    for namespace in [&world.lab.client, &world.lab.server] {
        world.sh(namespace, &format!("nft '{table}'"));
    }
}

#[test]
fn thousand_transfers_half_of_them_joined_outlive_a_kill_and_are_taken_over() {
    let settings = Settings { express: "always", ..sending("through", &servers(1, HTTP), "") };
    play(&settings, |world| {
        ready(world);
        let transfers: Vec<Transfer> = (0..TRANSFERS).map(|number| Transfer::start(world, number)).collect();
        until("all of them are in the lane", || world.weir.status()["flows_express"] == TRANSFERS);
        count_resets(world);
        let seen: Vec<u64> = transfers.iter().map(Transfer::progress).collect();
        assert!(seen.iter().all(|octets| *octets < BODY), "the machine is too slow for this test");
        world.weir.kill();
        until("all of them go on without weir", || {
            transfers.iter().zip(&seen).all(|(transfer, seen)| transfer.progress() > *seen)
        });
        world.weir.start();
        let flows = world.weir.flows();
        let adopted = |transfer: &&Transfer| {
            let client = transfer.client.to_string();
            let flow = flows.iter().find(|flow| flow["client"] == client.as_str());
            // Its name tells its rule, and it is none of this weir's.
            let verdict = |host| if host == POOLED { "send" } else { "allow" };
            flow.is_some_and(|flow| flow["adopted"] == true && flow["verdict"] == verdict(transfer.host))
        };
        let running = transfers.iter().filter(|transfer| transfer.progress() < BODY).count();
        assert!(transfers.iter().filter(adopted).count() >= running, "{running} are running");
        for Transfer { client, thread, .. } in transfers {
            let response = thread.join().expect("it does not panic");
            let response = response.unwrap_or_else(|error| panic!("{client}: {error}"));
            assert!(response.is_intact() && response.length == BODY, "{client}: {response:?}");
        }
        assert_eq!(resets(world), [0, 0], "at the client and at the servers");
        until("the lane is empty", || world.weir.status()["flows_express"] == 0);
        for family in Family::BOTH {
            fetch_intact(&mut world.connect(family, HTTP), 1 << 20);
        }
        assert_idle(&world.weir);
    });
}
