//! What a client's SYN offers that weir must not answer for its server: ECN and signatures.

use weir_core::drop::DropReason;
use weir_tests::bench::{Bench, Moved, Setup};
use weir_tests::hello::client_hello;
use weir_tests::packet::{ACK, BOTH, CWR, ECE, RST, SYN, Seg};

/// TCP-MD5 (RFC 2385), and TCP-AO (RFC 5925).
fn signatures() -> [Vec<u8>; 2] {
    let md5 = [19, 18].into_iter().chain([9; 16]).chain([1, 1]).collect();
    let ao = [29, 16].into_iter().chain([9; 14]).collect();
    [md5, ao]
}

#[test]
fn ecn_is_agreed_between_the_ends_in_through_and_not_promised_in_answer() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let offer = Seg { flags: SYN | ECE | CWR, ..b.syn() };
        assert_eq!(b.lan(&offer, &[Moved::Opened]).one_to_server().flags, SYN | ECE | CWR);
        let grant = Seg { flags: SYN | ACK | ECE, ..b.syn_ack() };
        assert_eq!(b.wan(&grant, &[]).one_to_client().flags, SYN | ACK | ECE);
        b.lan(&b.c(0), &[]);
        let hello = client_hello("fine.example", 0);
        let n = hello.len() as u32;
        b.lan(&b.c(0).payload(&hello), &[Moved::Allowed]);
        assert_eq!(b.wan(&b.s(0, n).flags(ACK | ECE), &[]).one_to_client().flags, ACK | ECE);
        assert_eq!(b.lan(&b.c(n).flags(ACK | CWR).payload("x"), &[]).one_to_server().flags, ACK | CWR);

        let mut b = Bench::of(family, Setup::answer());
        let offer = Seg { flags: SYN | ECE | CWR, ..b.syn() };
        assert_eq!(b.lan(&offer, &[Moved::Opened]).one_to_client().flags, SYN | ACK);
    }
}

#[test]
fn signed_syn_is_not_answered_but_passed_and_the_connection_is_reset_where_it_would_be_sent() {
    for family in BOTH {
        for signature in signatures() {
            for (host, moved) in [
                ("fine.example", &[Moved::Allowed][..]),
                ("sent.example", &[Moved::Reset, Moved::Drop(DropReason::VerdictReset)]),
            ] {
                let mut b = Bench::of(family, Setup::answer().sending(|pool| pool));
                let syn = b.lan(&b.syn().options(&signature), &[Moved::Opened]).one_to_server();
                assert_eq!((syn.flags, syn.options), (SYN, signature.clone()));
                b.wan(&b.syn_ack().options(&signature), &[]).one_to_client();
                b.lan(&b.c(0).options(&signature), &[]).one_to_server();
                let hello = client_hello(host, 0);
                let came = b.lan(&b.c(0).options(&signature).payload(&hello), moved);
                if host == "fine.example" {
                    assert_eq!(came.one_to_server().payload, hello);
                } else {
                    let ends = [came.to_client(), came.to_server()].concat();
                    assert_eq!(ends.len(), 2, "{ends:?}");
                    assert!(
                        ends.iter().all(|seen| seen.flags & RST != 0 && seen.payload.is_empty()),
                        "{ends:?}"
                    );
                }
            }
        }
    }
}
