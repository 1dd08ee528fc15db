use weir_control::replay::capture::Capture;
use weir_tests::corpus::{self, streams::Streams};

#[test]
fn captures_inspected_agree_with_tshark() {
    let Some(root) = corpus::root() else { return };
    let expected = corpus::expected(&root);
    let none = Default::default();
    let mut n = 0;
    for (name, path) in corpus::captures(&root) {
        let capture = Capture::open(&path).unwrap();
        let mut error = None;
        let frames = capture.map_while(|f| f.map_err(|e| error = Some(e.to_string())).ok());
        let streams = Streams::read(frames);
        if let Some(e) = error {
            println!("ERR {e}");
        }
        for d in corpus::compare(&name, expected.get(&name).unwrap_or(&none), &streams.readings()) {
            n += 1;
            let s = streams.by_ends.get(&d.ends);
            let rev = corpus::Ends { client: d.ends.server, server: d.ends.client };
            let note = match s {
                None if streams.midstream.contains_key(&d.ends) => "NOSYN",
                None if streams.by_ends.contains_key(&rev) => "REVERSED",
                None => "ABSENT",
                Some(s) if s.server_first => "SERVERFIRST",
                Some(_) => "",
            };
            println!("DIS {note} {d}");
        }
    }
    println!("{n}");
}
