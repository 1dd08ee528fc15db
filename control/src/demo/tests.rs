use super::*;

/// Proves the lab, its origins and its clients: with the kernel alone in the gateway what should pass
/// passes, and what only weir would refuse is not refused.
#[test]
fn lab_without_weir_forwards() {
    let Some(lab) = Lab::for_test(&LabOptions { queues: 2, forwarding: Some(true), ..LabOptions::default() })
    else {
        return;
    };
    let stage = Stage::new(&lab).expect("origins");
    for scenario in SCENARIOS {
        for case in cases(scenario.variants).filter(|case| !case.variant.to_pool()) {
            let result = (scenario.play)(&stage, case);
            let at = format!("{} {:?}: {result:?}", scenario.name, case.names());
            match scenario.name {
                "https-denied" | "http-denied" => {
                    let answered = "the request was answered with status 200";
                    assert_eq!(result.err().as_deref(), Some(answered), "{at}");
                }
                _ => assert!(result.is_ok(), "{at}"),
            }
        }
    }
}

#[test]
fn downloads_without_weir_are_intact_and_early_connections_live() {
    let Some(lab) = Lab::for_test(&LabOptions { queues: 1, forwarding: Some(true), ..LabOptions::default() })
    else {
        return;
    };
    let mut stage = Stage::new(&lab).expect("origins");
    let early = cases(Variant::DIRECT).map(|case| EarlyConnection::open(&stage, case).expect("open"));
    let early: Vec<_> = early.collect();
    for (family, result) in play_kill(&mut stage) {
        let seen = result.unwrap_or_else(|differs| panic!("{}: {differs}", family.name()));
        assert!(seen.what.ends_with("hash equal"), "{}", seen.what);
    }
    for connection in early {
        connection.play(&stage).expect("still open");
    }
}

#[test]
fn weir_that_ends_at_once_is_reported_with_its_last_words() {
    if Lab::for_test(&LabOptions::default()).is_none() {
        return;
    }
    let script = std::env::temp_dir().join(format!("weir-test-{}.sh", std::process::id()));
    std::fs::write(&script, "#!/bin/sh\necho \"port lan0: no such device\" >&2\nexit 3\n").expect("a script");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&script, mode).expect("executable");
    let options = DemoOptions {
        weir: script.clone(),
        config: None,
        devices: None,
        mode: None,
        mtu: None,
        body_bytes: stage::BODY_BYTES,
        workers: 1,
        keep: false,
        verbose: false,
        json: true,
    };
    let result = run(&options, &mut |_| ());
    std::fs::remove_file(script).expect("removed");
    let text = result.expect_err("weir ended").to_string();
    assert!(text.contains("weir run ended with exit status: 3"), "{text}");
    assert!(text.contains("port lan0: no such device"), "{text}");
}

#[test]
fn more_workers_than_cores_are_refused_with_the_limit() {
    let Some(lab) = Lab::for_test(&LabOptions::default()) else { return };
    let options = DemoOptions {
        weir: PathBuf::from("weir"),
        config: None,
        devices: None,
        mode: None,
        mtu: None,
        body_bytes: stage::BODY_BYTES,
        workers: 10_000,
        keep: false,
        verbose: false,
        json: true,
    };
    let text = config::prepare(&lab, &options).expect_err("too many").to_string();
    assert!(text.contains("cannot run 10000 workers") && text.contains("--workers from 1 to"), "{text}");
}

#[test]
fn connection_on_another_road_differs_though_it_worked() {
    let mut told = Vec::new();
    let mut tell = |progress: Progress<'_>| match progress {
        Progress::Row(row) => told.push(row.ok),
        Progress::Report(_) => unreachable!("rows alone were played"),
    };
    let mut rows = Rows { report: Report::default(), tell: &mut tell };
    for (road, lane, ok) in
        [("fast", "", true), ("fast", "express", true), ("kernel", "", false), ("", "", false)]
    {
        let asked =
            Asked { scenario: "any", case: ("IPv6", ""), asked: "any", expected: "any", road: "fast" };
        let road = Road { name: road.into(), lane: lane.into(), why: "allow".into() };
        rows.push(asked, Instant::now(), Ok(Seen { what: "worked".into(), road }));
        assert_eq!(rows.report.rows.last().map(|row| row.ok), Some(ok));
    }
    let report = rows.report;
    assert_eq!(told, [true, true, false, false]);
    assert_eq!(report.rows[1].road, "fast/express");
    assert_eq!(report.rows[2].happened, "worked, but not on the fast road");
    assert!(!report.is_ok());
}

#[test]
fn nginx_names_the_ends_that_a_proxy_header_names() {
    use std::io::{Read as _, Write as _};
    let Some(lab) = Lab::for_test(&LabOptions { queues: 1, forwarding: Some(true), ..LabOptions::default() })
    else {
        return;
    };
    let mut stage = Stage::new(&lab).expect("origins");
    stage.start_nginx(NGINX_NAME);
    if let Err(why) = &stage.nginx {
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(why.contains("there is no nginx") && !ci, "{why}");
        return eprintln!("SKIPPED: {why}");
    }
    let target = "192.0.2.12:8080".parse().expect("an address");
    let mut stream = stage.connect_to(Family::V4.addresses().client, target).expect("nginx listens");
    let header = "PROXY TCP4 10.0.0.1 10.0.0.2 1000 80\r\n";
    let request = "HEAD /body HTTP/1.1\r\nhost: nginx.example\r\nconnection: close\r\n\r\n";
    stream.write_all(format!("{header}{request}").as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("x-proxied: 10.0.0.1 1000 10.0.0.2 80\r\n"), "{answer}");
}
