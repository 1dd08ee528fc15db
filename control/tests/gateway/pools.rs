//! Pools of a running gateway: their servers are checked, shown, and drained by command.

use std::net::SocketAddr;

use serde_json::Value;
use weir_control::demo::stage::Family;

use crate::config::Settings;
use crate::weir::until;
use crate::world::{HTTP, HTTPS, World, prepare};

/// Where nobody listens.
const NOBODY: u16 = 9;

/// Two pools whose servers are the usual ones of both families: by TLS, with a dead server beside; and by HTTP.
fn pools() -> String {
    let server = |family: Family, port| SocketAddr::new(family.addresses().servers[0], port).to_string();
    let list = |ports: &[u16]| {
        let all = ports.iter().flat_map(|port| Family::BOTH.map(|family| server(family, *port)));
        format!("{:?}", all.collect::<Vec<_>>())
    };
    let check = |kind: &str| format!("check = {{ {kind}, interval = \"200ms\", rise = 1, fall = 2 }}");
    format!(
        "[[pool]]\nname = \"secure\"\nservers = {}\n{}\n[[pool]]\nname = \"plain\"\nservers = {}\n{}\n",
        list(&[HTTPS, NOBODY]),
        check("kind = \"tls\", host = \"www.example\""),
        list(&[HTTP]),
        check("kind = \"http\", path = \"/bytes/10\", host = \"www.example\", status = 200"),
    )
}

/// `state why` of each server of a pool.
fn servers(world: &World<'_>, pool: usize) -> Vec<String> {
    let status = world.weir.status();
    let servers = status["pools"][pool]["servers"].as_array().expect("pools have servers");
    let text = |server: &Value, key: &str| server[key].as_str().unwrap_or_default().to_owned();
    servers.iter().map(|server| format!("{} {}", text(server, "state"), text(server, "why"))).collect()
}

#[test]
fn servers_are_checked_shown_and_drained_by_command() {
    let settings = Settings::default();
    prepare(&settings, |world| {
        world.weir.write_config(&format!("{settings}{}", pools()));
        world.weir.start();
        let (up, down) = ("up answers with a ServerHello", "down no connection: refused");
        until("probes found who is there", || servers(world, 0) == [up, up, down, down]);
        until("probes found who is there", || servers(world, 1) == ["up answers with status 200"; 2]);

        let [v4, v6] = Family::BOTH.map(|f| SocketAddr::new(f.addresses().servers[0], HTTP).to_string());
        let drain = |arguments: &[&str]| {
            let mut command = world.weir.command("drain");
            command.args(arguments);
            world.weir.finish(command)
        };
        let drained = drain(&["plain", &v6]);
        assert_eq!(drained.code(), 0, "{drained:?}");
        let line = drained.output.lines().find(|line| line.contains(&v6)).unwrap_or_default();
        assert!(line.contains("draining") && line.contains("drained by command"), "{drained:?}");
        assert_eq!(servers(world, 1), ["up answers with status 200", "draining drained by command"]);
        assert_eq!(world.weir.status()["healthy"], true);

        assert_eq!(drain(&["plain", &v4]).code(), 0);
        let warnings = world.weir.status()["warnings"].to_string();
        assert!(warnings.contains("pool plain: no server is up"), "{warnings}");
        for server in [&v4, &v6] {
            assert_eq!(drain(&["--undo", "plain", server]).code(), 0);
        }
        until("they are up again", || servers(world, 1) == ["up answers with status 200"; 2]);

        let refused = drain(&["plan", &v4]);
        assert_eq!(refused.code(), 3);
        assert!(refused.errors.contains("no pool is named `plan`; there are: secure, plain"), "{refused:?}");
        let refused = drain(&["plain", "10.99.99.99:1"]);
        assert!(refused.errors.contains("pool `plain` has no server 10.99.99.99:1"), "{refused:?}");
    });
}
