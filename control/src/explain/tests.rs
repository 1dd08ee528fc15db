//! Questions, before anybody is asked.

use std::fs;

use super::*;
use crate::config;

fn question(to: &str) -> Question {
    Question {
        from: "10.1.0.2:40000".parse().unwrap(),
        to: to.parse().unwrap(),
        ingress: None,
        host: None,
        alpn: Vec::new(),
        ech: false,
        hello_retry: false,
        protocol: None,
    }
}

#[test]
fn mapped_address_is_asked_about_as_ipv4() {
    assert_eq!(question("[::ffff:192.0.2.10]:443").normal().to, "192.0.2.10:443".parse().unwrap());
    assert_eq!(question("[2001:db8::1]:443").normal().to, "[2001:db8::1]:443".parse().unwrap());
}

#[test]
fn name_is_of_tls_on_its_port_and_of_http_elsewhere() {
    let named = |to, alpn: &[&str], protocol| {
        let alpn = alpn.iter().map(|name| (*name).to_owned()).collect();
        let host = Some("WWW.Example.".to_owned());
        Question { host, alpn, protocol, ..question(to) }.normal()
    };
    assert_eq!(named("192.0.2.1:443", &[], None).protocol, Some(Protocol::Tls));
    assert_eq!(named("192.0.2.1:80", &[], None).protocol, Some(Protocol::Http));
    assert_eq!(named("192.0.2.1:80", &["h2"], None).protocol, Some(Protocol::Tls));
    assert_eq!(named("192.0.2.1:443", &[], Some(Protocol::Http)).protocol, Some(Protocol::Http));
    assert_eq!(named("192.0.2.1:443", &[], None).host.as_deref(), Some("www.example"));
    assert_eq!(question("192.0.2.1:443").normal().protocol, None);
}

#[test]
fn international_name_is_asked_about_as_it_is_on_the_wire() {
    for name in ["b\u{fc}cher.example", "B\u{dc}CHER.example.", "xn--bcher-kva.example"] {
        let question = Question { host: Some(name.to_owned()), ..question("192.0.2.1:443") }.normal();
        assert_eq!(question.host.as_deref(), Some("xn--bcher-kva.example"), "{name}");
    }
}

const RULES: &str = "[[port]]\nname = \"lan\"\ndevice = \"a\"\n[[intercept]]\nname = \"web\"\nfrom = \"lan\"\n\
    to = [\"0.0.0.0/0\", \"::/0\"]\ntcp = 443\nrules = [\n\
    { host = [\"first.example\"], action = \"reset\" },\n\
    { host_file = \"missing.txt\", action = \"drop\" },\n\
    { host = [\"last.example\"], action = \"reset\" },\n]\n";

/// A list that is missing leaves open what its rule could decide, and nothing else.
#[test]
fn verdict_is_doubted_where_a_rule_before_it_lacks_its_list() {
    let folder = std::env::temp_dir().join(format!("weir-explain-{}-doubts", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("weir.toml");
    fs::write(&file, RULES).unwrap();
    let (config, _) = config::load_leniently(&file).unwrap_or_else(|report| panic!("{report}"));
    let ingress = ingress::Ingress { port: Some((0, "lan".to_owned())), ..Default::default() };
    let rule = &config.intercepts[0].rules[1].origin;
    for (from, to) in [("10.1.0.2:40000", "192.0.2.1:443"), ("[fd01::2]:40000", "[2001:db8::1]:443")] {
        for (host, open) in
            [("first.example", false), ("last.example", true), ("other.example", true), ("", false)]
        {
            let question = Question {
                from: from.parse().unwrap(),
                host: Some(host.to_owned()).filter(|host| !host.is_empty()),
                protocol: Some(Protocol::Tls),
                ..question(to)
            };
            let mut steps = Vec::new();
            let mut doubts = doubts::find(Some(&config), &Gateway::default(), &mut steps);
            doubts.look_at(Some(&config), |config| config.compile(1), (&ingress, &question), &mut steps);
            let told = doubts.told.join("\n");
            assert!(told.contains("missing.txt cannot be read: No such file"), "{told}");
            assert!(
                steps[0].detail[0].contains(&format!("the rule at {rule} cannot be judged")),
                "{steps:?}"
            );
            let sentence =
                format!("the verdict is not certain: whether the rule at {rule} takes it is not known");
            assert_eq!(told.contains(&sentence), open, "{from}, {host}: {told}");
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}
