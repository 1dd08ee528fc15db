use weir_core::ids::PortSet;

use super::*;

#[test]
fn valid_file_prints_warnings_and_a_summary() {
    let (config, report) = read(&format!("{PORTS}{WEB}[[intercept]]\nname = \"ssh\"\nfrom = [\"lan\", \"wan\"]\nto = \"10.0.0.0/8\"\ntcp = 22\nunidentified = \"reset\"\n")).unwrap();
    let expected = "weir.toml:16: warning: intercept `ssh` takes port 22: in SSH the server speaks first, so sessions \
                    through the box get `unidentified` (reset); the gateway's own addresses are never intercepted\n\
                    weir.toml: ok: 2 ports, 2 intercepts, 0 rules, 0 names, 0 pools; 1 warning";
    assert_eq!(report.to_string(), expected);
    assert_eq!(config.intercepts[1].from, PortSet::of_bits(0b11));
    let json = report.json();
    assert_eq!(json["ok"], true);
    assert_eq!(json["summary"]["intercepts"], 2);
    assert_eq!(json["findings"][0]["severity"], "warning");
}

#[test]
fn bad_file_prints_every_error_with_its_line() {
    let report =
        read("[gateway]\nfail = \"ajar\"\n\n[[port]]\nname = \"lan\"\ndevice = \"lan0\"\nprot = 1\n")
            .unwrap_err();
    let expected = "weir.toml:2: error: `fail` in [gateway]: unknown value `ajar`; allowed: open, closed\n\
                    weir.toml:7: error: unknown key `prot` in [[port]]; allowed: name, device, queues, mode\n\
                    weir.toml: not valid: 2 errors, 0 warnings";
    assert_eq!(report.to_string(), expected);
    let json = report.json();
    assert_eq!(json["ok"], false);
    assert_eq!(json["errors"], 2);
    assert_eq!(json["findings"][0]["line"], 2);
    assert_eq!(json["findings"][0]["column"], 8);
    assert_eq!(json["summary"], serde_json::Value::Null);
}

#[test]
fn file_not_there_is_named() {
    let report = check(Path::new("/nowhere/weir.toml"));
    assert_eq!(report.errors(), 1);
    assert!(
        report.to_string().starts_with("/nowhere/weir.toml: error: cannot be read: No such file"),
        "{report}"
    );
}

#[test]
fn file_not_utf8_names_the_line() {
    let folder = Folder::new("utf8");
    let path = folder.write("weir.toml", b"[gateway]\n# caf\xe9\n");
    let report = check(&path);
    assert_eq!(report.findings[0].to_string(), format!("{}:2: error: is not UTF-8", path.display()));
}

/// The sample of DESIGN section 9, word for word: each of its keys is known, and what this version cannot do is said.
const DESIGN: &str = r#"
[gateway]
fail    = "open"                    # weir is down: "open" forwards, "closed" drops intercepted traffic
admin   = "/run/weir/admin.sock"
metrics = "127.0.0.1:9470"

[[port]]
name = "lan"
device = "eth1"
queues = "all"                      # or [0, 1]
mode = "auto"                       # auto | zero-copy | copy | generic

[workers]
cores = "auto"                      # or [2, 3]
idle  = "adaptive"                  # or "busy"
express = "auto"                    # auto | always | standby | never
flows = 1048576                     # capacity of the box

[fallback]
mark = "0x77/0xff"
table = 177
priority = 1077
listen = 12377

[[intercept]]
name = "web"
from = "lan"
to   = ["0.0.0.0/0", "::/0"]
tcp  = [80, 443, "8000-8099"]
handshake = "through"               # or "answer", or "relay"
hold = { bytes = "16KiB", time = "3s" }
full = "kernel"                     # no room for a new flow: or "drop"
otherwise    = "allow"
unidentified = "allow"
midstream    = { action = "reset", grace = "60s" }
rules = [
  { host = ["*.ads.example"], action = "reset" },
  { host_file = "blocked.txt", action = "drop" },
  { host = ["intranet.example"], action = "send", pool = "intranet" },
  { from = ["10.1.9.0/24"], action = "relay" },
]

[[pool]]
name = "intranet"
servers = ["10.2.0.10:443", "10.2.0.11:443"]
balance = "maglev"
source  = "client"                  # or "gateway"
proxy_protocol = "v2"               # optional
"#;

#[test]
fn sample_of_the_design_needs_a_server_for_each_family() {
    let folder = Folder::new("design");
    folder.write("blocked.txt", "blocked.example\n");
    let path = folder.write("weir.toml", DESIGN);
    let report = check(&path);
    let expected = format!(
        "{0}:39: error: the rule takes connections to IPv6 destinations, and pool `intranet` has no IPv6 server: add one, \
         or let the rule take IPv4 only (`to = [\"0.0.0.0/0\"]`)\n\
         {0}: not valid: 1 error, 0 warnings",
        path.display()
    );
    assert_eq!(report.to_string(), expected);
    folder.write("weir.toml", DESIGN.replace("\"10.2.0.11:443\"", "\"[fd00:2::10]:443\""));
    let report = check(&path);
    assert_eq!(report.findings, []);
}

#[test]
fn broken_syntax_says_what_was_expected() {
    let rows: &[(&str, &[&str])] = &[
        ("[workers]\nflows = \n", &["2: error: string values must be quoted, expected literal string"]),
        ("[workers]\nflows = 100\nflows = 200\n", &["3: error: duplicate key: `flows`"]),
        ("[workers\nidle = \"busy\"\n", &["1: error: unclosed table, expected `]`"]),
        (
            "[workers]\nidle = \"busy\n[gateway]\nfail = open\n",
            &[
                "2: error: invalid basic string, expected `\"`",
                "4: error: string values must be quoted, expected literal string: `open`",
            ],
        ),
        (
            "[[intercept]]\nrules = [\n{ host = \"a\" action = \"drop\" },\n]\n",
            &["3: error: missing comma between key-value pairs, expected `,`"],
        ),
    ];
    for (text, expected) in rows {
        let report = read(text).unwrap_err().to_string();
        let lines: Vec<&str> = report.lines().collect();
        let (whole, findings) = lines.split_last().unwrap();
        let expected: Vec<String> = expected.iter().map(|line| format!("weir.toml:{line}")).collect();
        assert_eq!(findings, expected, "{text}");
        assert!(whole.contains("not valid"), "{whole}");
    }
}
