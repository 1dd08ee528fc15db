//! What a user of `weir replay` sees.

use std::process::{Command, Output};

use super::capture::{CONFIG, Capture, RULE_LINE, Talk, folder, hello, request};

/// Two connections of each family: TLS that nothing forbids, and HTTP that a rule resets.
fn capture() -> Capture {
    let mut capture = Capture::default();
    for (client, server) in [("10.1.0.2", "192.0.2.10"), ("[2001:db8:1::2]", "[2001:db8:2::10]")] {
        let allowed = Talk::of((&format!("{client}:40000"), &format!("{server}:443")));
        let refused = Talk::of((&format!("{client}:40001"), &format!("{server}:80")));
        let others = Talk::of((&format!("{client}:40002"), &format!("{server}:9999")));
        capture.frames(&allowed.whole(&hello("www.example", &["h2", "http/1.1"])));
        capture.frames(&refused.whole(&request("banner.ads.example")));
        capture.frames(&others.whole(b"hello"));
    }
    capture
}

/// Runs the command in the folder of the files, each test with its own.
fn weir(test: &str, capture: &[u8], more: &[&str]) -> Output {
    let folder = folder().join(test);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("replay.toml"), CONFIG).expect("a configuration");
    std::fs::write(folder.join("x.pcap"), capture).expect("a capture");
    Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["replay", "-c", "replay.toml", "x.pcap"])
        .args(more)
        .current_dir(folder)
        .output()
        .expect("weir runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn capture_replayed_prints_a_row_a_connection() {
    let output = weir("table", capture().bytes(), &[]);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    let stdout = text(&output.stdout);
    let lines: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let rule = format!("replay.toml:{RULE_LINE}");
    let allowed = ["tls", "www.example", "h2,http/1.1", "allow", "-", "fast", "otherwise"];
    let refused = ["http", "banner.ads.example", "-", "reset", &rule, "fast", "rule"];
    let rows = [
        ("10.1.0.2:40000", "192.0.2.10:443", allowed),
        ("10.1.0.2:40001", "192.0.2.10:80", refused),
        ("[2001:db8:1::2]:40000", "[2001:db8:2::10]:443", allowed),
        ("[2001:db8:1::2]:40001", "[2001:db8:2::10]:80", refused),
    ];
    assert_eq!(
        lines[0],
        ["client", "server", "protocol", "name", "ALPN", "verdict", "rule", "road", "reason"]
    );
    for (line, (client, server, rest)) in lines[1..].iter().zip(&rows) {
        assert_eq!(line[..], [&[*client, *server][..], rest].concat());
    }
    let summary: Vec<&str> = stdout.lines().skip(1 + rows.len()).collect();
    // The refused requests, and what the server says to them.
    assert_eq!(summary, ["4 connections; 30 packets, 10 of no intercept", "dropped 4: verdict-reset"]);
}

#[test]
fn capture_replayed_as_json_has_what_the_table_has() {
    let output = weir("json", capture().bytes(), &["--json"]);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let flows = json["flows"].as_array().expect("flows");
    let rule = format!("replay.toml:{RULE_LINE}");
    let fields = ["client", "destination", "protocol", "host", "verdict", "rule", "road", "reason"];
    let allowed = [Some("tls"), Some("www.example"), Some("allow"), None, Some("fast"), Some("otherwise")];
    let refused =
        [Some("http"), Some("banner.ads.example"), Some("reset"), Some(&*rule), Some("fast"), Some("rule")];
    let rows = [
        ("10.1.0.2:40000", "192.0.2.10:443", allowed),
        ("10.1.0.2:40001", "192.0.2.10:80", refused),
        ("[2001:db8:1::2]:40000", "[2001:db8:2::10]:443", allowed),
        ("[2001:db8:1::2]:40001", "[2001:db8:2::10]:80", refused),
    ];
    assert_eq!(flows.len(), rows.len());
    for (flow, (client, server, rest)) in flows.iter().zip(rows) {
        let seen: Vec<Option<&str>> = fields.iter().map(|field| flow[*field].as_str()).collect();
        assert_eq!(seen, [&[Some(client), Some(server)][..], &rest].concat());
    }
    assert_eq!(flows[0]["alpn"], serde_json::json!(["h2", "http/1.1"]));
    assert_eq!((&json["packets"], &json["passed"]), (&30.into(), &10.into()));
    assert_eq!(json["drops"], serde_json::json!([["verdict-reset", 4]]));
}

#[test]
fn capture_that_breaks_off_gives_what_was_read_and_exits_1() {
    let capture = capture();
    let broken = &capture.bytes()[..capture.bytes().len() - 1];
    let output = weir("broken", broken, &[]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("4 connections; 29 packets"), "{stdout}");
    assert!(stdout.contains("x.pcap: ends within packet 30: the capture was cut short"), "{stdout}");
}

#[test]
fn file_that_is_no_capture_is_named_and_exits_1() {
    let output = weir("none", b"no capture at all, but long enough for a header", &[]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("x.pcap: neither a pcap nor a pcapng capture"), "{stderr}");
}
