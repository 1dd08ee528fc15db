//! Whatever is on the wire: no panic, and no frame longer than its capacity.

use super::*;

/// Everything that a frame can be taken for.
fn feed(bytes: &[u8], capacity: usize, how: &mut Translation) -> bool {
    let fresh = || HeapFrame::from_packet(bytes, capacity);
    let check = |frame: &HeapFrame| assert!(frame.data().len() <= frame.capacity(), "{bytes:?}");
    match parse(bytes) {
        Ok(Parsed::Tcp(meta)) => {
            let (mut there, mut back) = (fresh(), fresh());
            if let Ok(out) = how.to_server(&mut there, &meta, Nanos(1)) {
                assert_eq!(meta_of(&there), out, "{bytes:?}");
            }
            if let Ok(out) = how.to_client(&mut back, &meta, Nanos(1)) {
                assert_eq!(meta_of(&back), out, "{bytes:?}");
            }
            check(&there);
            check(&back);
        }
        Ok(Parsed::Icmp(meta)) => {
            let own = Translation { server: meta.quoted, client: meta.quoted.reversed(), ..*how };
            for mut how in [own, *how] {
                let (mut there, mut back) = (fresh(), fresh());
                let (up, down) =
                    (how.icmp_to_server(&mut there, &meta), how.icmp_to_client(&mut back, &meta));
                for (frame, out) in [(&there, up), (&back, down)] {
                    check(frame);
                    if let Ok(out) = out {
                        assert_eq!(parse(frame.data()), Ok(Parsed::Icmp(out)), "{bytes:?}");
                    }
                }
            }
        }
        _ => return false,
    }
    true
}

/// The header checksum of IPv4 made right, so that a changed packet gets past it.
fn mend_ip(bytes: &mut [u8]) {
    let len = 4 * usize::from(bytes.get(ETH_LEN).copied().unwrap_or_default() & 0x0f);
    if get_u16(bytes, 12) == Some(0x0800) && bytes.len() >= ETH_LEN + len && len >= 20 {
        put(bytes, ETH_LEN + 10, &[0, 0]);
        let sum = slow_checksum(&[&bytes[ETH_LEN..ETH_LEN + len]]);
        put(bytes, ETH_LEN + 10, &sum.to_be_bytes());
    }
}

fn seeds(v6: bool) -> Vec<Vec<u8>> {
    let how = translation(v6);
    let options =
        [&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 5, 10][..], &[0, 0, 3, 232, 0, 0, 4, 0]].concat();
    let extended = if v6 { [&[6, 2, 4, 0][..], &[0; 20]].concat() } else { vec![131, 7, 8, 1, 2, 3, 4, 0] };
    let plain = Packet { options, ..Packet::new(how.client) };
    let odd = Packet { between: extended, extension: 43, ..plain.clone() };
    let kind = if v6 { (1, 0, 0) } else { (3, 0, 0) };
    let quoted = Packet { tuple: how.server, ..odd.clone() };
    let errors = [8, 20, 200].map(|len| error(None, &quoted, kind, len));
    [plain.bytes(), odd.bytes()].into_iter().chain(errors).collect()
}

#[test]
fn mutated_packets_do_no_harm() {
    let mut random = Random(21);
    let mut read = 0;
    for round in 0..60_000 {
        let v6 = round % 2 == 0;
        let seeds = seeds(v6);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        for _ in 0..1 + random.below(4) {
            let at = 12 + random.below(bytes.len() - 12);
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes.truncate(at.max(40)),
                2 => bytes.insert(at, random.draw() as u8),
                _ => bytes[at] = random.draw() as u8,
            }
        }
        mend_ip(&mut bytes);
        let mut how = translation(v6);
        how.prefix = random.below(100_000) as u32;
        if random.one_in(2) {
            how.timestamps = TimestampMode::ClientOnly { base: 1, echo: 2, narrow: v6 };
        }
        let capacity = bytes.len() + random.below(16);
        read += usize::from(feed(&bytes, capacity, &mut how));
    }
    assert!(read > 10_000, "{read} were read");
}

#[test]
fn random_bytes_behind_an_ethernet_header_do_no_harm() {
    let mut random = Random(22);
    for round in 0..60_000 {
        let v6 = round % 2 == 0;
        let len = random.below(120);
        let mut ip = random.bytes(len);
        put(&mut ip, 0, &[if v6 { 0x60 } else { 0x45 + random.below(2) as u8 }]);
        let body = len.saturating_sub(40 - 20 * usize::from(!v6)) as u16;
        if v6 {
            put(&mut ip, 4, &body.to_be_bytes());
            put(&mut ip, 6, &[[0, 6, 43, 44, 51, 58, 60][random.below(7)]]);
        } else {
            put(&mut ip, 2, &(len as u16).to_be_bytes());
            put(&mut ip, 6, &[0, 0]);
            put(&mut ip, 9, &[[1, 6][random.below(2)]]);
        }
        let mut bytes = ethernet(v6, &ip);
        mend_ip(&mut bytes);
        feed(&bytes, bytes.len() + 12, &mut translation(v6));
    }
}
