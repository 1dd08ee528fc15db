use std::net::IpAddr;

use super::*;
use crate::lists::{Content, Kind};

fn rules(folder: &Folder, rules: &str) -> PathBuf {
    folder.write("weir.toml", format!("{PORTS}{WEB}rules = [\n{rules}\n]\n"))
}

fn with_list(folder: &Folder, list: impl AsRef<[u8]>) -> Report {
    folder.write("blocked.txt", list);
    check(&rules(folder, "{ host_file = \"blocked.txt\", action = \"drop\" },"))
}

/// Whether the only rule of `path` takes each host.
fn assert_taken(path: &Path, rows: &[(&str, bool)]) {
    let (config, _) = load(path).unwrap();
    let rule = &config.intercepts[0].rules[0];
    let sets: Vec<_> = rule.host.iter().chain(&rule.host_lists).collect();
    for (host, expected) in rows {
        assert_eq!(sets.iter().any(|set| set.contains(host)), *expected, "{host}");
    }
}

const LISTED: &str = "\u{feff}# names
a.example\r
*.b.example # all below
.c.example

0.0.0.0 d.example e.example\tf.example
127.0.0.1\tlocalhost  g.example
::1 localhost ip6-loopback h.example
fe80::1%lo0 localhost zone.example
127.0.0.1%lo0 not-an-address.example
0.0.0.0 0.0.0.0
B\u{fc}cher.example
*.\u{65e5}\u{672c}.example
last.example";

#[test]
fn hosts_format_and_plain_names_are_read_together() {
    let folder = Folder::new("formats");
    let report = with_list(&folder, LISTED);
    assert!(report.is_ok() && report.findings.is_empty(), "{report}");
    assert_eq!(report.lists[0].entries, 12);
    assert_eq!(report.lists[0].bad_lines, 1, "{report}");
    assert_eq!(report.lists[0].first_bad[0].line, 10);
    let rows = [
        ("a.example", true),
        ("x.a.example", false),
        ("x.b.example", true),
        ("b.example", false),
        ("c.example", true),
        ("x.y.c.example", true),
        ("d.example", true),
        ("e.example", true),
        ("f.example", true),
        ("g.example", true),
        ("h.example", true),
        ("zone.example", true),
        ("localhost", false),
        ("0.0.0.0", false),
        ("xn--bcher-kva.example", true),
        ("x.xn--wgv71a.example", true),
        ("xn--wgv71a.example", false),
        ("last.example", true),
    ];
    assert_taken(&folder.0.join("weir.toml"), &rows);
}

/// Inline and in a file, a pattern means the same.
#[test]
fn wildcards_of_lists_are_those_of_host() {
    for pattern in
        ["ads.example", "*.ads.example", ".ads.example", "B\u{fc}cher.example", "*.b\u{fc}cher.example"]
    {
        let folder = Folder::new("alike");
        folder.write("list.txt", pattern);
        let file = rules(&folder, "{ host_file = \"list.txt\", action = \"drop\" }");
        let (listed, _) = load(&file).unwrap();
        let (written, _) =
            load(&rules(&folder, &format!("{{ host = \"{pattern}\", action = \"drop\" }}"))).unwrap();
        let listed = &listed.intercepts[0].rules[0].host_lists[0];
        let written = written.intercepts[0].rules[0].host.as_ref().unwrap();
        for host in
            ["ads.example", "x.ads.example", "xn--bcher-kva.example", "x.xn--bcher-kva.example", "example"]
        {
            assert_eq!(listed.contains(host), written.contains(host), "{host} by {pattern}");
        }
    }
}

#[test]
fn bad_lines_are_warnings_of_that_file_and_the_rest_holds() {
    let folder = Folder::new("bad-lines");
    let list = b"a.example\n<html>\nb..example\n\xff\n*\nfoo bar\n0.0.0.0 ok.example b@d.example\n||ads.example^\nlast.example";
    let report = with_list(&folder, list);
    assert!(report.is_ok(), "{report}");
    assert_eq!(report.warnings(), 7);
    let file = folder.0.join("blocked.txt").display().to_string();
    let text = report.to_string();
    let expected = [
        (2, "`<` is not allowed"),
        (3, "empty label"),
        (4, "not UTF-8"),
        (5, "would take every name"),
        (6, "one name a line"),
        (7, "`@` is not allowed"),
        (8, "`|` is not allowed"),
    ];
    for (line, fragment) in expected {
        let start = format!("{file}:{line}: warning: ");
        let found = text.lines().find(|found| found.starts_with(&start)).unwrap_or_else(|| panic!("{text}"));
        assert!(found.contains(fragment), "{found}");
    }
    assert!(text.contains(&format!("{file}: 3 names in ")), "{text}");
    let rows = [("a.example", true), ("ok.example", true), ("last.example", true)];
    assert_taken(&folder.0.join("weir.toml"), &rows);
    let brief = report.lists[0].brief().unwrap();
    assert!(brief.contains("7 lines hold no name and are passed over; the first is line 2"), "{brief}");
}

#[test]
fn many_bad_lines_are_told_in_part_and_counted() {
    let folder = Folder::new("many-bad-lines");
    let report = with_list(&folder, "a b\n".repeat(1000) + "good.example\n");
    assert!(report.is_ok());
    assert_eq!((report.warnings(), report.lists[0].first_bad.len()), (1000, 20));
    assert!(report.to_string().contains("blocked.txt: warning: 980 lines more hold no name"), "{report}");
    assert_eq!(report.json()["lists"][0]["bad_lines"], 1000);
}

#[test]
fn line_without_end_is_passed_over() {
    let folder = Folder::new("long-line");
    let report = with_list(&folder, format!("a.example\n{}\nb.example\n", "x".repeat(200_000)));
    assert_eq!((report.lists[0].entries, report.lists[0].bad_lines), (2, 1));
    assert_eq!(report.lists[0].first_bad[0].line, 2);
}

/// An error page where a list should be does not take a list's place.
#[test]
fn file_that_is_no_list_is_an_error_of_the_rule() {
    let folder = Folder::new("no-names");
    let report = with_list(&folder, "<!DOCTYPE html>\n<p>404 not found</p>\n");
    assert_eq!(report.errors(), 1, "{report}");
    assert_eq!(report.findings[0].line, Some(13));
    assert!(report.findings[0].message.contains("is no list of names: none of its 2 lines"), "{report}");
}

#[test]
fn file_not_there_names_the_line_of_the_rule() {
    let folder = Folder::new("no-list");
    for key in ["host_file", "from_file", "to_file"] {
        let report = check(&rules(&folder, &format!("{{ {key} = \"none.txt\", action = \"drop\" }}")));
        assert_eq!(report.errors(), 1);
        assert_eq!(report.findings[0].line, Some(13));
        assert!(report.findings[0].message.contains("none.txt` cannot be read: No such file"), "{report}");
        let report = check(&rules(&folder, &format!("{{ {key} = \"/dev/zero\", action = \"drop\" }}")));
        assert!(report.findings[0].message.contains("no regular file"), "{report}");
    }
}

/// Who only asks the running gateway needs no list.
#[test]
fn file_not_there_does_not_hide_the_admin_socket() {
    let folder = Folder::new("no-list-admin");
    let path = rules(&folder, "{ host_file = \"none.txt\", action = \"drop\" }");
    assert_eq!(load_without_lists(&path).unwrap().gateway.admin, defaults::gateway().admin);
}

#[test]
fn empty_list_is_a_warning_and_its_rule_never_matches() {
    let folder = Folder::new("empty-list");
    let report = with_list(&folder, "# nothing yet\n");
    assert!(report.is_ok() && report.warnings() == 1, "{report}");
    assert!(report.findings[0].message.contains("holds no names"), "{report}");
    assert_taken(&folder.0.join("weir.toml"), &[("a.example", false)]);

    folder.write("empty.txt", "");
    let (config, report) =
        load(&rules(&folder, "{ from_file = \"empty.txt\", to = \"10.0.0.0/8\", action = \"drop\" }"))
            .unwrap();
    assert_eq!(report.warnings(), 1, "{report}");
    let rule = weir_core::policy::Rule::new(config.intercepts[0].rules[0].clone());
    assert!(!rule.by_content());
}

#[test]
fn host_and_several_host_files_are_one_condition() {
    let folder = Folder::new("both");
    folder.write("a.txt", "a.example\nb.example\n");
    folder.write("b.txt", "d.example\n");
    let rule = "{ host_file = [\"a.txt\", \"b.txt\"], host = [\"b.example\", \"*.c.example\", \"none\", \"address\"], action = \"drop\" }";
    let path = rules(&folder, rule);
    let rows = [
        ("a.example", true),
        ("b.example", true),
        ("x.c.example", true),
        ("c.example", false),
        ("d.example", true),
    ];
    assert_taken(&path, &rows);
    let (config, report) = load(&path).unwrap();
    assert_eq!(report.summary.unwrap().names, 5);
    let rule = &config.intercepts[0].rules[0];
    assert!(rule.host_none && rule.host_address);
}

/// A name that is spelled like a word of ours is written with the root's dot.
#[test]
fn host_none_is_a_condition_and_none_with_a_dot_a_name() {
    let folder = Folder::new("none");
    let path = rules(&folder, "{ host = \"none.\", action = \"drop\" }");
    assert_taken(&path, &[("none", true)]);
    assert!(!load(&path).unwrap().0.intercepts[0].rules[0].host_none);
}

#[test]
fn one_file_in_many_rules_is_read_once_and_replaced_in_all() {
    let folder = Folder::new("shared");
    folder.write("a.txt", "a.example\n");
    let text = "{ host_file = \"a.txt\", tcp = 80, action = \"drop\" }, { host_file = \"a.txt\", action = \"reset\" }";
    let (mut config, _) = load(&rules(&folder, text)).unwrap();
    assert_eq!(config.lists.len(), 1);
    let path = folder.write("a.txt", "b.example\n");
    let old = config.replace_list(crate::lists::load(&path, crate::lists::Kind::Names).unwrap());
    assert_eq!(old.unwrap().content.entries(), 1);
    for rule in &config.intercepts[0].rules {
        assert!(rule.host_lists[0].contains("b.example") && !rule.host_lists[0].contains("a.example"));
    }
}

#[test]
fn prefix_lists_hold_both_families() {
    let folder = Folder::new("prefixes");
    folder.write(
        "drop.txt",
        "; Spamhaus writes comments so\n192.0.2.0/24 ; SBL1\n198.51.100.7\n2001:db8::/32 # a comment\n\n10.0.0.1/8\nhost.example\n",
    );
    let path = rules(&folder, "{ from_file = \"drop.txt\", to_file = \"drop.txt\", action = \"drop\" }");
    let (config, report) = load(&path).unwrap();
    assert_eq!((report.lists[0].entries, report.lists[0].bad_lines, report.lists.len()), (3, 2, 1));
    let text = report.to_string();
    assert!(text.contains("drop.txt:6: warning: `10.0.0.1/8` has bits behind its length"), "{text}");
    assert!(text.contains("3 prefixes in "), "{text}");
    let rule = &config.intercepts[0].rules[0];
    for (address, expected) in [
        ("192.0.2.9", true),
        ("198.51.100.7", true),
        ("198.51.100.8", false),
        ("2001:db8::1", true),
        ("::1", false),
    ] {
        let address: IpAddr = address.parse().unwrap();
        assert_eq!(rule.from_lists[0].contains(address), expected, "{address}");
        assert_eq!(rule.to_lists[0].contains(address), expected, "{address}");
    }
}

#[test]
fn list_of_one_family_and_prefixes_of_the_other_never_match() {
    let folder = Folder::new("families");
    folder.write("v4.txt", "192.0.2.0/24\n");
    let report =
        check(&rules(&folder, "{ from_file = \"v4.txt\", to = \"2001:db8::/32\", action = \"drop\" }"));
    assert!(report.to_string().contains("no address family in common"), "{report}");
}

#[test]
fn relay_by_list_of_addresses_is_allowed_and_by_name_is_not() {
    let folder = Folder::new("relay");
    folder.write("v4.txt", "192.0.2.0/24\n");
    assert!(check(&rules(&folder, "{ from_file = \"v4.txt\", action = \"relay\" }")).is_ok());
    for condition in ["host = \"none\"", "ech = true", "host_file = \"v4.txt\""] {
        let report = check(&rules(&folder, &format!("{{ {condition}, action = \"relay\" }}")));
        assert!(report.to_string().contains("`relay` is decided at the SYN"), "{report}");
    }
}

#[test]
fn hidden_names_are_found_in_tls_only() {
    for (rule, fragment) in [
        ("{ ech = true, protocol = \"http\", action = \"drop\" }", "`ech = true` is found in TLS only"),
        ("{ ech = false, protocol = \"other\", action = \"drop\" }", "cannot have `ech`"),
        ("{ host = \"none\", protocol = \"other\", action = \"drop\" }", "cannot have a host"),
        ("{ ech = \"yes\", action = \"drop\" }", "expected true or false"),
    ] {
        let report = read(&format!("{PORTS}{WEB}rules = [{rule}]\n")).unwrap_err();
        assert!(report.to_string().contains(fragment), "{report}");
    }
    let text = format!(
        "[identity]\nech_public_names = [\"public.example\", \"*.b\u{fc}cher.example\"]\n{PORTS}{WEB}rules = [{{ ech = true, action = \"drop\" }}]\n"
    );
    let (config, _) = read(&text).unwrap();
    assert_eq!(config.intercepts[0].rules[0].ech, Some(true));
    let names = &config.identity.ech_public_names;
    assert!(names.contains("public.example") && names.contains("x.xn--bcher-kva.example"));
    assert!(defaults::identity().ech_public_names.contains("cloudflare-ech.com"));
}

#[test]
fn second_hellos_are_found_in_tls_only_and_cannot_be_sent_elsewhere() {
    let pool = "[[pool]]\nname = \"p\"\nservers = [\"192.0.2.1:443\", \"[2001:db8::1]:443\"]\n";
    for (rule, fragment) in [
        ("{ hello_retry = true, protocol = \"http\", action = \"drop\" }", "is found in TLS only"),
        ("{ hello_retry = true, action = \"send\", pool = \"p\" }", "cannot be given to another server"),
        ("{ hello_retry = true, action = \"relay\" }", "`relay` is decided at the SYN"),
        ("{ hello_retry = 1, action = \"drop\" }", "expected true or false"),
    ] {
        let report = read(&format!("{PORTS}{WEB}rules = [{rule}]\n{pool}")).unwrap_err();
        assert!(report.to_string().contains(fragment), "{report}");
    }
    let text = format!("{PORTS}{WEB}rules = [{{ hello_retry = true, action = \"drop\" }}]\n");
    let (config, report) = read(&text).unwrap();
    assert_eq!(config.intercepts[0].rules[0].hello_retry, Some(true));
    assert!(report.findings.is_empty(), "{report}");
}

/// A list of a million names: every one is there, whatever its line looks like.
#[test]
fn million_names_are_read_from_a_hosts_file() {
    use std::fmt::Write as _;
    let folder = Folder::new("million");
    let mut list = String::new();
    for i in 0..1_000_000 {
        let _ = match i % 4 {
            0 => writeln!(list, "0.0.0.0 host{i}.blocked.example"),
            1 => writeln!(list, "HOST{i}.Blocked.Example # comment"),
            2 => writeln!(list, "*.host{i}.blocked.example"),
            _ => writeln!(list, ".host{i}.blocked.example"),
        };
    }
    let report = with_list(&folder, list);
    assert_eq!((report.lists[0].entries, report.lists[0].bad_lines), (1_000_000, 0), "{report}");
    let (config, _) = load(&folder.0.join("weir.toml")).unwrap();
    let names = &config.intercepts[0].rules[0].host_lists[0];
    for i in (0..1_000_000).step_by(499) {
        let (apex, below) = (format!("host{i}.blocked.example"), format!("x.y.host{i}.blocked.example"));
        assert_eq!(names.contains(&apex), i % 4 != 2, "{apex}");
        assert_eq!(names.contains(&below), i % 4 >= 2, "{below}");
        assert!(!names.contains(&format!("host{i}.allowed.example")));
    }
}

/// Who explains makes do with what is there, and nobody else.
#[test]
fn list_that_is_missing_is_an_error_and_to_the_lenient_a_gap_with_its_rules() {
    let folder = Folder::new("lenient");
    folder.write("there.txt", "there.example\n");
    folder.write("broken.txt", "<html>\n");
    let file = rules(
        &folder,
        "{ host_file = \"missing.txt\", action = \"drop\" },\n\
         { host_file = [\"there.txt\", \"missing.txt\"], action = \"reset\" },\n\
         { from_file = \"missing.txt\", action = \"drop\" },\n\
         { host_file = \"broken.txt\", action = \"drop\" },",
    );
    assert_eq!(load(&file).unwrap_err().errors(), 4);
    let (config, report) = load_leniently(&file).unwrap();
    assert!(report.is_ok(), "{report}");
    let missing: Vec<_> =
        config.missing.iter().map(|list| (list.path.as_path(), list.content.kind())).collect();
    let at = |name: &str| folder.0.join(name);
    let (gone, broken) = (at("missing.txt"), at("broken.txt"));
    assert_eq!(missing, [(&*gone, Kind::Names), (&*gone, Kind::Prefixes), (&*broken, Kind::Names)]);
    let whys: Vec<_> = config.missing.iter().map(|list| list.why.as_str()).collect();
    assert!(whys[0].contains("No such file") && whys[2].contains("is no list of names"), "{whys:?}");
    let lines = |list: &Content| -> Vec<usize> {
        let first =
            config.intercepts[0].rules[0].origin.rsplit_once(':').unwrap().1.parse::<usize>().unwrap();
        let line = |origin: &String| origin.rsplit_once(':').unwrap().1.parse::<usize>().unwrap() - first;
        config.rules_with(list).iter().map(line).collect()
    };
    let named: Vec<_> = config.missing.iter().map(|list| lines(&list.content)).collect();
    assert_eq!(named, [vec![0, 1], vec![2], vec![3]]);
    assert_eq!(lines(&config.lists[0].content), [1]);
    let names = config.missing[0].content.clone();
    let rule = |config: &Config| config.intercepts[0].rules[0].host_lists[0].contains("any.example");
    assert!(!rule(&config));
    assert!(rule(&config.supposing(&[names], Content::everything)));
}
