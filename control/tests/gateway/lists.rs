//! Lists that change under a running gateway: connections that are open keep their verdict, new ones get the new one.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Instant;

use weir_control::demo::stage::Family;

use crate::config::{ALLOWED, Settings};
use crate::weir::until;
use crate::world::{Download, HTTP, World, fetch, fetch_intact, prepare};

/// A name that a list takes in.
const LATE: &str = "late.example";

fn settings(handshake: &'static str) -> Settings {
    let rules =
        r#"{ host_file = "names.txt", action = "reset" }, { from_file = "clients.txt", action = "reset" }"#;
    Settings { handshake, rules, ..Settings::default() }
}

/// Writes a file beside the configuration.
fn write(world: &World<'_>, name: &str, content: &str) {
    let path = format!("/run/weir/{name}");
    world.lab.gateway.run(|| std::fs::write(path, content)).expect("the lab has a /run");
}

/// Puts a file in place as editors and downloaders do: beside it, and then over it.
fn replace(world: &World<'_>, name: &str, content: &str) {
    write(world, ".draft", content);
    let to = format!("/run/weir/{name}");
    world.lab.gateway.run(|| std::fs::rename("/run/weir/.draft", to)).expect("the lab has a /run");
}

fn is_reset(world: &World<'_>, family: Family, host: &str) -> bool {
    // The relay may have judged by addresses alone before the client has its socket.
    let server = SocketAddr::new(family.addresses().servers[0], HTTP);
    match world.connect_to(family, server).and_then(|mut stream| fetch(&mut stream, host, 100)) {
        Ok(response) => {
            assert!(response.is_intact());
            false
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            true
        }
    }
}

#[test]
fn name_put_on_a_list_is_refused_and_no_open_connection_is_touched() {
    for handshake in ["through", "answer", "relay"] {
        prepare(&settings(handshake), |world| {
            write(world, "names.txt", "denied.example\n");
            write(world, "clients.txt", "192.0.2.0/24\n2001:db8::/32\n");
            world.weir.start();
            world.meet_neighbours();
            let downloads = Family::BOTH.map(|family| Download::start(world, family, 4_000_000, 600_000));
            for family in Family::BOTH {
                assert!(is_reset(world, family, "denied.example") && !is_reset(world, family, LATE));
            }
            // The name of the open connections is on it, too.
            replace(
                world,
                "names.txt",
                &format!("# longer\n0.0.0.0 {LATE}\n*.b.example\n{ALLOWED}\nno name\n"),
            );
            let changed = Instant::now();
            for family in Family::BOTH {
                until("the name is refused", || is_reset(world, family, LATE));
            }
            println!("{handshake}: refused {:?} after the file was replaced", changed.elapsed());
            // Each thread of the relay takes the rules by itself.
            for family in Family::BOTH {
                until("the names of before are off the list", || {
                    is_reset(world, family, ALLOWED) && !is_reset(world, family, "denied.example")
                });
            }
            for download in &downloads {
                let flow = world.weir.flow(download.client);
                assert_eq!(flow["verdict"], "allow", "{flow}");
                download.goes_on(10_000);
            }
            let status = world.weir.status();
            let list = &status["lists"][0];
            assert_eq!(
                (&list["entries"], &list["bad_lines"], &list["reloads"]),
                (&3.into(), &1.into(), &1.into())
            );
            assert_eq!((&status["epoch"], &status["lists"][1]["entries"]), (&2.into(), &2.into()));

            // A file that is no list does not take the list's place, and is told.
            replace(world, "names.txt", "<html>\n<h1>503</h1>\n");
            let warnings = || world.weir.status()["warnings"].to_string();
            until("the bad file is told", || warnings().contains("names.txt is no list of names"));
            let told = world.weir.finish(world.weir.command("status")).output;
            assert!(told.contains("the 3 names of before stay in force"), "{told}");
            assert!(told.contains("list   /run/weir/names.txt: 3 names, 1 bad lines, read "), "{told}");
            for family in Family::BOTH {
                assert!(is_reset(world, family, LATE));
            }
            downloads.into_iter().for_each(Download::finish);
        });
    }
}

#[test]
fn client_put_on_a_list_is_refused_on_both_families() {
    prepare(&settings("through"), |world| {
        write(world, "names.txt", "denied.example\n");
        write(world, "clients.txt", "192.0.2.0/24\n2001:db8::/32\n");
        world.weir.start();
        world.meet_neighbours();
        let clients: Vec<String> = Family::BOTH.iter().map(|f| f.addresses().client.to_string()).collect();
        replace(world, "clients.txt", &clients.join(" # this one\n"));
        for family in Family::BOTH {
            until("the client is refused", || is_reset(world, family, ALLOWED));
        }
        // A file that is gone leaves the list as it is.
        world.lab.gateway.run(|| std::fs::remove_file("/run/weir/clients.txt")).expect("there");
        until("the loss is told", || {
            world.weir.status()["warnings"].to_string().contains("clients.txt cannot be read: No such file")
        });
        assert!(Family::BOTH.iter().all(|family| is_reset(world, *family, ALLOWED)));
        write(world, "clients.txt", "192.0.2.0/24\n");
        for family in Family::BOTH {
            until("the client is allowed again", || !is_reset(world, family, ALLOWED));
            fetch_intact(&mut world.connect(family, HTTP), 1000);
        }
        until("nothing is told any more", || {
            world.weir.status()["warnings"].as_array().is_some_and(Vec::is_empty)
        });
    });
}

#[test]
fn server_put_on_a_list_is_refused_on_both_families_and_no_other_is() {
    let rules = r#"{ to_file = "servers.txt", action = "reset" }"#;
    for handshake in ["through", "answer", "relay"] {
        prepare(&Settings { handshake, rules, ..Settings::default() }, |world| {
            write(world, "servers.txt", "203.0.113.7\n2001:db8:7::/48\n");
            world.weir.start();
            world.meet_neighbours();
            let downloads = Family::BOTH.map(|family| Download::start(world, family, 2_000_000, 500_000));
            assert!(Family::BOTH.iter().all(|family| !is_reset(world, *family, ALLOWED)));
            let servers: Vec<String> =
                Family::BOTH.iter().map(|f| f.addresses().servers[0].to_string()).collect();
            replace(world, "servers.txt", &servers.join("\n"));
            for family in Family::BOTH {
                until("the server is refused", || is_reset(world, family, ALLOWED));
                let other = SocketAddr::new(family.addresses().servers[1], HTTP);
                fetch_intact(&mut world.connect_to(family, other).expect("the other server"), 1000);
            }
            downloads.into_iter().for_each(Download::finish);
        });
    }
}

#[test]
fn list_of_a_million_names_takes_the_place_of_another_and_traffic_goes_on() {
    prepare(&settings("through"), |world| {
        let names = |more: &str| {
            (0..1_000_000).map(|n| format!("host-{n}.list.example\n")).collect::<String>() + more
        };
        write(world, "names.txt", &names(""));
        write(world, "clients.txt", "192.0.2.0/24\n2001:db8::/32\n");
        world.weir.start();
        world.meet_neighbours();
        let downloads = Family::BOTH.map(|family| Download::start(world, family, 6_000_000, 600_000));
        for family in Family::BOTH {
            assert!(
                is_reset(world, family, "host-0.list.example")
                    && is_reset(world, family, "host-999999.list.example")
            );
            assert!(!is_reset(world, family, "host-1000000.list.example") && !is_reset(world, family, LATE));
        }
        replace(world, "names.txt", &names(LATE));
        for family in Family::BOTH {
            until("the name is refused", || is_reset(world, family, LATE));
            assert!(is_reset(world, family, "host-0.list.example") && !is_reset(world, family, ALLOWED));
        }
        assert_eq!(world.weir.status()["lists"][0]["entries"], 1_000_001);
        downloads.into_iter().for_each(Download::finish);
    });
}

/// A download that failed leaves an empty file. A reload is no way around that.
#[test]
fn reload_keeps_a_list_whose_file_was_emptied_and_says_so() {
    for handshake in ["through", "relay"] {
        prepare(&settings(handshake), |world| {
            write(world, "names.txt", "denied.example\n");
            write(world, "clients.txt", "192.0.2.0/24\n2001:db8::/32\n");
            world.weir.start();
            world.meet_neighbours();
            write(world, "names.txt", "");
            let told = world.weir.finish(world.weir.command("reload"));
            assert_eq!(told.code(), 0, "{told:?}");
            let kept = "names.txt is empty; a list that is to have no entries has a line with a comment; \
                        the 1 names of before stay in force";
            assert!(told.output.contains(kept) && !told.output.contains("takes nothing"), "{told:?}");
            let status = world.weir.status();
            assert_eq!(
                (&status["epoch"], &status["lists"][0]["entries"]),
                (&2.into(), &1.into()),
                "{status}"
            );
            assert!(
                status["warnings"].to_string().contains("the 1 names of before stay in force"),
                "{status}"
            );
            for family in Family::BOTH {
                assert!(is_reset(world, family, "denied.example") && !is_reset(world, family, LATE));
            }
            // Who wants no entries says so.
            write(world, "names.txt", "# nobody\n");
            assert_eq!(world.weir.finish(world.weir.command("reload")).code(), 0);
            for family in Family::BOTH {
                until("the name is allowed", || !is_reset(world, family, "denied.example"));
            }
            until("nothing is wrong any more", || {
                world.weir.status()["warnings"].as_array().is_some_and(Vec::is_empty)
            });
        });
    }
}
