use super::*;

fn with_list(folder: &Folder, list: impl AsRef<[u8]>) -> Report {
    folder.write("blocked.txt", list);
    let text = format!("{PORTS}{WEB}rules = [\n  {{ host_file = \"blocked.txt\", action = \"drop\" }},\n]\n");
    check(&folder.write("weir.toml", text))
}

#[test]
fn host_file_each_bad_line_is_an_error_of_that_file() {
    let folder = Folder::new("bad-lines");
    let list = b"\xef\xbb\xbf# names\r\n\r\na.example\r\n*.b.example # all below\nb\xc3\xbccher.example\n0.0.0.0 c.example\n\xff\nd..example\nlast.example";
    let report = with_list(&folder, list);
    let file = folder.0.join("blocked.txt").display().to_string();
    let found: Vec<String> = report.findings.iter().map(Finding::to_string).collect();
    let expected = [(5, "punycode"), (6, "a space or tab"), (7, "not UTF-8"), (8, "empty label")];
    assert_eq!(found.len(), expected.len(), "{report}");
    for ((line, fragment), found) in expected.iter().zip(&found) {
        assert!(found.starts_with(&format!("{file}:{line}: error: ")) && found.contains(fragment), "{found}");
    }
}

#[test]
fn host_file_with_many_bad_lines_reports_some_and_counts_the_rest() {
    let folder = Folder::new("many-bad-lines");
    let report = with_list(&folder, "a b\n".repeat(1000));
    assert_eq!(report.errors(), 21);
    assert!(report.findings.iter().any(|f| f.message == "980 more lines hold no name"), "{report}");
}

#[test]
fn host_file_not_there_names_the_line_of_the_rule() {
    let folder = Folder::new("no-list");
    let text = format!("{PORTS}{WEB}rules = [\n  {{ host_file = \"none.txt\", action = \"drop\" }},\n]\n");
    let report = check(&folder.write("weir.toml", text));
    assert_eq!(report.errors(), 1);
    assert_eq!(report.findings[0].line, Some(13));
    assert!(report.findings[0].message.contains("none.txt` cannot be read: No such file"), "{report}");

    let text = format!("{PORTS}{WEB}rules = [{{ host_file = \"/dev/zero\", action = \"drop\" }}]\n");
    let report = check(&folder.write("weir.toml", text));
    assert!(report.findings[0].message.contains("no regular file"), "{report}");
}

#[test]
fn host_file_without_names_is_a_warning_and_its_rule_never_matches() {
    let folder = Folder::new("empty-list");
    let report = with_list(&folder, "# nothing yet\n");
    assert!(report.is_ok() && report.warnings() == 1, "{report}");
    assert!(report.findings[0].message.contains("holds no names"), "{report}");
}

#[test]
fn host_and_host_file_are_one_set() {
    let folder = Folder::new("both");
    folder.write("blocked.txt", "a.example\nb.example\n");
    let rule = "{ host_file = \"blocked.txt\", host = [\"b.example\", \"*.c.example\"], action = \"drop\" }";
    let path = folder.write("weir.toml", format!("{PORTS}{WEB}rules = [{rule}]\n"));
    let (config, report) = load(&path).unwrap();
    let names = config.intercepts[0].rules[0].host.clone().unwrap();
    for (host, expected) in
        [("a.example", true), ("b.example", true), ("x.c.example", true), ("c.example", false)]
    {
        assert_eq!(names.contains(host), expected, "{host}");
    }
    assert_eq!(report.summary.unwrap().names, 3);
}
