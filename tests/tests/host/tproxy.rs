//! Client, gateway and server in namespaces of their own: what the installed rules do to real connections.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use weir_control::host::{Fail, HostSpec, InterceptSpec};

use crate::space::{enter, host, isolated, sh};

/// How long anything may take that is to succeed: lost SYNs are sent again after one second, and after three.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a connection is waited for that nobody is to answer.
const IN_VAIN: Duration = Duration::from_secs(3);

/// One family of the lab.
pub struct Addresses {
    pub client: &'static str,
    pub gateway: &'static str,
    pub server: &'static str,
}

pub const V4: Addresses = Addresses { client: "10.1.0.2", gateway: "10.1.0.1", server: "10.2.0.2" };
pub const V6: Addresses = Addresses { client: "fd01::2", gateway: "fd01::1", server: "fd02::2" };

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

/// The test's own namespace is the gateway.
pub fn lab() {
    for (name, device, v4, v6) in
        [("client", "lan", "10.1.0", "fd01::"), ("server", "wan", "10.2.0", "fd02::")]
    {
        sh(&format!("ip netns add {name} && ip link add {device} type veth peer name eth netns {name}"));
        sh(&format!(
            "ip addr add {v4}.1/24 dev {device} && ip addr add {v6}1/64 dev {device} nodad && ip link set {device} up"
        ));
        let ip = format!("ip -n {name}");
        sh(&format!(
            "{ip} addr add {v4}.2/24 dev eth && {ip} addr add {v6}2/64 dev eth nodad && {ip} link set eth up && {ip} link set lo up"
        ));
        sh(&format!("{ip} route add default via {v4}.1 && {ip} -6 route add default via {v6}1"));
    }
    sh("for d in weir-relay weir-punt; do ip tuntap add $d mode tun && ip link set $d up; done");
}

pub fn web() -> HostSpec {
    HostSpec {
        ports: vec!["lan".into(), "wan".into()],
        intercepts: vec![InterceptSpec {
            name: "web".into(),
            from: vec!["lan".into()],
            tagged: false,
            to: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            ports: vec![(80, 80), (8000, 8099)],
            reject_quic: false,
        }],
        ..HostSpec::default()
    }
}

pub fn apply(spec: &HostSpec) {
    host(async |h| h.apply(spec).await).unwrap();
}

/// Runs `work` in a thread that is in the namespace.
pub fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(&namespace);
            work()
        });
        thread.join().unwrap()
    })
}

fn socket(of: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(of), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    if of.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket
}

/// Lets a socket have addresses that are not this host's. The option of IPv4 sets the one flag that both families have.
fn transparent(of: SocketAddr) -> Socket {
    let socket = socket(of);
    socket.set_ip_transparent_v4(true).unwrap();
    // Else a client whose port is the listener's number could not be connected on: the listener has that port on all addresses.
    socket.set_reuse_port(true).unwrap();
    socket
}

/// Accepts for ever on all of a family's addresses, and gives every connection to a thread.
fn serve(listener: TcpListener, serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + Clone + 'static) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
}

fn listen(at: SocketAddr, socket: Socket) -> TcpListener {
    socket.bind(&SockAddr::from(at)).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

fn any(of: &Addresses, port: u16) -> SocketAddr {
    at(if of.server.contains(':') { "::" } else { "0.0.0.0" }, port)
}

/// The origin says who it thinks is there, and repeats what it is told.
pub fn origin(of: &Addresses, port: u16) {
    let here = any(of, port);
    let listener = inside("server", || listen(here, socket(here)));
    serve(listener, |mut stream| {
        let peer = stream.peer_addr()?;
        writeln!(stream, "origin {peer}")?;
        io::copy(&mut stream.try_clone()?, &mut stream).map(drop)
    });
}

/// A relay as weir has one, in the simplest form: connects on from the client's own address and port.
pub fn relay(of: &Addresses, port: u16) {
    let here = any(of, port);
    serve(listen(here, transparent(here)), |mut down| {
        let (client, server) = (down.peer_addr()?, down.local_addr()?);
        let socket = transparent(client);
        socket.bind(&SockAddr::from(client))?;
        socket.connect_timeout(&SockAddr::from(server), LIMIT)?;
        let up = TcpStream::from(socket);
        writeln!(down, "relay")?;
        let (mut from, mut to) = (up.try_clone()?, down.try_clone()?);
        std::thread::spawn(move || io::copy(&mut from, &mut to));
        io::copy(&mut down, &mut &up)?;
        up.shutdown(std::net::Shutdown::Write)
    });
}

/// Connects from the client's namespace, says something, and returns what it heard; lines joined by spaces.
pub fn ask(client: SocketAddr, server: SocketAddr) -> io::Result<String> {
    ask_within(client, server, LIMIT)
}

/// As [`ask`], with this long for the connection and for each answer.
pub fn ask_within(client: SocketAddr, server: SocketAddr, limit: Duration) -> io::Result<String> {
    let mut stream = open_within(client, server, limit)?;
    stream.write_all(b"hello")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard)?;
    Ok(heard.replace('\n', " "))
}

fn open(client: SocketAddr, server: SocketAddr) -> io::Result<TcpStream> {
    open_within(client, server, LIMIT)
}

fn open_within(client: SocketAddr, server: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    inside("client", || {
        let socket = socket(client);
        socket.bind(&SockAddr::from(client))?;
        socket.connect_timeout(&SockAddr::from(server), limit)?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket.into())
    })
}

/// Every kind of connection through the gateway, and what must be heard.
pub fn assert_roads(of: &Addresses) {
    for (server, port, from, heard) in [
        (of.server, 80, 40001, "relay origin CLIENT:40001 hello"),
        (of.server, 8000, 40002, "relay origin CLIENT:40002 hello"),
        // Client port like the listener's: the answers of the server go to that port.
        (of.server, 80, 12377, "relay origin CLIENT:12377 hello"),
        (of.server, 2222, 40003, "origin CLIENT:40003 hello"),
        // Destination port like the listener's, and no intercept: the listener must not take it.
        (of.server, 12377, 40004, "origin CLIENT:40004 hello"),
        (of.gateway, 80, 40005, "gateway"),
    ] {
        let client = at(of.client, from);
        let expected = heard.replace(&format!("CLIENT:{from}"), &client.to_string());
        let answer = ask(client, at(server, port)).unwrap_or_else(|e| format!("{e}"));
        assert_eq!(answer, expected, "{server} {port} from {from}");
    }
}

pub fn everything(of: &Addresses) {
    for port in [80, 8000, 2222, 12377] {
        origin(of, port);
    }
    relay(of, 12377);
    let own = at(of.gateway, 80);
    serve(listen(own, socket(own)), |mut stream| {
        let mut said = [0; 5];
        stream.read_exact(&mut said)?;
        stream.write_all(b"gateway")
    });
}

isolated! {
    fn intercepted_connections_reach_the_listener_and_no_others() {
        lab();
        apply(&web());
        for of in [&V4, &V6] {
            everything(of);
            assert_roads(of);
        }
    }
}

isolated! {
    fn strict_filters_and_mark_validation_do_not_stop_the_relay() {
        lab();
        sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.src_valid_mark=1");
        apply(&web());
        for of in [&V4, &V6] {
            everything(of);
            assert_roads(of);
            let Addresses { client, server, .. } = of;
            // What comes out of a TUN device has a client's source, and no route back through it.
            for device in ["weir-relay", "weir-punt"] {
                for (mark, way) in [("", "dev wan"), ("mark 0x77", "table 177")] {
                    let route = sh(&format!("ip route get {server} from {client} iif {device} {mark}"));
                    assert!(route.contains(way), "{device} {mark}: {route}");
                }
            }
        }
    }
}

isolated! {
    fn packets_that_come_in_by_the_relay_device_reach_the_listener() {
        lab();
        // An Ethernet device of that name, so that a client can be behind it: the answers go out by `lan`.
        sh("ip link del weir-relay && ip link add weir-relay type veth peer name alt netns client");
        sh("ip link set weir-relay address 02:00:00:00:00:99 up && ip -n client link set alt up");
        sh("ip -n client neigh add 169.254.9.9 lladdr 02:00:00:00:00:99 dev alt && ip -n client neigh add fe80::9 lladdr 02:00:00:00:00:99 dev alt");
        sh("ip -n client route replace default via 169.254.9.9 dev alt onlink src 10.1.0.2");
        sh("ip -n client -6 route replace default via fe80::9 dev alt");
        sh("sysctl -qw net.ipv4.conf.all.rp_filter=1");
        apply(&web());
        for of in [&V4, &V6] {
            everything(of);
            let client = at(of.client, 40001);
            assert_eq!(ask(client, at(of.server, 80)).unwrap(), format!("relay origin {client} hello"));
            assert_eq!(ask(client, at(of.server, 2222)).unwrap(), format!("origin {client} hello"));
        }
    }
}

isolated! {
    fn listener_gone_fails_open_or_closed_as_configured() {
        lab();
        for (fail, reached) in [(Fail::Open, true), (Fail::Closed, false)] {
            let mut spec = web();
            spec.fail = fail;
            apply(&spec);
            for of in [&V4, &V6] {
                if fail == Fail::Open {
                    origin(of, 80);
                    origin(of, 2222);
                }
                let client = at(of.client, 0);
                let limit = if reached { LIMIT } else { IN_VAIN };
                assert_eq!(ask_within(client, at(of.server, 80), limit).is_ok(), reached, "{fail:?}");
                ask(client, at(of.server, 2222)).unwrap();
            }
        }
    }
}

isolated! {
    fn client_port_used_again_in_time_wait_reaches_the_listener() {
        lab();
        apply(&web());
        for of in [&V4, &V6] {
            // Closing first leaves the listener's side in TIME_WAIT.
            let here = any(of, 12377);
            serve(listen(here, transparent(here)), |mut stream| stream.write_all(b"relay"));
            let (client, server) = (at(of.client, 40001), at(of.server, 80));
            for round in 0..3 {
                let mut stream = open(client, server).unwrap();
                let mut heard = String::new();
                stream.read_to_string(&mut heard).unwrap();
                assert_eq!(heard, "relay", "round {round}");
                drop(stream);
            }
        }
    }
}

isolated! {
    fn flow_from_before_and_after_is_forwarded() {
        lab();
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for of in [&V4, &V6] {
            origin(of, 80);
            relay(of, 12377);
            let client = at(of.client, 40001);
            let mut stream = open(client, at(of.server, 80)).unwrap();
            let mut say = stream.try_clone().unwrap();
            let mut expect = |word: &str| {
                let mut heard = vec![0; word.len()];
                stream.read_exact(&mut heard).unwrap();
                assert_eq!(heard, word.as_bytes());
            };
            expect(&format!("origin {client}\n"));
            let mut exchange = |word: &str| {
                say.write_all(word.as_bytes()).unwrap();
                expect(word);
            };
            exchange("before");
            apply(&web());
            exchange("with weir");
            host(async |h| h.remove().await).unwrap();
            exchange("after");
        }
    }
}

/// A server that sends every datagram back.
pub fn echo(namespace: Option<&str>, here: SocketAddr) {
    let bind = || UdpSocket::bind(here).unwrap();
    let socket = namespace.map_or_else(bind, |name| inside(name, bind));
    std::thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((len, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..len], from);
        }
    });
}

/// What becomes of a datagram: it comes back, or its sender is told that nobody is there.
pub fn send(namespace: &str, from: SocketAddr, to: SocketAddr) -> &'static str {
    inside(namespace, || {
        let socket = UdpSocket::bind(from).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"hello").unwrap();
        match socket.recv(&mut [0; 64]).map_err(|error| error.kind()) {
            Ok(5) => "back",
            Err(io::ErrorKind::ConnectionRefused) => "refused",
            other => panic!("{from} to {to}: {other:?}"),
        }
    })
}

isolated! {
    fn quic_of_an_intercept_is_refused_and_other_datagrams_pass() {
        lab();
        for of in [&V4, &V6] {
            for port in [443, 4433] {
                echo(Some("server"), at(of.server, port));
                echo(Some("client"), at(of.client, port));
            }
            echo(None, at(of.gateway, 443));
        }
        for (reject_quic, quic) in [(false, "back"), (true, "refused")] {
            let mut spec = web();
            spec.intercepts[0].reject_quic = reject_quic;
            apply(&spec);
            assert!(host(async |h| h.plan(&spec).await).unwrap().is_done(), "the same again");
            for of in [&V4, &V6] {
                let client = at(of.client, 0);
                assert_eq!(send("client", client, at(of.server, 443)), quic);
                assert_eq!(send("client", client, at(of.server, 4433)), "back");
                assert_eq!(send("client", client, at(of.gateway, 443)), "back", "the box's own");
                assert_eq!(send("server", at(of.server, 0), at(of.client, 443)), "back", "not from the clients' port");
            }
            assert_eq!(sh("nft list table inet weir").matches("counter packets 1 ").count(), if reject_quic { 2 } else { 0 });
        }
        let mut elsewhere = web();
        elsewhere.intercepts[0].reject_quic = true;
        elsewhere.intercepts[0].to = vec!["198.51.100.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        apply(&elsewhere);
        for of in [&V4, &V6] {
            assert_eq!(send("client", at(of.client, 0), at(of.server, 443)), "back", "of no intercept");
        }
        host(async |h| h.clean().await).unwrap();
        assert_eq!(sh("nft list ruleset"), "");
    }
}
