//! Three namespaces in a row: client, gateway, server, with the kernel's side of the gateway set up as
//! `weir plan` would print it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_core::fib::Fib;
use weir_core::ids::PortId;
use weir_core::policy::{InterceptSpec, Policy, PolicyBuilder};
use weir_core::relay::Limits;
use weir_dataplane::relay::{Counter, Hooks, RelayConfig, RelayFlow, RelayHandle};
use weir_dataplane::snapshot::{Publisher, Snapshot};
use weir_sys::netns::Namespace;

/// How long anything may take that should happen.
pub const SOON: Duration = Duration::from_secs(10);
pub const LISTEN: u16 = 12377;

pub const CLIENTS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2))];
pub const SERVERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 2, 0, 10)), IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 10))];
/// Routed to the server's link, where nobody answers for them.
pub const NOBODY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 2, 0, 99)), IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 0x99))];
pub const GATEWAY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1))];

const NFT: &str = "
table inet weir {
    chain prerouting {
        type filter hook prerouting priority mangle; policy accept;
        meta l4proto != tcp accept
        fib daddr type local accept
        iifname c0 tcp flags & (syn | ack) == syn meta nfproto ipv4 tproxy ip to :12377 meta mark set 0x77 accept
        iifname c0 tcp flags & (syn | ack) == syn meta nfproto ipv6 tproxy ip6 to :12377 meta mark set 0x77 accept
        socket transparent 1 meta mark set 0x77 accept
    }
}
";

pub struct Lab {
    pub client: Namespace,
    pub gateway: Namespace,
    pub server: Namespace,
}

impl Lab {
    pub fn new() -> Self {
        let namespace = || Namespace::new().expect("a network namespace (needs CAP_SYS_ADMIN)");
        let lab = Self { client: namespace(), gateway: namespace(), server: namespace() };
        // Link-local addresses that may be used at once: the first neighbour solicitation needs one.
        for ns in [&lab.client, &lab.gateway, &lab.server] {
            sysctl(ns, "ipv6/conf/default/accept_dad", "0");
        }
        let path = |ns: &Namespace| format!("/proc/{}/fd/{}", std::process::id(), ns.as_fd().as_raw_fd());
        let links = [("c0", &lab.client, "1", "2"), ("s0", &lab.server, "2", "10")];
        for (device, ns, net, host) in links {
            let far = path(ns);
            ip(&lab.gateway, &format!("link add {device} type veth peer name eth0 netns {far}"));
            let near = format!(
                "link set lo up\nlink set {device} up\naddr add 10.{net}.0.1/24 dev {device}\n\
                 addr add fd0{net}::1/64 dev {device} nodad"
            );
            ip(&lab.gateway, &near);
            let far = format!(
                "link set lo up\nlink set eth0 up\naddr add 10.{net}.0.{host}/24 dev eth0\n\
                 addr add fd0{net}::{host}/64 dev eth0 nodad\n\
                 route add default via 10.{net}.0.1\nroute add default via fd0{net}::1"
            );
            ip(ns, &far.replace("::10/", "::a/"));
        }
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            sysctl(&lab.gateway, name, "1");
        }
        ip(&lab.gateway, "rule add fwmark 0x77/0xff lookup 177 priority 1077");
        ip(&lab.gateway, "route add local default dev lo table 177");
        ip6(&lab.gateway, "rule add fwmark 0x77/0xff lookup 177 priority 1077");
        ip6(&lab.gateway, "route add local default dev lo table 177");
        command(&lab.gateway, Command::new("nft").args(["-f", "-"]), NFT);
        lab
    }

    /// A relay in the gateway with these rules.
    pub fn relay(&self, spec: InterceptSpec) -> RelayHandle {
        self.relay_with(spec, &config())
    }

    pub fn relay_with(&self, spec: InterceptSpec, config: &RelayConfig) -> RelayHandle {
        self.relay_hooked(spec, config, Hooks::default())
    }

    pub fn relay_hooked(&self, spec: InterceptSpec, config: &RelayConfig, hooks: Hooks) -> RelayHandle {
        self.relay_of(PolicyBuilder::new(1).intercept(spec), config, hooks)
    }

    pub fn relay_of(&self, policy: PolicyBuilder, config: &RelayConfig, hooks: Hooks) -> RelayHandle {
        self.relay_on(Fib::default(), policy, config, hooks)
    }

    /// A relay that knows these routes.
    pub fn relay_on(
        &self,
        fib: Fib,
        policy: PolicyBuilder,
        config: &RelayConfig,
        hooks: Hooks,
    ) -> RelayHandle {
        let policy: Arc<Policy> = Arc::new(policy.build().expect("a policy").with_vlans(&fib.vlans));
        let snapshot =
            Arc::new(Snapshot { policy, fib: Arc::new(fib), lanes: weir_core::express::Lanes::NONE });
        let start = || RelayHandle::start(config, &snapshot, &mut Publisher::new(), hooks);
        self.gateway.run(start).expect("the gateway").expect("the relay")
    }

    /// Another relay in the gateway, as a process has it that is about to take this one's place.
    pub fn successor(&self, relay: &RelayHandle, spec: InterceptSpec, config: &RelayConfig) -> RelayHandle {
        let policy = Arc::new(PolicyBuilder::new(1).intercept(spec).build().expect("a policy"));
        let fib = Arc::new(Fib::default());
        let snapshot = Arc::new(Snapshot { policy, fib, lanes: weir_core::express::Lanes::NONE });
        let listeners = relay.listeners().expect("descriptors");
        let (mut publisher, hooks) = (Publisher::new(), Hooks::default());
        let start = || RelayHandle::take_over(config, &snapshot, &mut publisher, hooks, listeners);
        self.gateway.run(start).expect("the gateway").expect("the relay")
    }

    /// An origin that serves each connection on its own thread.
    pub fn serve<F>(&self, ip: IpAddr, serve: F) -> SocketAddr
    where
        F: Fn(TcpStream) + Clone + Send + 'static,
    {
        let listener = self.listen(ip);
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = serve.clone();
                std::thread::spawn(move || serve(limited(stream)));
            }
        });
        address
    }

    pub fn listen(&self, ip: IpAddr) -> TcpListener {
        self.server.run(|| TcpListener::bind((ip, 0))).expect("the server").expect("a listener")
    }

    pub fn connect(&self, to: SocketAddr) -> TcpStream {
        limited(self.try_connect(to).expect("a connection"))
    }

    pub fn try_connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.client.run(|| TcpStream::connect_timeout(&to, SOON)).expect("the client")
    }
}

/// An intercept of everything, judged by the relay.
pub fn everything() -> InterceptSpec {
    let mut spec = InterceptSpec::new("all").from_port(PortId(0)).to_any();
    spec.tcp = vec![1..=u16::MAX];
    spec.handshake = weir_core::policy::Handshake::Relay;
    spec
}

/// An intercept of everything that a rule gives to the relay at the SYN.
pub fn by_rule() -> InterceptSpec {
    let mut spec = everything();
    spec.handshake = weir_core::policy::Handshake::Through;
    spec.rule(weir_core::policy::RuleSpec::new(weir_core::policy::Action::Relay))
}

pub fn config() -> RelayConfig {
    RelayConfig { connections: 512, ..RelayConfig::default() }
}

pub fn limits() -> Limits {
    Limits::default()
}

fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream.set_write_timeout(Some(SOON)).expect("a timeout");
    stream
}

/// Waits for a counter to come to `n`.
pub fn counted(relay: &RelayHandle, counter: Counter, n: u64) {
    until(&format!("{} = {n}", counter.name()), || relay.counters().get(counter) == n);
}

/// Waits for the only flow to satisfy `is`.
pub fn flow(relay: &RelayHandle, is: impl Fn(&RelayFlow) -> bool) -> RelayFlow {
    let mut found = None;
    until("the flow", || {
        found = relay.flows(10).into_iter().find(&is);
        found.is_some()
    });
    found.expect("until() saw it")
}

pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The end of a connection whose other end gave RST.
pub fn is_reset(mut stream: &TcpStream) -> bool {
    let error = stream.read(&mut [0; 64]).expect_err("RST, not bytes or FIN");
    error.kind() == std::io::ErrorKind::ConnectionReset
}

/// Whether a connection is answered with RST: at once, so that connecting fails, or once it stands.
pub fn is_refused(lab: &Lab, to: SocketAddr) -> bool {
    match lab.try_connect(to) {
        Ok(stream) => is_reset(&limited(stream)),
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Closing it sends RST.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
}

/// Octets that differ everywhere and are the same each time.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 11).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A ClientHello in one record (RFC 8446, RFC 6066) that asks for `name`, padded to `len` octets at least.
pub fn client_hello(name: &str, len: usize) -> Vec<u8> {
    let u16s = |n: usize| (n as u16).to_be_bytes();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &u16s(body.len()), body].concat();
    let entry = [&[0u8][..], &u16s(name.len()), name.as_bytes()].concat();
    let mut extensions = extension(0, &[&u16s(entry.len())[..], &entry].concat());
    extensions.extend(extension(43, &[2, 3, 4]));
    extensions.extend(extension(21, &vec![0; len.saturating_sub(extensions.len() + 60)]));
    let fixed = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0]].concat();
    let body = [&fixed[..], &u16s(extensions.len()), &extensions].concat();
    let message = [&[1, 0][..], &u16s(body.len()), &body].concat();
    [&[22, 3, 1][..], &u16s(message.len()), &message].concat()
}

/// Feeds nft in a namespace.
pub fn nft(ns: &Namespace, script: &str) {
    command(ns, Command::new("nft").args(["-f", "-"]), script);
}

/// All of nft's tables in a namespace.
pub fn nft_list(ns: &Namespace) -> String {
    let output = ns.run(|| Command::new("nft").args(["list", "ruleset"]).output());
    String::from_utf8(output.expect("the namespace").expect("nft").stdout).expect("text")
}

pub fn ip(ns: &Namespace, batch: &str) {
    command(ns, Command::new("ip").args(["-batch", "-"]), batch);
}

fn ip6(ns: &Namespace, batch: &str) {
    command(ns, Command::new("ip").args(["-6", "-batch", "-"]), batch);
}

fn sysctl(ns: &Namespace, name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    ns.run(|| std::fs::write(path, value)).expect("the namespace").expect(name);
}

fn command(ns: &Namespace, command: &mut Command, input: &str) {
    let output = ns.run(|| {
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        child.stdin.take().expect("piped").write_all(format!("{input}\n").as_bytes())?;
        child.wait_with_output()
    });
    let output = output.expect("the namespace").expect("the command starts");
    assert!(output.status.success(), "{input}: {}", String::from_utf8_lossy(&output.stderr));
}
