//! Questions, before anybody is asked.

use super::*;

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
