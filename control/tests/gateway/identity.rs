//! What is not known of a name is a condition: none, an address, one that Encrypted ClientHello hides.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use weir_control::demo::stage::Family;

use crate::config::Settings;
use crate::weir::PATIENCE;
use crate::world::{HTTP, HTTPS, World, play};

/// Octets behind their length in two octets.
fn counted(octets: &[u8]) -> Vec<u8> {
    [&(octets.len() as u16).to_be_bytes()[..], octets].concat()
}

/// A ClientHello with a name or none, and with Encrypted ClientHello's outer extension or without.
fn hello(host: Option<&str>, ech: bool) -> Vec<u8> {
    let mut extensions = vec![0, 43, 0, 3, 2, 3, 4];
    if let Some(host) = host {
        let name = [&[0][..], &counted(host.as_bytes())].concat();
        extensions.extend([&[0, 0][..], &counted(&counted(&name))].concat());
    }
    if ech {
        // Outer, HKDF-SHA256 and AES-128-GCM, config 7, an encapsulated key, a payload.
        let outer = [&[0, 0, 1, 0, 1, 7][..], &counted(&[9; 32]), &counted(&[5; 144])].concat();
        extensions.extend([&[0xfe, 0x0d][..], &counted(&outer)].concat());
    }
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &counted(&extensions)].concat();
    let handshake = [&[1, 0][..], &counted(&body)].concat();
    [&[22, 3, 1][..], &counted(&handshake)].concat()
}

/// Whether a connection that begins so is reset before the server answers.
fn is_reset(mut stream: TcpStream, first: &[u8]) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(first).expect("sent");
    match stream.read(&mut [0; 100]) {
        Ok(got) => {
            assert!(got > 0, "neither an answer nor a reset");
            false
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            true
        }
    }
}

fn each(world: &World<'_>, port: u16, first: &[u8], reset: bool, what: &str) {
    for family in Family::BOTH {
        assert_eq!(is_reset(world.connect(family, port), first), reset, "{what} on {family:?}");
    }
}

#[test]
fn missing_literal_and_hidden_names_meet_rules() {
    let rules = r#"{ host = ["none", "address"], action = "reset" }, { ech = true, action = "reset" }"#;
    for handshake in ["through", "answer", "relay"] {
        let more = "[identity]\nech_public_names = [\"*.public.example\"]\n".to_owned();
        play(&Settings { handshake, rules, more, ..Settings::default() }, |world| {
            world.meet_neighbours();
            let tls = |host, ech, reset| {
                each(world, HTTPS, &hello(host, ech), reset, &format!("{handshake}: {host:?}, ech {ech}"));
            };
            tls(None, false, true);
            tls(Some("192.0.2.1"), false, true);
            tls(Some("2001:db8::1"), false, true);
            tls(Some("www.example"), false, false);
            // A browser's grease.
            tls(Some("www.example"), true, false);
            tls(Some("a.public.example"), true, true);
            tls(Some("a.public.example"), false, false);
            let http = |first: &str, reset| each(world, HTTP, first.as_bytes(), reset, first);
            http("GET /bytes/10 HTTP/1.0\r\n\r\n", true);
            http("GET /bytes/10 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", true);
            http("GET /bytes/10 HTTP/1.1\r\nHost: www.example\r\n\r\n", false);
        });
    }
}
