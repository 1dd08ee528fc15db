//! Why tshark and weir do not agree on some connections of the captures, one by one.

use super::Disagreement;

/// Who read the captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The inspector alone, shown each connection's bytes by [`super::streams`].
    Inspector,
    /// The whole pipeline, by `weir replay`.
    Pipeline,
}

use Reader::{Inspector, Pipeline};

/// Who disagrees for a reason that lies in what is asked, and not in how a packet came.
const BOTH: &[Reader] = &[Inspector, Pipeline];

/// A connection on which they do not agree: capture, client's port, and what weir must read from it: protocol and
/// name, or nothing where it must not identify it.
type Row = (&'static str, u16, &'static str);

/// The reasons, each with its readers and its connections.
const EXPLAINED: &[(&[Reader], &str, &[Row])] = &[
    (
        BOTH,
        "no SYN from the client in the capture: the connection is midstream, and not inspected",
        &[
            ("0373e191aacd.pcapng", 50983, ""),
            ("0a90124a2867.pcapng", 51889, ""),
            ("0ba62efab3ed.pcap", 49654, ""),
            ("0ba62efab3ed.pcap", 49677, ""),
            ("0ba62efab3ed.pcap", 49683, ""),
            ("0ba62efab3ed.pcap", 49708, ""),
            ("0ba62efab3ed.pcap", 49733, ""),
            ("0ba62efab3ed.pcap", 49735, ""),
            ("0ba62efab3ed.pcap", 49738, ""),
            ("0ba62efab3ed.pcap", 49743, ""),
            ("0bd49ceeb043.pcap", 59144, ""),
            ("0bd49ceeb043.pcap", 59146, ""),
            ("186029944c82.pcap", 38498, ""),
            ("1e0ccb240dff.pcap", 31337, ""),
            ("273cd8d16aa3.pcap", 57011, ""),
            ("42d0ed1c1a5d.pcap", 38325, ""),
            ("5510981eb262.pcap", 1234, ""),
            ("56c74096e323.pcap", 49886, ""),
            ("56c74096e323.pcap", 49887, ""),
            ("56c74096e323.pcap", 49897, ""),
            ("5a4d3831f027.pcapng", 48260, ""),
            ("5f59051e27fb.pcapng", 59927, ""),
            ("61f6d4ca4eed.pcapng", 1044, ""),
            ("66a2967e22aa.pcap", 48502, ""),
            ("6800535fc10c.pcap", 55533, ""),
            ("68026646cebc.pcap", 35634, ""),
            ("775f393cb058.pcap", 54186, ""),
            ("84086218d6d5.pcapng", 58842, ""),
            ("858d62d050b6.pcapng", 38398, ""),
            ("96e72bd22c99.pcapng", 37658, ""),
            ("9d3c9bb049d2.pcap", 59856, ""),
            ("a3f230d76c21.pcap", 58038, ""),
            ("b08a01d6eddc.pcap", 56730, ""),
            ("b5b5535080f7.pcapng", 6669, ""),
            ("cd4e748400f5.pcap", 53528, ""),
            ("d48a8147d319.pcap", 54186, ""),
            ("f2f2c8f4965d.pcapng", 51587, ""),
            ("f2f2c8f4965d.pcapng", 51588, ""),
            ("f2f2c8f4965d.pcapng", 51589, ""),
            ("f2f2c8f4965d.pcapng", 51590, ""),
            ("f2f2c8f4965d.pcapng", 51591, ""),
            ("f9d1b9e5225e.pcap", 12345, ""),
            ("fa7e233bcb37.pcap", 59856, ""),
            ("fe0f1be37525.pcap", 39976, ""),
        ],
    ),
    (
        BOTH,
        "CONNECT without Host: the name is the target's, where expected.tsv has only what stands in Host",
        &[
            ("0648b5d12f01.pcap", 54723, "http ts01-b.cloudsink.net"),
            ("8ce5290bdbde.pcap", 3378, "http mailin03.sul.t-online.de"),
        ],
    ),
    (BOTH, "Host of 4,099 octets, which is no host name", &[("0832e323cdbf.pcap", 23456, "")]),
    (
        BOTH,
        "the server speaks first (SMTP, IMAP, MySQL with STARTTLS): unidentified before the client sends anything",
        &[
            ("0d28360e75b9.pcap", 54170, ""),
            ("2e76b51aace1.pcapng", 36272, ""),
            ("a1acd7a5e252.pcap", 49640, ""),
            ("a445848582cb.pcap", 49640, ""),
            ("c12cd188cd33.pcap", 57406, ""),
            ("e0960a682f94.pcap", 50649, ""),
        ],
    ),
    (
        BOTH,
        "the capture has only the first octets of each packet: the request head is never complete",
        &[("0ddfd2aa117e.pcap", 34855, "")],
    ),
    (
        BOTH,
        "a ClientHello in SSLv2's format, which has no name: TLS, which expected.tsv calls http",
        &[
            ("179d03a7dced.pcap", 23481, "tls"),
            ("6c5921bd7e1c.pcap", 23481, "tls"),
            ("aa758b7207a9.pcap", 42835, "tls"),
            ("bac52e21daef.pcap", 1660, "tls"),
        ],
    ),
    (
        &[Inspector],
        "the same format on loopback, which the pipeline does not take",
        &[("8da7b341d010.pcap", 39036, "tls")],
    ),
    (
        BOTH,
        "SOCKS first, and the request inside of it: not read",
        &[
            ("29b337d69c58.pcapng", 1637, ""),
            ("29b337d69c58.pcapng", 53533, ""),
            ("29b337d69c58.pcapng", 53534, ""),
            ("29b337d69c58.pcapng", 53535, ""),
            ("4250d37cee0b.pcap", 53554, ""),
            ("4250d37cee0b.pcap", 53555, ""),
            ("4250d37cee0b.pcap", 53556, ""),
            ("5b7be7dd1973.pcap", 37904, ""),
            ("605d6feb8281.pcap", 53533, ""),
            ("605d6feb8281.pcap", 53534, ""),
            ("605d6feb8281.pcap", 53535, ""),
            ("964eb6387d8b.pcap", 54072, ""),
            ("afb05fc1965b.pcap", 1637, ""),
        ],
    ),
    (
        &[Inspector],
        "the request's body goes on beyond the capture, and tshark waits for its end; the head is there",
        &[("2a6df81d869d.pcap", 56880, "http localhost")],
    ),
    (
        BOTH,
        "PostgreSQL's SSLRequest first, and TLS after the server's answer: not read",
        &[
            ("2c695cfe739a.pcap", 39910, ""),
            ("53bbcbed3521.pcap", 36934, ""),
            ("fd8d50aacdcd.pcap", 60358, ""),
        ],
    ),
    (
        BOTH,
        "LDAP's StartTLS first, and TLS after the server's answer: not read",
        &[
            ("2dba86f9702c.pcap", 37386, ""),
            ("67c0ae5b3200.pcap", 37386, ""),
            ("762f253c1db6.pcap", 45936, ""),
        ],
    ),
    (
        BOTH,
        "TLS on port 8080, which tshark takes for HTTP",
        &[("6a9e08ae3c9d.pcapng", 35830, "tls spd-pub-mi-01-01.fastwebnet.it")],
    ),
    (BOTH, "XMPP with STARTTLS: not read", &[("6de53df75d01.pcap", 56048, "")]),
    (
        BOTH,
        "the capture was damaged on purpose: SYN or ACK have other addresses than the rest of the connection",
        &[("a15993af78a0.pcap", 2601, ""), ("a15993af78a0.pcap", 2602, ""), ("a15993af78a0.pcap", 2608, "")],
    ),
    (
        BOTH,
        "the capture was damaged on purpose: Host is \"%s.2.20.3.5\", which is no host name",
        &[("a15993af78a0.pcap", 53132, "")],
    ),
    (
        BOTH,
        "no version in the request line, which makes it HTTP/0.9, in which there is no Host",
        &[("d062de23b6c5.pcap", 49160, "")],
    ),
    (
        BOTH,
        "Android's debug bridge first, and TLS after its STLS: not read",
        &[("f01f25f712ee.pcap", 40005, "")],
    ),
    (
        &[Pipeline],
        "data in the SYN (TCP Fast Open), which the capture's server took: it is cut off, since it would reach the server \
         before the verdict; on a box the client sends it again",
        &[
            ("3f9f87e14b8b.pcap", 56288, ""),
            ("3f9f87e14b8b.pcap", 56290, ""),
            ("6800535fc10c.pcap", 55534, ""),
            ("7ccb15f3e412.pcap", 55534, ""),
            ("b9cca0e31bc9.pcap", 55534, ""),
        ],
    ),
    (
        &[Pipeline],
        "the client resets its connection with the exact sequence number before its first byte: what it sends afterwards \
         belongs to none (RFC 9293 section 3.10.7.4)",
        &[("19dc9382084d.pcap", 60293, "")],
    ),
    (
        &[Pipeline],
        "an RST with the right acknowledgment answers the SYN, and a SYN-ACK comes after it: the connection is over \
         (RFC 9293 section 3.10.7.3)",
        &[("9e39c78979f6.pcap", 58432, "")],
    ),
    (
        &[Pipeline],
        "somebody changed the request in the capture and left its checksum, which is wrong in it and right in the client's \
         other segments: what fails its checksum is not inspected",
        &[
            ("0161a71608b8.pcap", 55318, ""),
            ("b3906aa04243.pcapng", 40632, ""),
            ("fa8cd5e8ab6b.pcap", 64581, ""),
        ],
    ),
    (
        &[Pipeline],
        "an address that no packet on a wire may have: captured on loopback, or made anonymous with 0.0.0.0/8 or multicast; \
         a router forwards none of it (RFC 1812 section 5.3.7, RFC 4291 section 2.5.3)",
        &[
            ("0b6de429ee27.pcap", 58068, ""),
            ("103c676d3a00.pcap", 50802, ""),
            ("124ce29501c5.pcap", 48768, ""),
            ("124ce29501c5.pcap", 48770, ""),
            ("124ce29501c5.pcap", 48776, ""),
            ("1fe6430c62f6.pcap", 1905, ""),
            ("2a6df81d869d.pcap", 56876, ""),
            ("4da036b8796a.pcap", 51102, ""),
            ("4df5e45f69c4.pcap", 50198, ""),
            ("5136c35d4c2f.pcap", 41752, ""),
            ("5b0e77336fb1.pcap", 56840, ""),
            ("7398be317ccd.pcap", 40492, ""),
            ("75078fc88e14.pcap", 49404, ""),
            ("7c753e0f1d91.pcap", 50802, ""),
            ("7d2a48e4cc97.pcap", 42226, ""),
            ("8d50489f6600.pcap", 42906, ""),
            ("8d50489f6600.pcap", 46796, ""),
            ("8da7b341d010.pcap", 39036, ""),
            ("9197e769c95e.pcap", 60618, ""),
            ("b95fbaf5db0b.pcap", 13783, ""),
            ("d6a8968fe988.pcap", 39632, ""),
            ("d6a8968fe988.pcap", 39634, ""),
            ("db68d5b6a14a.pcap", 49742, ""),
            ("e0bd9bbd2a06.pcap", 50170, ""),
        ],
    ),
];

/// What is wrong with the disagreements that a reader found in all captures, one sentence each: those without an
/// explanation, those in which it reads something else than the explanation says, and explanations of what now agrees.
pub fn unexplained(reader: Reader, found: &[Disagreement]) -> Vec<String> {
    let of_reader = || EXPLAINED.iter().filter(move |(readers, _, _)| readers.contains(&reader));
    let rows = || of_reader().flat_map(|(_, reason, rows)| rows.iter().map(move |row| (row, reason)));
    let is_of = |row: &Row, one: &Disagreement| row.0 == one.capture && row.1 == one.ends.client.port();
    let mut complaints = Vec::new();
    for one in found {
        match rows().find(|(row, _)| is_of(row, one)) {
            None => complaints.push(format!("not explained: {one}")),
            Some((row, reason)) if row.2 != seen(one) => {
                complaints.push(format!("not as explained ({reason}; must read {:?}): {one}", row.2));
            }
            Some(_) => {}
        }
    }
    for (row, reason) in rows() {
        if !found.iter().any(|one| is_of(row, one)) {
            complaints.push(format!(
                "agrees, and needs no explanation any more: {} port {} ({reason})",
                row.0, row.1
            ));
        }
    }
    complaints
}

/// What weir read, as a row spells it.
fn seen(one: &Disagreement) -> String {
    match &one.seen {
        Some(reading) if reading.is_identified() => {
            format!("{} {}", reading.protocol, reading.host).trim_end().to_owned()
        }
        _ => String::new(),
    }
}
