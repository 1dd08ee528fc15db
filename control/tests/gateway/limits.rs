//! What `[limits]` bounds, and QUIC that is refused.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use weir_control::demo::client;
use weir_control::demo::stage::Family;

use crate::config::Settings;
use crate::raw::RawClient;
use crate::weir::PATIENCE;
use crate::world::{HTTP, HTTPS, fetch_intact, play};

fn limited(handshake: &'static str, limits: &str) -> Settings {
    Settings { handshake, more: format!("[limits]\n{limits}\n"), ..Settings::default() }
}

#[test]
fn source_with_as_many_connections_as_allowed_gets_no_more_and_others_do() {
    for handshake in ["answer", "through"] {
        // Whichever workers they come to.
        let limited = limited(handshake, "source_flows = 2\nsource_over = \"reset\"");
        play(&Settings { queues: 2, ..limited }, |world| {
            for family in Family::BOTH {
                let mut open = [world.connect(family, HTTP), world.connect(family, HTTP)];
                open.iter_mut().for_each(|stream| fetch_intact(stream, 1000));
                let from = SocketAddr::new(family.addresses().client, 0);
                let error = client::connect(&world.lab.client, from, family.origin(HTTP)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{handshake} {family:?}");
                // An IPv6 /64 is one source.
                if family == Family::V4 {
                    let other = family.addresses().other_client;
                    let settings = world.stage.connect_from(other, family, HTTP);
                    assert!(settings.is_ok(), "{settings:?}");
                }
                open.iter_mut().for_each(|stream| fetch_intact(stream, 1000));
            }
            world.weir.assert_count("flows", "limited", 2);
            world.weir.assert_count("drops", "source-limit", 2);
        });
    }
}

#[test]
fn half_open_connections_beyond_the_limit_are_answered_with_cookies() {
    play(&limited("answer", "half_open = 4"), |world| {
        for family in Family::BOTH {
            let mut silent: Vec<RawClient> =
                (0..8).map(|at| RawClient::new(world, family, 5000 + at, HTTP)).collect();
            for client in &mut silent {
                client.send_syn();
                client.expect_syn_ack();
            }
            fetch_intact(&mut world.connect(family, HTTP), 10_000);
        }
        world.weir.comes_to("flows", "cookies-sent", 9);
        world.weir.comes_to("flows", "cookies-accepted", 1);
    });
}

#[test]
fn half_open_connections_beyond_the_limit_without_cookies_are_dropped() {
    let intercept = "syn_cookies = \"off\"\nfull = \"drop\"";
    play(&Settings { intercept, ..limited("answer", "half_open = 4") }, |world| {
        let of_both = |port| Family::BOTH.map(|family| RawClient::new(world, family, port, HTTP));
        let mut silent: Vec<RawClient> = [of_both(5000), of_both(5001)].into_iter().flatten().collect();
        for client in &mut silent {
            client.send_syn();
            client.expect_syn_ack();
        }
        for (mut late, count) in of_both(6000).into_iter().zip(1..) {
            late.send_syn();
            assert!(late.receive(Duration::from_millis(500), |tcp| tcp.syn).is_none());
            world.weir.assert_count("drops", "half-open-full", count);
            world.weir.assert_count("flows", "limited", count);
        }
    });
}

#[test]
fn quic_is_refused_so_that_browsers_fall_back() {
    for (quic, refused) in [("reject", true), ("pass", false)] {
        let intercept = if refused { "quic = \"reject\"" } else { "quic = \"pass\"" };
        play(&Settings { intercept, handshake: "answer", ..Settings::default() }, |world| {
            for family in Family::BOTH {
                let server = world.lab.server.run(|| UdpSocket::bind(family.origin(HTTPS))).unwrap();
                let from = SocketAddr::new(family.addresses().client, 0);
                let client = world.lab.client.run(|| UdpSocket::bind(from)).unwrap();
                client.connect(family.origin(HTTPS)).unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                let patience = if refused { Duration::from_millis(500) } else { PATIENCE };
                server.set_read_timeout(Some(patience)).unwrap();
                client.send(b"initial").unwrap();
                let mut buffer = [0; 16];
                let arrived = server.recv_from(&mut buffer).is_ok();
                assert_eq!(arrived, !refused, "{quic} {family:?}");
                if refused {
                    let error = client.recv(&mut buffer).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{quic} {family:?}");
                }
            }
        });
    }
}
