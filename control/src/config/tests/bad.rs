use super::*;

/// What follows [`PORTS`] (from line 7 on), the line and a fragment of each finding.
pub(super) type Row<'r> = (&'r str, &'r [(usize, &'r str)]);

fn errors(text: &str) -> Vec<(usize, String)> {
    let report = read(text).expect_err(text);
    let errors = report.findings.into_iter().filter(|finding| finding.severity == Severity::Error);
    errors.map(|finding| (finding.line.unwrap(), finding.message)).collect()
}

pub(super) fn assert_found(text: &str, found: &[(usize, String)], expected: &[(usize, &str)]) {
    assert_eq!(found.len(), expected.len(), "{text}\n{found:#?}");
    for ((line, message), (expected_line, fragment)) in found.iter().zip(expected) {
        assert!(
            line == expected_line && message.contains(fragment),
            "{text}\n{line}: {message}\nexpected {fragment}"
        );
    }
}

pub(super) fn table(before: &str, rows: &[Row<'_>]) {
    for (text, expected) in rows {
        let text = format!("{before}{text}");
        assert_found(&text, &errors(&text), expected);
    }
}

#[test]
fn sections_and_syntax() {
    table(
        PORTS,
        &[
            (
                "[gatewy]\nfail = 1\n",
                &[(
                    7,
                    "unknown key `gatewy`; allowed: gateway, port, workers, fallback, limits, relay, identity, intercept, pool",
                )],
            ),
            ("gateway = 3\n", &[(6 + 1, "unknown key `gateway` in [[port]]")]),
            ("[[gateway]]\nfail = \"open\"\n", &[(7, "expected a table, found a list")]),
            (
                "[intercept]\nname = \"web\"\n",
                &[(7, "expected a list of tables ([[intercept]]), found a table")],
            ),
            ("[workers]\nflows = \n", &[(8, "")]),
            ("[workers]\nflows = 100\nflows = 200\n", &[(9, "duplicate key")]),
            ("[workers]\nidle = \"busy\n[gateway]\nfail = open\n", &[(8, ""), (10, "")]),
        ],
    );
    assert_found("", &errors(""), &[(1, "there is no [[port]]")]);
}

#[test]
fn relay_times() {
    table(
        PORTS,
        &[
            (
                "[relay]\nidel = \"1h\"\n",
                &[(8, "unknown key `idel` in [relay]; allowed: connect, pool_connect, idle, half_closed")],
            ),
            ("[relay]\nconnect = \"1h\"\n", &[(8, "`1h` is not allowed; allowed: 100ms to 300s")]),
            ("[relay]\nidle = 3600\n", &[(8, "`idle` in [relay]: expected a string")]),
            ("[relay]\nkeepalive = \"no\"\n", &[(8, "`no` is no time; write one like `3s`, or `off`")]),
            ("[relay]\nuser_timeout = \"10h\"\n", &[(8, "allowed: 1s to 9h, or off")]),
        ],
    );
}

#[test]
fn bandwidth() {
    let relay = format!("{PORTS}{WEB}handshake = \"relay\"\n");
    table(
        &relay,
        &[
            (
                "rules = [{ action = \"allow\", rate = \"10\" }]\n",
                &[(13, "no unit; allowed: kbit/s, Mbit/s, Gbit/s")],
            ),
            (
                "rules = [{ action = \"allow\", rate = \"1kbit/s\" }]\n",
                &[(13, "allowed: 64kbit/s to 1000Gbit/s")],
            ),
            (
                "rules = [{ action = \"drop\", connection_rate = \"1Mbit/s\" }]\n",
                &[(13, "lets nothing pass")],
            ),
        ],
    );
    table(
        &format!("{PORTS}{WEB}"),
        &[(
            "rules = [{ action = \"relay\", rate = \"1Mbit/s\" },\n{ action = \"allow\", rate = \"1Mbit/s\" }]\n",
            &[(13, "`rate` in a rule: the fast road stores nothing that could wait")],
        )],
    );
}

#[test]
fn gateway_workers_fallback() {
    table(
        PORTS,
        &[
            (
                "[gateway]\nfail = true\n",
                &[(8, "`fail` in [gateway]: expected a string, found true or false")],
            ),
            ("[gateway]\nadmin = \"run/weir.sock\"\n", &[(8, "no absolute path")]),
            ("[gateway]\nadmin = \"/run/weir/\"\n", &[(8, "a folder")]),
            (
                "[gateway]\nheartbeat = \"5ms\"\n",
                &[(8, "`heartbeat` in [gateway]: `5ms` is not allowed; allowed: 20ms to 10s")],
            ),
            ("[gateway]\nmetrics = \"9470\"\n", &[(8, "no address with a port")]),
            ("[gateway]\nmetrics = \"127.0.0.1:12377\"\n", &[(8, "that of `listen` in [fallback]")]),
            ("[workers]\ncores = \"all\"\n", &[(8, "unknown value `all`; allowed: auto")]),
            ("[workers]\ncores = [1, 1]\n", &[(8, "`1` is taken already, at line 8")]),
            ("[workers]\ncores = []\n", &[(8, "the list is empty")]),
            ("[workers]\ncores = [-1]\n", &[(8, "-1 is not allowed; allowed: 0 to 1023")]),
            (
                "[workers]\nidle = \"lazy\"\nflows = 0\n",
                &[(8, "allowed: adaptive, busy"), (9, "allowed: 16 to")],
            ),
            ("[workers]\nexpress = \"on\"\n", &[(8, "allowed: auto, always, standby, never")]),
            ("[workers]\nflows = 1.5\n", &[(8, "expected an integer, found a number with a point")]),
            ("[fallback]\nmark = \"0/0xff\"\n", &[(8, "mark 0")]),
            ("[fallback]\nmark = \"0x177/0xff\"\n", &[(8, "outside its mask")]),
            ("[fallback]\nmark = 119\n", &[(8, "expected a string, found an integer")]),
            ("[fallback]\ntable = 0\n", &[(8, "table 0 is the host's own (`unspec`)")]),
            ("[fallback]\ntable = 254\n", &[(8, "(`main`)")]),
            ("[fallback]\ntable = 0xff\n", &[(8, "(`local`)")]),
            ("[fallback]\npriority = 0\n", &[(8, "allowed: 1 to 32765")]),
            ("[fallback]\npriority = 32766\n", &[(8, "allowed: 1 to 32765")]),
            ("[fallback]\nlisten = 0\n", &[(8, "0 is not allowed; allowed: 1 to 65535")]),
            ("[fallback]\nlisten = 70000\n", &[(8, "allowed: 1 to 65535")]),
        ],
    );
}

#[test]
fn ports() {
    table(
        PORTS,
        &[
            ("[[port]]\nname = \"dmz\"\n", &[(7, "[[port]] has no `device`, which must be written")]),
            ("[[port]]\ndevice = \"dmz0\"\n", &[(7, "[[port]] has no `name`")]),
            ("[[port]]\nname = \"lan\"\ndevice = \"dmz0\"\n", &[(8, "`lan` is taken already, at line 2")]),
            ("[[port]]\nname = \"dmz\"\ndevice = \"lan0\"\n", &[(9, "`lan0` is taken already, at line 3")]),
            ("[[port]]\nname = \"dmz\"\ndevice = \"a-device-of-sixteen\"\n", &[(9, "1 to 15 octets")]),
            ("[[port]]\nname = \"d z\"\ndevice = \"dmz0\"\n", &[(8, "` ` in `d z`")]),
            (
                "[[port]]\nname = \"dmz\"\ndevice = \"dmz0\"\nprot = 1\nmode = \"fast\"\n",
                &[
                    (10, "unknown key `prot` in [[port]]; allowed: name, device, queues, mode"),
                    (11, "unknown value `fast`; allowed: auto, zero-copy, copy, generic"),
                ],
            ),
            (
                "[[port]]\nname = \"dmz\"\ndevice = \"dmz0\"\nqueues = [0, 64]\n",
                &[(10, "64 is not allowed; allowed: 0 to 63")],
            ),
            ("[[port]]\nname = \"dmz\"\ndevice = \"dmz0\"\nqueues = \"some\"\n", &[(10, "allowed: all")]),
        ],
    );
    let many: String = (0..31).map(|n| format!("[[port]]\nname = \"p{n}\"\ndevice = \"p{n}\"\n")).collect();
    table(PORTS, &[(&many, &[(97, "33 of [[port]]; at most 32 are allowed")])]);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn intercepts() {
    let lacking = "[[intercept]]\nrules = []\n";
    table(
        PORTS,
        &[(lacking, &[(7, "has no `name`"), (7, "has no `from`"), (7, "has no `to`"), (7, "has no `tcp`")])],
    );
    let with = |line: &str, with: &str| {
        let mut lines: Vec<&str> = WEB.lines().collect();
        let place = lines.iter().position(|l| l.starts_with(line)).unwrap();
        lines[place] = with;
        lines.join("\n")
    };
    table(
        PORTS,
        &[
            (&with("from", "from = \"lna\""), &[(9, "no [[port]] is named `lna`; there are: lan, wan")]),
            (&with("from", "from = []"), &[(9, "the list is empty")]),
            (&with("from", "from = [1]"), &[(9, "expected a string, found an integer")]),
            (&with("to", "to = []"), &[(10, "the list is empty")]),
            (&with("to", "to = [\"10.0.0.1/8\"]"), &[(10, "write `10.0.0.0/8`")]),
            (&with("tcp", "tcp = []"), &[(11, "the list is empty")]),
            (&with("tcp", "tcp = [0, 65536]"), &[(11, "0 is not allowed"), (11, "65536 is not allowed")]),
            (&with("tcp", "tcp = [\"90-80\"]"), &[(11, "the lower port comes first")]),
            (&with("tcp", "tcp = [true]"), &[(11, "expected a port or a range")]),
        ],
    );
    let vlan = |vlan: &str| format!("{WEB}vlan = {vlan}\n");
    table(
        PORTS,
        &[
            (&vlan("[]"), &[(12, "the list is empty")]),
            (&vlan("0"), &[(12, "0 is not allowed; allowed: 1 to 4094")]),
            (&vlan("[10, 4095]"), &[(12, "4095 is not allowed; allowed: 1 to 4094")]),
            (
                &vlan("100.10"),
                &[(12, "expected a VLAN like 10, \"100-199\", \"100.10\", \"untagged\", or \"any\"")],
            ),
            (&vlan("[\"all\"]"), &[(12, "`all` is none of a VLAN (1 to 4094), a range like `100-199`")]),
            (&vlan("\"20-10\""), &[(12, "the lower VLAN comes first")]),
            (&vlan("\"100.5000\""), &[(12, "5000 is no VLAN; allowed: 1 to 4094")]),
        ],
    );
    let before = format!("{PORTS}{WEB}");
    table(
        &before,
        &[
            ("handshake = \"splice\"\n", &[(12, "allowed: through, answer, relay")]),
            (
                "hold = { bytes = \"16\", time = \"3\" }\n",
                &[(12, "`16` has no unit"), (12, "`3` has no unit")],
            ),
            (
                "hold = { bytes = \"1B\", time = \"1h\" }\n",
                &[(12, "allowed: 512B to 64KiB"), (12, "allowed: 10ms to 60s")],
            ),
            ("hold = { size = \"16KiB\" }\n", &[(12, "unknown key `size` in hold; allowed: bytes, time")]),
            ("hold = \"16KiB\"\n", &[(12, "expected a table, found a string")]),
            ("full = \"relay\"\n", &[(12, "allowed: kernel, drop")]),
            ("syn_cookies = \"on\"\n", &[(12, "unknown value `on`; allowed: auto, always, off")]),
            ("syn_cookies = true\n", &[(12, "expected a string, found true or false")]),
            (
                "verify_host = \"drop\"\n",
                &[(12, "`verify_host` in [[intercept]]: unknown value `drop`; allowed: off, log, reset")],
            ),
            ("verify_host = true\n", &[(12, "expected a string, found true or false")]),
            ("quic = \"drop\"\n", &[(12, "unknown value `drop`; allowed: reject, pass")]),
            (
                "otherwise = \"send\"\n",
                &[(12, "`otherwise` in [[intercept]]: unknown value `send`; allowed: allow, reset, drop")],
            ),
            ("unidentified = \"relay\"\n", &[(12, "allowed: allow, reset, drop")]),
            (
                "midstream = { action = \"kernel\", grace = \"60\" }\n",
                &[(12, "allowed: allow, reset, drop"), (12, "`60` has no unit")],
            ),
            ("midstream = { action = \"drop\", grace = \"25h\" }\n", &[(12, "allowed: 0s to 24h")]),
            ("rules = 1\n", &[(12, "expected a list of tables (a rule), found an integer")]),
            (
                "[[intercept]]\nname = \"web\"\nfrom = \"wan\"\nto = \"::/0\"\ntcp = 80\n",
                &[(13, "`web` is taken already, at line 8")],
            ),
        ],
    );
    let many: String = (0..64)
        .map(|n| format!("[[intercept]]\nname = \"i{n}\"\nfrom = \"lan\"\nto = \"10.0.0.{n}\"\ntcp = 80\n"))
        .collect();
    table(&before, &[(&many, &[(12 + 63 * 5, "65 of [[intercept]]; at most 64 are allowed")])]);
}

#[test]
fn rules() {
    let before = format!("{PORTS}{WEB}rules = [\n");
    table(
        &before,
        &[
            ("{ host = [\"a.example\"] } ]\n", &[(13, "a rule has no `action`")]),
            (
                "{ hots = [\"a.example\"], action = \"drop\" } ]\n",
                &[(13, "unknown key `hots` in a rule; allowed: host, host_file, ech, hello_retry, from,")],
            ),
            (
                "{ action = \"deny\" } ]\n",
                &[(13, "unknown value `deny`; allowed: allow, reset, drop, send, relay")],
            ),
            ("{ host = [], action = \"drop\" } ]\n", &[(13, "the list is empty")]),
            (
                "{ host = [\"*.*.example\",\n\"\u{fffd}.example\"], action = \"drop\" } ]\n",
                &[(13, "`*.*.example`: `*` stands only"), (14, "no international name")],
            ),
            ("{ from = [\"10.1.9.1/24\"], action = \"drop\" } ]\n", &[(13, "write `10.1.9.0/24`")]),
            ("{ alpn = [\"\"], action = \"drop\" } ]\n", &[(13, "1 to 255 octets")]),
            ("{ protocol = \"ssh\", action = \"drop\" } ]\n", &[(13, "allowed: tls, http, other")]),
            ("{ protocol = \"other\", host = \"*\", action = \"drop\" } ]\n", &[(13, "cannot have a host")]),
            ("{ protocol = \"http\", alpn = \"h2\", action = \"drop\" } ]\n", &[(13, "in TLS only")]),
            (
                "{ from = \"10.0.0.0/8\", to = \"::/0\", action = \"drop\" } ]\n",
                &[(13, "no address family in common")],
            ),
            ("{ action = \"drop\", pool = \"p\" } ]\n", &[(13, "only for `action = \"send\"`")]),
            (
                "{ from = \"10.0.0.0/8\", action = \"relay\" },\n{ host = \"a.example\", action = \"relay\" } ]\n",
                &[(14, "`host` in a rule: `relay` is decided at the SYN")],
            ),
            (
                "{ alpn = \"h2\", protocol = \"tls\", action = \"relay\" } ]\n",
                &[
                    (13, "`alpn` in a rule: `relay` is decided"),
                    (13, "`protocol` in a rule: `relay` is decided"),
                ],
            ),
        ],
    );
    let many = "{ action = \"drop\", from = \"10.0.0.1\" },\n".repeat(4097) + "]\n";
    let (text, expected) = (format!("{before}{many}"), [(13 + 4096, "4097 rules; at most 4096 are allowed")]);
    assert_found("4097 rules", &errors(&text), &expected);
}

/// Files that are valid and may not be what was meant.
#[test]
fn warnings() {
    let rules = |rules: &str| format!("{WEB}rules = [\n{rules}]\n");
    let rows: &[(String, &[(usize, &str)])] = &[
        (String::new(), &[(1, "there is no [[intercept]]")]),
        (WEB.replace("443", "\"20-30\""), &[(11, "takes port 22")]),
        (
            rules(
                "{ host = \"*.example\", action = \"drop\" },\n{ host = \"a.example\", action = \"allow\" },\n",
            ),
            &[(14, "the rule never matches: the one at weir.toml:13 takes all that it would")],
        ),
        (rules("{ action = \"drop\" },\n{ action = \"allow\" },\n"), &[(14, "weir.toml:13")]),
        (rules("{ host = \"a.example\", action = \"allow\" },\n{ host = \"*\", action = \"drop\" },\n"), &[]),
        // A rule by name in front does not stand in the way of `relay`, which is taken at the SYN.
        (
            rules("{ host = \"*\", action = \"drop\" },\n{ from = \"10.0.0.0/8\", action = \"relay\" },\n"),
            &[],
        ),
        (rules("{ tcp = 8080, action = \"drop\" },\n"), &[(13, "its `tcp` lies outside that of `web`")]),
        (
            WEB.replace("\"0.0.0.0/0\", ", "") + "rules = [\n{ to = \"10.0.0.0/8\", action = \"drop\" }]\n",
            &[(13, "its `to` lies outside that of `web`")],
        ),
        (
            format!("{WEB}[[intercept]]\nname = \"two\"\nfrom = \"lan\"\nto = \"10.0.0.0/8\"\ntcp = 80\n"),
            &[(12, "intercept `two` takes nothing: `web` at weir.toml:7 takes all that it would")],
        ),
        (
            format!(
                "{WEB}[[intercept]]\nname = \"two\"\nfrom = [\"lan\", \"wan\"]\nto = \"10.0.0.0/8\"\ntcp = 80\n"
            ),
            &[],
        ),
        (format!("{WEB}midstream = {{ action = \"allow\" }}\n"), &[(12, "will pass without a verdict")]),
        (
            format!("{WEB}[[pool]]\nname = \"p\"\nservers = \"10.0.0.1:80\"\n"),
            &[(12, "no rule sends to pool `p`")],
        ),
        (format!("{WEB}syn_cookies = \"always\"\n"), &[(12, "only `handshake = \"answer\"` answers SYNs")]),
        (format!("{WEB}handshake = \"answer\"\nsyn_cookies = \"off\"\n"), &[]),
        (format!("{WEB}syn_cookies = \"auto\"\nquic = \"reject\"\n"), &[]),
        (WEB.replace(", 443", "") + "quic = \"reject\"\n", &[(12, "`tcp` has no 443")]),
        (format!("{WEB}[limits]\nsource_over = \"reset\"\n"), &[(13, "this changes nothing")]),
    ];
    for (text, expected) in rows {
        let (_, report) = read(&format!("{PORTS}{text}")).unwrap_or_else(|report| panic!("{text}\n{report}"));
        let found: Vec<(usize, String)> =
            report.findings.into_iter().map(|finding| (finding.line.unwrap(), finding.message)).collect();
        assert_found(text, &found, expected);
    }
}
