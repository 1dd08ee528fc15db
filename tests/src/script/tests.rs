//! The interpreter notices what it should.

use super::*;

const HANDSHAKE: &str = "\
client says hello fine.example
lan > S 0 <mss 1460,ws 7>
opened
wan < S 0 <mss 1460,ws 7> ttl 63
wan > S. 0 ack 1 <mss 1460>
lan < S. 0 ack 1 <mss 1460>
";

#[test]
fn script_that_holds_is_played_on_both_families() {
    for family in BOTH {
        assert_eq!(play(HANDSHAKE, family), Ok(()));
    }
}

/// Text that is appended, the line that is blamed, a part of what is said.
#[test]
fn script_that_does_not_hold_is_blamed_at_its_line() {
    let rows = [
        ("lan > . 1 ack 1", 7, "wan < . 1 ack 1"),
        ("lan > . 1 ack 1\nwan < . 1 ack 2", 8, "came      wan < . 1 ack 1"),
        ("lan > . 1 ack 1\nwan < . 1 ack 1 <mss 5>", 8, "expected"),
        ("lan > . 1 ack 1\nwan < . 1 ack 1 win 5", 8, "win 60000"),
        ("lan > . 1 ack 1\nlan < . 1 ack 1", 8, "nothing came"),
        ("lan > P. 1:end ack 1\nwan < P. 1:end ack 1", 7, "allowed"),
        ("lan > P. 1:end ack 1\nallowed x2", 8, "moved were"),
        ("lan > P. 1:end ack 1\nallowed\nwan < P. 1:end ack 1 changed 5", 9, "came"),
        ("flows 2 0", 7, "(1, 0)"),
        ("held 1", 7, "0 frames"),
        ("lan > X 1", 7, "no flags"),
        ("lan > . 1", 7, "wants `ack N`"),
        ("lan > . 1 ack 1 upside down", 7, "`upside`"),
        ("lan > . 1 ack 1 <*>", 7, "only for what is expected"),
        ("lan > . $x ack 1", 7, "nobody has said"),
        ("hold.bytes = 5", 7, "before the first packet"),
        ("lan > P. 1:9999 ack 1", 7, "the stream has"),
        ("+5", 7, "no time"),
    ];
    for (text, line, part) in rows {
        let fault = play(&format!("{HANDSHAKE}{text}\n"), Family::V4).expect_err(text);
        assert!(fault.line == line && fault.what.contains(part), "{text}: {fault:?}");
    }
}

#[test]
fn number_that_is_named_is_learned_and_compared() {
    let good = format!("{HANDSHAKE}lan > . 1 ack 1 <TS val 7 ecr 9>\nwan < . $s ack 1 <TS val $v ecr *>\n");
    let more = "lan > . 1 ack 1 <TS val 8 ecr 9>\nwan < . $s ack 1 <TS val $v+1 ecr 9>\n";
    assert_eq!(play(&format!("{good}{more}"), Family::V6), Ok(()));
    let fault = play(&format!("{good}{}", more.replace("+1", "+2")), Family::V6).expect_err("another value");
    assert_eq!(fault.line, 10);
}
