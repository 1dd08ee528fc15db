//! The configurations of the contenders.

use weir_control::lab::{IPV4, IPV6};

use super::{HTTP, TLS};
use crate::bed::GATEWAY_CPU;
use crate::config::Config;

/// weir's, with what goes to `[workers]` and to the intercept.
pub fn weir(workers: &str, intercept: &str) -> String {
    let workers = format!("cores = [{GATEWAY_CPU}]\n{workers}");
    Config { workers: &workers, tcp: &[HTTP, TLS], intercept, ..Config::default() }.to_string()
}

/// What is marked is delivered here.
pub const ROUTES: &str = "for family in -4 -6; do
    ip $family rule add fwmark 1 lookup 100
    ip $family route add local default dev lo table 100
done
";

pub const TPROXY: &str = "nft -f - <<'END'
table inet bench {
    chain prerouting {
        type filter hook prerouting priority mangle
        meta l4proto tcp socket transparent 1 meta mark set 1 accept
        iifname lan0 tcp dport { 80, 443 } meta nfproto ipv4 tproxy ip to :5000 meta mark set 1 accept
        iifname lan0 tcp dport { 80, 443 } meta nfproto ipv6 tproxy ip6 to :5000 meta mark set 1 accept
    }
}
END
";

/// HAProxy's; with `inspects` it waits for a ClientHello or a request, and refuses by name.
pub fn haproxy(inspects: bool) -> String {
    HAPROXY.replace("INSPECTION", if inspects { INSPECTION } else { "" })
}

const INSPECTION: &str = "    tcp-request inspect-delay 5s
    tcp-request content reject if { req.ssl_sni -i denied.example }
    tcp-request content accept if { req.ssl_hello_type 1 }
    tcp-request content accept if HTTP
";

const HAPROXY: &str = "global
    nbthread 1
    maxconn 8500
    maxpipes 1000

defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    option splice-auto

frontend four
    bind 0.0.0.0:5000 transparent
INSPECTION    default_backend four

frontend six
    bind :::5000 v6only transparent
INSPECTION    default_backend six

backend four
    source 0.0.0.0 usesrc client
    server any 0.0.0.0:0

backend six
    source [::] usesrc client
    server any [::]:0
";

/// The targets, each with the port of nginx that stands for it.
fn targets() -> impl Iterator<Item = (u16, usize, u16)> {
    let all = [HTTP, TLS].into_iter().flat_map(|port| (0..3).map(move |server| (server, port)));
    (5000..).zip(all).map(|(local, (server, port))| (local, server, port))
}

/// nginx has no transparent listeners: connections are brought to it by NAT, a port for each target, where it goes from the
/// client's address, and a port of its own (with the client's port it fails where the client uses that to two servers).
pub fn redirect() -> String {
    let (mut four, mut six) = (Vec::new(), Vec::new());
    for (local, server, port) in targets() {
        four.push(format!("{} . {port} : {local}", IPV4.servers[server]));
        six.push(format!("{} . {port} : {local}", IPV6.servers[server]));
    }
    let (four, six) = (four.join(", "), six.join(", "));
    format!(
        "nft -f - <<'END'
table inet bench {{
    chain prerouting {{
        type filter hook prerouting priority mangle
        meta l4proto tcp socket transparent 1 meta mark set 1 accept
    }}
    chain nat {{
        type nat hook prerouting priority dstnat
        iifname lan0 tcp dport {{ 80, 443 }} redirect to : ip daddr . tcp dport map {{ {four} }}
        iifname lan0 tcp dport {{ 80, 443 }} redirect to : ip6 daddr . tcp dport map {{ {six} }}
    }}
}}
END
"
    )
}

/// nginx's configuration: its stream module, where its process id goes.
pub fn nginx(module: &str, pid: &str) -> String {
    let mut text = NGINX.replace("MODULE", module).replace("PID", pid);
    for (local, server, port) in targets() {
        let (v4, v6) = (IPV4.servers[server], IPV6.servers[server]);
        text += &format!(
            "    server {{ listen {local} backlog=4096; proxy_bind $remote_addr transparent; proxy_pass {v4}:{port}; }}
    server {{ listen [::]:{local} ipv6only=on backlog=4096; proxy_bind $remote_addr transparent; proxy_pass [{v6}]:{port}; }}
"
        );
    }
    text + "}\n"
}

const NGINX: &str = "load_module MODULE;
pid PID;
user root;
daemon off;
master_process off;
worker_rlimit_nofile 20000;
error_log stderr crit;
events { worker_connections 19000; }
stream {
    ssl_preread on;
    proxy_timeout 1h;
";
