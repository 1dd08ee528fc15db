//! Whether both directions of a connection come to the same worker.
//!
//! The client's packets arrive at one port, the server's at another, and each NIC chooses a queue by a hash. A running
//! gateway tells how many frames crossed between workers. Else the keys and tables that the NICs have are read, and both
//! directions of many connections put through them. Packets cannot be sent to oneself: what arrives at a port is sent by
//! the far end.

use weir_sys::ethtool::{self, Rss};

use super::finding::{Finding, Findings};
use super::ground::Ground;
use super::limits::queues;

const ID: &str = "rss-symmetry";
/// `ETH_RSS_HASH_TOP` of linux/ethtool.h.
const TOEPLITZ: u8 = 1;
/// Connections of each family that are put through the hashes.
const SAMPLE: u32 = 256;
/// Where one frame in so many crosses, it is worth telling.
const CROSSING: u64 = 20;

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    let most = ground.ports().map(|(port, _)| queues(port).len()).max().unwrap_or(0);
    if !ground.fast {
        return;
    }
    let subject: Vec<&str> = ground.ports().map(|(port, _)| port.device.as_str()).collect();
    let subject = subject.join(", ");
    if most <= 1 {
        return found.push(Finding::good(ID, subject, "one queue, one worker: there is nothing to cross to"));
    }
    if ground.running.is_some() {
        return crossed(ground, &subject, found);
    }
    let mut hashes = Vec::new();
    for (port, _) in ground.ports() {
        match ethtool::rss_of(&port.device) {
            Ok(rss) if rss.function == TOEPLITZ && !rss.indirection.is_empty() && !rss.key.is_empty() => {
                hashes.push(rss)
            }
            Ok(rss) => {
                let function = rss.function;
                return found.skip(
                    ID,
                    &port.device,
                    format!("its hash function ({function}) is not one whose result can be foretold"),
                );
            }
            Err(error) => {
                let why = format!(
                    "it does not tell its hash ({error}), and only its far end can send what arrives at it"
                );
                return found.skip(ID, &port.device, why);
            }
        }
    }
    let unlike = hashes.iter().flat_map(|a| hashes.iter().map(|b| crossing(a, b))).max().unwrap_or(0);
    if unlike == 0 {
        return found.push(Finding::good(
            ID,
            subject,
            "both directions of a connection come to the same queue",
        ));
    }
    let key = SYMMETRIC.iter().cycle().take(hashes.iter().map(|rss| rss.key.len()).max().unwrap_or(40));
    let key = key.map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":");
    let commands: Vec<String> = ground
        .ports()
        .map(|(port, _)| format!("ethtool -X {} hkey {key} equal {}", port.device, queues(port).len()))
        .collect();
    found.push(
        Finding::note(
            ID,
            subject,
            format!(
                "of {} connections {unlike} have their two directions on queues of different numbers",
                2 * SAMPLE
            ),
            "their frames cross from one worker to another: some microseconds and a wakeup each",
        )
        .mend(commands.join(" && ")),
    );
}

/// What the running gateway counted.
fn crossed(ground: &Ground<'_>, subject: &str, found: &mut Findings) {
    let status = ground.running.as_ref();
    let ports = status.and_then(|status| status["ports"].as_array());
    let received: u64 = ports.into_iter().flatten().filter_map(|port| port["rx_packets"].as_u64()).sum();
    let counts = status.and_then(|status| status["flows"].as_array());
    let crossed = counts.into_iter().flatten().find(|count| count["name"] == "handed-over");
    let crossed = crossed.and_then(|count| count["count"].as_u64()).unwrap_or(0);
    if received == 0 {
        return found.skip(ID, subject, "the running weir has not received a packet yet");
    }
    let what = format!("{crossed} of {received} frames crossed from one worker to another");
    found.push(if crossed.saturating_mul(CROSSING) > received {
        Finding::note(
            ID,
            subject,
            what,
            "the NICs send the two directions of connections to queues of different numbers: each crossing costs some \
             microseconds and a wakeup; a symmetric key, the same on both NICs, avoids it (`ethtool -X DEVICE hkey 6d:5a:...`)",
        )
    } else {
        Finding::good(ID, subject, what)
    });
}

/// A key whose every 16 bits are the same gives both directions one hash (Woo and Park, 2012).
const SYMMETRIC: [u8; 2] = [0x6d, 0x5a];

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
    use super::*;

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
}
