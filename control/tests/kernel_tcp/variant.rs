//! The ways in which weir can carry a connection.

/// One way.
#[derive(Debug)]
pub struct Variant {
    pub name: &'static str,
    /// `handshake` of the intercept.
    handshake: &'static str,
    /// Elements of its `rules`.
    rules: &'static str,
    /// Lines of the pools `four` and `six`, besides their servers.
    pool: &'static str,
    /// Which of the lab's servers gets all connections.
    pub server: usize,
    /// It gets a header of PROXY protocol version 2 before the stream.
    pub proxy_header: bool,
    /// The server that the client asked for has been connected to, and is let go.
    pub resets_first_server: bool,
}

const THROUGH: Variant = Variant {
    name: "through",
    handshake: "through",
    rules: r#"{ host = ["denied.example"], action = "reset" }"#,
    pool: "",
    server: 0,
    proxy_header: false,
    resets_first_server: false,
};

/// Each family has a pool of its own, of the lab's second server.
const SEND: &str = r#"
    { from = ["0.0.0.0/0"], host = ["*.example"], action = "send", pool = "four" },
    { from = ["::/0"], host = ["*.example"], action = "send", pool = "six" },
"#;

const ANSWER: Variant = Variant { name: "answer", handshake: "answer", ..THROUGH };
const ANSWER_SEND: Variant = Variant { name: "answer, send", rules: SEND, server: 1, ..ANSWER };
const REBIND: Variant =
    Variant { name: "through, send", rules: SEND, server: 1, resets_first_server: true, ..THROUGH };

/// All ways.
pub const VARIANTS: &[Variant] = &[
    THROUGH,
    ANSWER,
    Variant { name: "answer, cookies", handshake: "answer\"\nsyn_cookies = \"always", ..ANSWER },
    ANSWER_SEND,
    Variant { name: "answer, send, gateway's source", pool: "source = \"gateway\"", ..ANSWER_SEND },
    Variant { name: "answer, send, PROXY", pool: PROXY, proxy_header: true, ..ANSWER_SEND },
    REBIND,
    Variant { name: "through, send, PROXY", pool: PROXY, proxy_header: true, ..REBIND },
];

const PROXY: &str = "proxy_protocol = \"v2\"";

impl Variant {
    /// The whole configuration. A hold's time is long: a lost segment of a ClientHello comes again after a second or more.
    pub fn config(&self) -> String {
        let Self { handshake, rules, pool, .. } = self;
        let ports: String = [("lan", "lan0"), ("wan", "wan0")]
            .map(|(name, device)| format!("[[port]]\nname = \"{name}\"\ndevice = \"{device}\"\n"))
            .concat();
        // A server's port is that of the pool: clients of both kinds go to one.
        let servers = [("four", "192.0.2.11:80"), ("six", "[2001:db8:2::11]:80")];
        let pools: String = servers
            .map(|(name, server)| format!("[[pool]]\nname = \"{name}\"\nservers = [\"{server}\"]\n{pool}\n"))
            .concat();
        let pools = if rules.contains("pool") { pools } else { String::new() };
        format!(
            "[gateway]\nheartbeat = \"5s\"\n{ports}[workers]\nflows = 16384\n{pools}[[intercept]]\nname = \"web\"\nfrom = \"lan\"\n\
             to = [\"0.0.0.0/0\", \"::/0\"]\ntcp = [80, 443]\nhandshake = \"{handshake}\"\nrules = [{rules}]\n\
             midstream = {{ action = \"reset\", grace = \"3600s\" }}\n\
             hold = {{ time = \"60s\" }}\n"
        )
    }
}
