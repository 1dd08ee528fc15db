//! Every packet script holds on both families. `SCRIPT=part` plays those whose name has the part.

use std::path::Path;

use weir_tests::script::play_file;

/// As many as there are, so that a directory that is not found fails.
const AT_LEAST: usize = 25;

#[test]
fn scripts_hold() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .expect("the directory of scripts")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pkt"))
        .collect();
    files.sort();
    assert!(files.len() >= AT_LEAST, "{} scripts in {}", files.len(), directory.display());
    if let Ok(part) = std::env::var("SCRIPT") {
        files.retain(|path| path.display().to_string().contains(&part));
    }
    let faults: Vec<String> = files.iter().flat_map(|path| play_file(path)).collect();
    assert!(faults.is_empty(), "{} of {} went wrong:\n{}", faults.len(), files.len() * 2, faults.join("\n"));
}
