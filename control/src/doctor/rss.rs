//! Where the two directions of a connection arrive, and whether every queue gets something.
//!
//! The client's packets arrive at one port, the server's at another, and each NIC chooses a queue by a hash. Whatever it says,
//! both directions belong to one worker, by a keyed hash of weir's own: a frame that another worker receives crosses to it. So
//! what can be lost is what finds no room on that way, and a running gateway tells how many crossed and how many were lost. When none runs, the
//! where the directions of connections arrive is tried, with frames that another device of this host sends to the ports (see
//! [`super::sent`]). Most ports get theirs from far ends alone: then the keys and tables that the NICs have are read, and both
//! directions of many connections put through them.

use weir_core::drop::DropReason;
use weir_sys::ethtool::{self, Rss};

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use super::limits::queues;
use super::sent::Seen;

const ID: &str = "rss-symmetry";
const SPREAD: &str = "rss-spread";
/// `ETH_RSS_HASH_TOP` of linux/ethtool.h.
const TOEPLITZ: u8 = 1;
/// Connections of each family that are put through the hashes.
const SAMPLE: u32 = 256;
/// Why it is good to know, and no trouble.
const OWN_HASH: &str = "weir chooses the worker of a connection by a hash of its own, the same for both directions, and other \
                        workers hand on what they receive of it: no key and no symmetry of a NIC's hash (ethtool -X) gives more";

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    if !ground.fast {
        return;
    }
    let subject = subject(ground);
    if has_one_worker(ground) {
        return found.push(Finding::good(ID, subject, "one queue, one worker: there is nothing to cross to"));
    }
    if ground.running.is_some() {
        crossed(ground, &subject, found);
    }
    for (port, _) in ground.ports() {
        let device = &port.device;
        match ethtool::rss_of(device) {
            Ok(rss) => found.push(spread(device, &queues(port).into_iter().collect::<Vec<u32>>(), &rss)),
            Err(error) => found.skip(SPREAD, device, format!("it does not tell its hash: {error}")),
        }
    }
}

fn subject(ground: &Ground<'_>) -> String {
    ground.ports().map(|(port, _)| port.device.as_str()).collect::<Vec<_>>().join(", ")
}

/// Whether all that comes belongs to one worker.
pub fn has_one_worker(ground: &Ground<'_>) -> bool {
    ground.ports().all(|(port, _)| queues(port).len() <= 1)
}

/// What the NICs will do to the two directions of connections, while no weir runs. `seen`: what became of frames that were sent, or why
/// there are none.
pub fn directions(ground: &Ground<'_>, seen: Result<Seen, String>, found: &mut Findings) {
    if has_one_worker(ground) {
        return;
    }
    let subject = subject(ground);
    let unsent = match seen {
        Ok(Seen { connections, unlike }) => {
            let what = format!("frames were sent: {}", apart(connections, unlike));
            return found.push(Finding::good(ID, subject, format!("{what}; {OWN_HASH}")));
        }
        Err(why) => why,
    };
    let hashes: Vec<(&String, Rss)> = ground
        .ports()
        .filter_map(|(port, _)| Some((&port.device, ethtool::rss_of(&port.device).ok()?)))
        .collect();
    match foretold(&hashes, ground.ports().count()) {
        Ok(what) => {
            let how = format!("computed from the keys and tables of the NICs, not seen ({unsent}): {what}");
            found.push(Finding::good(ID, subject, format!("{how}; {OWN_HASH}")));
        }
        Err(why) => {
            found.skip(ID, subject, format!("{why}; {unsent}: `weir doctor` counts instead when weir runs"))
        }
    }
}

fn apart(connections: u32, unlike: u32) -> String {
    match unlike {
        0 => format!("both directions of each of {connections} connections come to queues of one number"),
        _ => format!(
            "of {connections} connections {unlike} have their directions on queues of different numbers"
        ),
    }
}

/// What the NICs' hashes say.
///
/// # Errors
/// A sentence: why that is not known.
fn foretold(hashes: &[(&String, Rss)], ports: usize) -> Result<String, String> {
    if hashes.len() < ports {
        return Err("not every port tells its hash".to_owned());
    }
    if let Some((device, why)) = hashes.iter().find_map(|(device, rss)| Some((device, untold(rss)?))) {
        return Err(format!("{device}: {why}"));
    }
    let pairs = hashes.iter().flat_map(|(_, a)| hashes.iter().map(move |(_, b)| crossing(a, b)));
    Ok(apart(2 * SAMPLE, pairs.max().unwrap_or(0)))
}

/// Why nobody can say which queue a NIC puts a packet on.
fn untold(rss: &Rss) -> Option<String> {
    match rss {
        Rss { function, .. } if *function != TOEPLITZ => {
            Some(format!("its hash function ({function}) is not one whose result can be foretold"))
        }
        Rss { key, .. } if key.is_empty() => Some("its driver does not show the key of its hash".to_owned()),
        Rss { indirection, .. } if indirection.is_empty() => {
            Some("its driver does not show the table that its hash leads to".to_owned())
        }
        _ => None,
    }
}

/// Whether every queue that is taken gets its share.
fn spread(device: &str, taken: &[u32], rss: &Rss) -> Finding {
    let idle: Vec<u32> = taken.iter().copied().filter(|queue| !rss.indirection.contains(queue)).collect();
    if idle.is_empty() || rss.indirection.is_empty() {
        return Finding::good(SPREAD, device, "every queue that is taken gets packets").on(device);
    }
    let finding = Finding::note(
        SPREAD,
        device,
        format!("the hash's table leaves out the queues {idle:?}"),
        "they receive nothing: the other queues have all the work of receiving",
    );
    finding.mend(set_table(device, taken)).on(device)
}

/// The command by which a NIC's hash leads to these queues, and to no others.
fn set_table(device: &str, taken: &[u32]) -> String {
    if (0..).zip(taken).all(|(number, queue)| number == *queue) {
        return format!("ethtool -X {device} equal {}", taken.len());
    }
    let most = taken.iter().max().copied().unwrap_or(0);
    let weights: Vec<&str> = (0..=most).map(|queue| if taken.contains(&queue) { "1" } else { "0" }).collect();
    format!("ethtool -X {device} weight {}", weights.join(" "))
}

/// What the running gateway counted.
fn crossed(ground: &Ground<'_>, subject: &str, found: &mut Findings) {
    let status = ground.running.as_ref();
    let count = |family: &str, name: &str| {
        let counts = status.and_then(|status| status[family].as_array());
        let count = counts.into_iter().flatten().find(|count| count["name"] == name);
        count.and_then(|count| count["count"].as_u64()).unwrap_or(0)
    };
    let ports = status.and_then(|status| status["ports"].as_array());
    let received: u64 = ports.into_iter().flatten().filter_map(|port| port["rx_packets"].as_u64()).sum();
    if received == 0 {
        return found.skip(ID, subject, "the running weir has not received a packet yet");
    }
    let what =
        format!("{} of {received} frames crossed from one worker to another", count("flows", "handed-over"));
    let lost = count("drops", DropReason::HandoffFull.name());
    found.push(match lost {
        0 => Finding::good(ID, subject, format!("{what}; {OWN_HASH}")),
        _ => Finding::note(
            ID,
            subject,
            format!("{what}, and {lost} found no room there and were dropped"),
            "a worker could not keep up with what the others received for it: give [workers] more cores, or the devices fewer \
             queues, so that no two workers share a core",
        )
        .by_hand(NoCommand::Configuration),
    });
}

/// Connections of the sample of which one NIC, asked about the one direction, and the other NIC, asked about the other,
/// name different queues.
fn crossing(client_side: &Rss, server_side: &Rss) -> u32 {
    let differs = |number: u32, v6: bool| {
        let (there, back) = tuples(number, v6);
        queue(client_side, &there) != queue(server_side, &back)
    };
    let count = |v6| (0..SAMPLE).filter(|number| differs(*number, v6)).count() as u32;
    count(false) + count(true)
}

/// Addresses and ports of a connection, as the hash reads them, in both directions.
fn tuples(number: u32, v6: bool) -> (Vec<u8>, Vec<u8>) {
    let spread = number.wrapping_mul(0x9e37_79b1);
    let (mut client, mut server) = (vec![10, 77], vec![192, 0]);
    if v6 {
        client = [&[0x20, 0x01, 0x0d, 0xb8][..], &[0; 10]].concat();
        server = [&[0x26, 0x06][..], &[1; 12]].concat();
    }
    client.extend(&spread.to_be_bytes()[..2]);
    server.extend(&spread.to_be_bytes()[2..]);
    let ports = ((1024 + spread % 60_000) as u16).to_be_bytes();
    let of = |from: &[u8], to: &[u8], source: [u8; 2], destination: [u8; 2]| {
        [from, to, &source, &destination].concat()
    };
    let https = 443u16.to_be_bytes();
    (of(&client, &server, ports, https), of(&server, &client, https, ports))
}

/// The queue that a NIC puts a packet on.
fn queue(rss: &Rss, tuple: &[u8]) -> u32 {
    // RXH_XFRM_SYM_XOR: source and destination are XORed, and the result is hashed twice over.
    const SYM_XOR: u8 = 1;
    const SYM_OR_XOR: u8 = 2;
    let mut tuple = tuple.to_vec();
    let address = (tuple.len() - 4) / 2;
    if rss.mixed & (SYM_XOR | SYM_OR_XOR) != 0 {
        for (first, second, length) in [(0, address, address), (2 * address, 2 * address + 2, 2)] {
            for at in 0..length {
                let (a, b) = (tuple[first + at], tuple[second + at]);
                tuple[first + at] = if rss.mixed & SYM_XOR != 0 { a ^ b } else { a | b };
                tuple[second + at] = a ^ b;
            }
        }
    }
    let hash = toeplitz(&rss.key, &tuple);
    rss.indirection.get(hash as usize % rss.indirection.len().max(1)).copied().unwrap_or(0)
}

/// The Toeplitz hash: for every bit of the input that is set, the 32 bits of the key from that place on.
fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let window = |bit: usize| {
        let octet = |at: usize| u64::from(key.get(at).copied().unwrap_or(0));
        let word = (0..5).fold(0, |word, at| word << 8 | octet(bit / 8 + at));
        (word >> (8 - bit % 8)) as u32
    };
    let bits = (0..8 * input.len()).filter(|bit| input[bit / 8] & (0x80 >> (bit % 8)) != 0);
    bits.fold(0, |hash, bit| hash ^ window(bit))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    /// A key whose every 16 bits are the same gives both directions one hash (Woo and Park, 2012).
    const SYMMETRIC: [u8; 2] = [0x6d, 0x5a];

    /// The key and vectors of Microsoft's "Verifying the RSS Hash Calculation".
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn rss(key: &[u8], mixed: u8, queues: u32) -> Rss {
        Rss {
            indirection: (0..128).map(|at| at % queues).collect(),
            key: key.to_vec(),
            function: TOEPLITZ,
            mixed,
        }
    }

    #[test]
    fn toeplitz_gives_the_published_hashes() {
        // 66.9.149.187:2794 to 161.142.100.80:1766, and 199.92.111.2:14230 to 65.69.140.83:4739.
        let first = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz(&KEY, &first), 0x51cc_c178);
        let second = [199, 92, 111, 2, 65, 69, 140, 83, 0x37, 0x96, 0x12, 0x83];
        assert_eq!(toeplitz(&KEY, &second), 0xc626_b0ea);
    }

    #[test]
    fn only_symmetric_hashes_that_are_alike_keep_directions_together() {
        let symmetric: Vec<u8> = SYMMETRIC.iter().copied().cycle().take(40).collect();
        let usual = rss(&KEY, 0, 4);
        for (client_side, server_side, together) in [
            (usual.clone(), usual.clone(), false),
            (rss(&symmetric, 0, 4), rss(&symmetric, 0, 4), true),
            (rss(&symmetric, 0, 4), rss(&symmetric, 0, 3), false),
            (rss(&symmetric, 0, 4), usual.clone(), false),
            (rss(&KEY, 1, 4), rss(&KEY, 1, 4), true),
            (rss(&KEY, 2, 4), rss(&KEY, 2, 4), true),
            (rss(&KEY, 0, 1), rss(&KEY, 0, 1), true),
        ] {
            assert_eq!(
                crossing(&client_side, &server_side) == 0,
                together,
                "{} {}",
                client_side.mixed,
                server_side.mixed
            );
        }
    }

    #[test]
    fn queue_that_the_table_leaves_out_is_told_with_the_command() {
        let even = spread("eth1", &[0, 1, 2, 3], &rss(&KEY, 0, 4));
        assert_eq!(even.severity, Severity::Good);
        let odd = spread("eth1", &[0, 1, 2, 3], &rss(&KEY, 0, 2));
        assert_eq!(odd.severity, Severity::Note);
        assert!(odd.what.contains("[2, 3]"), "{odd:?}");
        assert_eq!(even.mend, None);
        assert_eq!(odd.mend.as_deref(), Some("ethtool -X eth1 equal 4"));
        // Of queues that are picked, no single number says it.
        let picked = spread("eth1", &[1, 3], &rss(&KEY, 0, 2));
        assert_eq!(picked.mend.as_deref(), Some("ethtool -X eth1 weight 0 1 0 1"));
    }

    #[test]
    fn directions_are_foretold_only_where_every_port_tells_its_whole_hash() {
        let (eth1, eth2) = ("eth1".to_owned(), "eth2".to_owned());
        let usual = rss(&KEY, 0, 4);
        let of_both = |a: &Rss, b: &Rss| foretold(&[(&eth1, a.clone()), (&eth2, b.clone())], 2);
        assert!(of_both(&usual, &usual).unwrap().starts_with("of 512 connections "));
        let symmetric = rss(&KEY, 1, 4);
        let alike = "both directions of each of 512 connections come to queues of one number";
        assert_eq!(of_both(&symmetric, &symmetric), Ok(alike.to_owned()));
        assert!(foretold(&[(&eth1, usual.clone())], 2).unwrap_err().contains("not every port"));
        for (untold, words) in [
            (Rss { key: Vec::new(), ..usual.clone() }, "does not show the key"),
            (Rss { indirection: Vec::new(), ..usual.clone() }, "does not show the table"),
            (Rss { function: 2, ..usual.clone() }, "hash function (2)"),
        ] {
            let why = of_both(&usual, &untold).unwrap_err();
            assert!(why.starts_with("eth2: ") && why.contains(words), "{why}");
        }
    }
}
