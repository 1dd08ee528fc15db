use super::super::*;
use super::Random;

fn set(patterns: &[&str]) -> NameSet {
    NameSet::parse(patterns.iter().copied()).unwrap()
}

#[test]
fn lookup_by_pattern_and_host() {
    let deep = format!("{}ads.example", "a.".repeat(100));
    let too_long = format!("{}.ads.example", "B".repeat(400));
    let rows: &[(&[&str], &str, bool)] = &[
        (&["ads.example"], "ads.example", true),
        (&["ads.example"], "x.ads.example", false),
        (&["ads.example"], "bads.example", false),
        (&["ads.example"], "ads.example.org", false),
        (&["*.ads.example"], "ads.example", false),
        (&["*.ads.example"], "x.ads.example", true),
        (&["*.ads.example"], "y.x.ads.example", true),
        (&["*.ads.example"], &deep, true),
        (&["*.ads.example"], "bads.example", false),
        (&["*.ads.example"], "example", false),
        (&["*.example"], "x.ads.example", true),
        (&["*.example"], "example", false),
        (&["*.ads.example", "ads.example"], "ads.example", true),
        // A dot in front is the name and all below.
        (&[".ads.example"], "ads.example", true),
        (&[".ads.example"], "y.x.ads.example", true),
        (&[".ads.example"], "bads.example", false),
        (&[".ads.example"], "example", false),
        (&["*"], "anything", true),
        (&["*"], "", false),
        (&["*"], ".", false),
        // Upper and lower case, and the root's dot, in pattern and host.
        (&["Ads.Example."], "ads.example", true),
        (&["ads.example"], "ADS.example.", true),
        (&["*.ADS.example"], "X.ads.EXAMPLE.", true),
        (&["ads.example"], "ads.example..", false),
        // Hosts that no client should send still meet the rule that they end in.
        (&["*.ads.example"], ".ads.example", true),
        (&["*.ads.example"], "b\u{fc}cher.ads.example", true),
        (&["*.ads.example"], &too_long, true),
        (&["ads.example"], &too_long, false),
        // Punycode, underscores, addresses as names, one label.
        (&["xn--bcher-kva.example"], "xn--bcher-kva.example", true),
        (&["_dmarc.example"], "_dmarc.example", true),
        (&["192.0.2.1"], "192.0.2.1", true),
        (&["localhost"], "localhost", true),
        (&[], "localhost", false),
    ];
    for (patterns, host, expected) in rows {
        assert_eq!(set(patterns).contains(host), *expected, "{host} in {patterns:?}");
    }
}

#[test]
fn bad_pattern_says_why() {
    let long_label = "a".repeat(64);
    let long_name = "abc.".repeat(64) + "d";
    let rows: &[(&str, NameError)] = &[
        ("", NameError::Empty),
        (".", NameError::Empty),
        ("*.", NameError::Empty),
        ("b\u{fc}cher.example", NameError::NotAscii),
        ("a..example", NameError::EmptyLabel),
        ("..example", NameError::EmptyLabel),
        ("*..example", NameError::EmptyLabel),
        ("a.example..", NameError::EmptyLabel),
        ("ads*.example", NameError::Wildcard),
        ("*ads.example", NameError::Wildcard),
        ("*.*.example", NameError::Wildcard),
        ("**", NameError::Wildcard),
        ("ads.example:443", NameError::Port),
        ("https://ads.example", NameError::Url),
        ("ads.example/path", NameError::Url),
        ("0.0.0.0 ads.example", NameError::Space),
        ("ads,example", NameError::Character(',')),
        ("[2001:db8::1]", NameError::Character('[')),
        (&long_label, NameError::LabelTooLong(long_label.clone())),
        (&long_name, NameError::TooLong(257)),
    ];
    for (pattern, expected) in rows {
        assert_eq!(NameSet::default().insert(pattern), Err(expected.clone()), "{pattern}");
    }
    assert!(NameError::NotAscii.to_string().contains("punycode"));
}

#[test]
fn name_of_the_greatest_length_matches() {
    let name = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
    assert_eq!(name.len(), MAX_NAME);
    assert!(set(&[&name]).contains(&name.to_ascii_uppercase()));
}

#[test]
fn insert_tells_duplicates() {
    let mut names = NameSet::default();
    for (pattern, fresh) in [
        ("a.example", true),
        ("A.example.", false),
        ("*.a.example", true),
        (".a.example", false),
        ("*", true),
        ("*", false),
        (".b.example", true),
    ] {
        assert_eq!(names.insert(pattern), Ok(fresh), "{pattern}");
    }
    assert_eq!(names.len(), 4);
}

#[test]
fn covers_by_sets() {
    let rows: &[(&[&str], &[&str], bool)] = &[
        (&["*"], &["a.example", "*.b.example", "*"], true),
        (&["a.example"], &["*"], false),
        (&["a.example", "b.example"], &["b.example"], true),
        (&["b.example"], &["a.example", "b.example"], false),
        (&["*.example"], &["a.example", "b.a.example"], true),
        (&["*.example"], &["example"], false),
        (&["*.example"], &["*.example"], true),
        (&["*.example"], &["*.a.example"], true),
        (&["*.a.example"], &["*.example"], false),
        (&["a.example"], &["*.a.example"], false),
        (&[".a.example"], &["a.example", "*.a.example", "b.a.example"], true),
        (&["a.example", "*.a.example"], &[".a.example"], true),
        (&["*.a.example"], &[".a.example"], false),
    ];
    for (earlier, later, expected) in rows {
        assert_eq!(set(earlier).covers(&set(later)), *expected, "{earlier:?} over {later:?}");
    }
}

/// A million names: each is found, what is not there is not, and a wildcard among them works. The time of a lookup is
/// the benches' business; here the list only must not make the test slow.
#[test]
fn million_names_are_found() {
    let mut names = NameSet::default();
    for i in 0..1_000_000 {
        names.insert(&format!("host{i}.blocked.example")).unwrap();
    }
    names.insert("*.wild.example").unwrap();
    assert_eq!(names.len(), 1_000_001);
    for i in (0..1_000_000).step_by(997) {
        assert!(names.contains(&format!("HOST{i}.blocked.example")));
        assert!(!names.contains(&format!("host{i}.allowed.example")));
    }
    assert!(names.contains("a.b.wild.example"));
    assert!(names.memory() < 48 << 20, "{} octets", names.memory());
}

/// As a set that is made of nothing but definitions says it.
#[test]
fn random_sets_agree_with_the_definition() {
    let labels = ["a", "b", "c", "example"];
    let mut random = Random(7);
    let name = |random: &mut Random| {
        let count = 1 + random.below(4);
        (0..count).map(|_| *random.pick(&labels)).collect::<Vec<_>>().join(".")
    };
    for _ in 0..2000 {
        let count = random.below(6);
        let patterns: Vec<String> =
            (0..count).map(|_| format!("{}{}", random.pick(&["", "*.", "."]), name(&mut random))).collect();
        let names = NameSet::parse(patterns.iter().map(String::as_str)).unwrap();
        for _ in 0..20 {
            let host = name(&mut random);
            let expected = patterns.iter().any(|pattern| match pattern.strip_prefix('*') {
                Some(end) => host.ends_with(end),
                None => match pattern.strip_prefix('.') {
                    Some(apex) => host == apex || host.ends_with(pattern),
                    None => host == *pattern,
                },
            });
            assert_eq!(names.contains(&host), expected, "{host} in {patterns:?}");
        }
    }
}
