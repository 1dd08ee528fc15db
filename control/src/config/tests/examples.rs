use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

#[test]
fn every_example_is_valid_without_a_warning() {
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let report = check(&path);
            assert!(report.is_ok() && report.warnings() == 0, "{report}");
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} examples");
}

/// What gateway.toml shows as defaults, with its comment signs taken away, are the defaults.
#[test]
fn gateway_example_shows_the_defaults() {
    let text = std::fs::read_to_string(folder().join("gateway.toml")).unwrap();
    let keys = [
        "heartbeat",
        "queues",
        "mode",
        "cores",
        "idle",
        "express",
        "flows",
        "mark",
        "table",
        "priority",
        "listen",
        "half_open",
        "held",
        "held_full",
        "connect",
        "pool_connect",
        // Once for workers and once for the relay.
        "idle",
        "half_closed",
        "keepalive",
        "user_timeout",
        "handshake",
        "syn_cookies",
        "hold",
        "full",
        "quic",
        "verify_host",
        "otherwise",
        "unidentified",
        "midstream",
        "ech_public_names",
    ];
    let mut shown = 0;
    let line = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if keys.contains(&rest.split(' ').next().unwrap_or("")) => {
            shown += 1;
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    let spelled_out: String = text.lines().map(line).map(|line| line + "\n").collect();
    assert_eq!(shown, keys.len());
    let (silent, _) = read(&text).unwrap();
    let (spoken, _) = read(&spelled_out).unwrap();
    assert_eq!(format!("{silent:?}"), format!("{spoken:?}"));
}
