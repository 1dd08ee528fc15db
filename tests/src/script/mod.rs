//! Packet scripts: what goes in, what comes out, when, and which counters move. In the manner of packetdrill, for a box in
//! the middle of two legs. `tests/scripts` holds them: one per clause of an RFC, one per bug ever found.
//!
//! A script is lines; `#` begins a comment. First settings, then what happens, in order.
//!
//! ```text
//! handshake = through          # through | answer | relay
//! unidentified = reset         # as otherwise, midstream, full: the words of the configuration
//! hold.bytes = 1000            # hold.time = 500ms, grace = 5s (the bench starts when it is over), start = grace
//! rule = reset host a.example  # before the bench's own; also: from client, tcp 443, protocol http, alpn h2
//! mtu.wan = 1400               # mtu.lan; holds = 1, hold.frames = 4, flows = 2, frames = 1, names = 2
//! client.isn = 4294967290      # server.isn, client.port, server.port, pool1.isn; also later, between packets
//! family = IPv4                # else every script is played on both
//!
//! client says hello fine.example     # what the stream of a side holds: its octet n has the sequence number n
//! server says bytes 3000
//!
//! lan > S 0 win 65535 <mss 1460,ws 7>            # in: a client's packet comes from the lan
//! opened                                         # counters that move, all of them: totals, drop REASON, punt REASON, x2
//! wan < S 0 <mss 1460,ws 7> ttl 63               # out: what leaves by the wan, all of it
//! +200ms                                         # time passes, timers are served
//! wan > S. 0 ack 1 <mss 1460>
//! lan < S. 0 ack 1 <mss 1460>
//! lan > P. 1:end ack 1                           # octets from 1 to the end of the client's stream
//! allowed
//! wan < P. 1:end ack 1
//! flows 1 0                                      # on the fast road, on the kernel road
//! held 0                                         # frames
//! ```
//!
//! More settings: `syn_cookies = always`, `limits.half_open = 2`, `limits.flows = 1`, `limits.rate = 1` (of a source),
//! `limits.over = reset`, `limits.held = reset`; `pool = 2` (servers), `pool.source = gateway`, `pool.proxy = v1`,
//! `pool.ports = 10000`; then `send` is an action.
//!
//! Wires: `lan` (the client's leg), `wan` (the leg to the server it asked for), `pool1` to `pool3` (legs to the servers of
//! the pool, in the order in which they are first called), `relay` and `kernel` (the two ways into the kernel; out only).
//!
//! A packet is: flags (`S F R P . U E C`, where `.` is ACK and `C` CWR), sequence number or `from:to` of its octets, then
//! in any order `ack N`, `win N`, `urg N`, `ttl N`, `<options>`, a payload, `as server` (in a name that is not that of its
//! wire), `by lan` (it comes in there, whatever its wire), `damaged` (wrong TCP checksum), `octets` (of one that comes out: whatever
//! they are). An ICMP error about what was sent on a wire's leg: `icmp unreachable`, `icmp toobig MTU`, `icmp exceeded`, then
//! `seq N`, `short` (it quotes eight octets of TCP), `by lan`, `damaged`. Options: `mss N`, `ws N`, `sackOK`, `TS val N ecr N`, `sack A:B A:B`, `nop`,
//! `fastopen`, `mptcp`, `md5`, `ao`, `raw HEX`; `<*>` for any; without `<>` there are none. Payloads, where the octets are
//! not those of the stream: `hello NAME`, `hello NAME pad N`, `http NAME`, `bytes N`, `text "..."`, then `[from..to]` for a
//! part, `changed N` for another octet at N.
//!
//! Numbers are relative to the initial sequence number of their side as the leg has it. Where weir chooses it
//! (`handshake = answer`) it is learned from the first SYN. `end` is the number behind the stream, `end+1` behind a FIN;
//! `*` any; `$x` is learned where it is first expected, and what it was from there on (`$x+1`).
//!
//! What a line expects of a packet that comes out: flags, sequence and acknowledgment number, octets, options, right
//! checksums; window, TTL only where they are named.

mod icmp;
mod legs;
mod number;
mod options;
mod payload;
mod play;
mod settings;
mod show;
mod syntax;

use std::path::Path;

use crate::packet::{BOTH, Family};
use crate::pair;

/// Where and why a script, or its play, went wrong: a line and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub what: String,
}

/// Makes a [`Fault`] of a sentence.
fn fault<T>(line: usize, what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { line, what: what.into() })
}

/// Plays the script `text` on one family.
///
/// # Errors
/// The first line that is not understood, or after which something else came.
pub fn play(text: &str, family: Family) -> Result<(), Fault> {
    let script = syntax::read(text)?;
    if script.settings.family.is_some_and(|only| only != family) {
        Ok(())
    } else {
        play::play(&script, family)
    }
}

/// Plays a file on both families; what went wrong, as `file:line (family): what`.
pub fn play_file(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let played = BOTH.map(|family| play(&text, family).err().map(|fault| (family, fault)));
    let told = |(family, Fault { line, what })| {
        format!("{}:{line} ({}): {what}", path.display(), pair::name(family))
    };
    played.into_iter().flatten().map(told).collect()
}

#[cfg(test)]
mod tests;
