use super::*;

#[test]
fn valid_file_prints_warnings_and_a_summary() {
    let (config, report) = read(&format!("{PORTS}{WEB}[[intercept]]\nname = \"ssh\"\nfrom = [\"lan\", \"wan\"]\nto = \"10.0.0.0/8\"\ntcp = 22\nunidentified = \"reset\"\n")).unwrap();
    let expected = "weir.toml:16: warning: intercept `ssh` takes port 22: in SSH the server speaks first, so sessions \
                    through the box get `unidentified` (reset); the gateway's own addresses are never intercepted\n\
                    weir.toml: ok: 2 ports, 2 intercepts, 0 rules, 0 names, 0 pools; 1 warning";
    assert_eq!(report.to_string(), expected);
    assert_eq!(config.intercepts[1].from.0, 0b11);
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
