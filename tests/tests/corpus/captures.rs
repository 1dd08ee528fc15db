use weir_control::replay::capture::Capture;
use weir_tests::corpus::explained::{Reader, unexplained};
use weir_tests::corpus::streams::Streams;
use weir_tests::corpus::{self, Readings};

/// Captures whose last packet is cut off: what comes before it counts.
pub const CUT_SHORT: [&str; 2] = ["103c676d3a00.pcap", "7c753e0f1d91.pcap"];

#[test]
fn captures_inspected_agree_with_tshark_or_are_explained() {
    let Some(root) = corpus::root() else { return };
    let expected = corpus::expected(&root);
    let captures = corpus::captures(&root);
    assert!(
        expected.keys().all(|name| captures.iter().any(|(file, _)| file == name)),
        "a capture is missing"
    );
    let none = Readings::new();
    let mut disagreements = Vec::new();
    for (name, path) in captures {
        let mut frames = Vec::new();
        for frame in Capture::open(&path).unwrap() {
            match frame {
                Ok(frame) => frames.push(frame),
                Err(error) => assert!(CUT_SHORT.contains(&name.as_str()), "{error}"),
            }
        }
        let seen = Streams::read(frames.into_iter()).readings();
        disagreements.extend(corpus::compare(&name, expected.get(&name).unwrap_or(&none), &seen));
    }
    let complaints = unexplained(Reader::Inspector, &disagreements);
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}
