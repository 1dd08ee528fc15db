//! A packet that came, written as a script would.

use crate::packet::{ACK, SYN, Seen};

use super::legs::Leg;
use super::options::{SeenOpt, seen as read_options};
use super::syntax::{LETTERS, Side};

/// `S. 0 ack 1 win 60000 <mss 1460> ttl 63`, with the numbers of `leg`.
pub(super) fn show(seen: &Seen, leg: &mut Leg, side: Side) -> String {
    let mut relative = |side: Side, n: u32| {
        (*leg.isn(side))
            .map_or(format!("{n} (absolute)"), |isn| n.wrapping_sub(isn).cast_signed().to_string())
    };
    let set = |bit: &usize| seen.flags & (1 << bit) != 0;
    let mut flags: Vec<usize> = (0..LETTERS.len()).filter(set).collect();
    // The point goes last, as everybody writes it.
    flags.sort_by_key(|bit| LETTERS[*bit] == '.');
    let mut text: String = flags.into_iter().map(|bit| LETTERS[bit]).collect();
    let first = seen.seq.wrapping_add(u32::from(seen.flags & SYN != 0));
    text += " ";
    text += &relative(side, seen.seq);
    if !seen.payload.is_empty() {
        text += ":";
        text += &relative(side, first.wrapping_add(seen.payload.len() as u32));
    }
    if seen.flags & ACK != 0 {
        text += " ack ";
        text += &relative(side.other(), seen.ack);
    }
    text += &format!(" win {}", seen.window);
    if seen.urgent != 0 {
        text += &format!(" urg {}", seen.urgent);
    }
    if !seen.options.is_empty() {
        text += &match read_options(&seen.options) {
            Some(options) => {
                let shown: Vec<String> =
                    options.iter().map(|o| option(o, &mut |n| relative(side.other(), n))).collect();
                format!(" <{}>", shown.join(","))
            }
            None => format!(" <broken: {:02x?}>", seen.options),
        };
    }
    text += &format!(" ttl {}", seen.ttl);
    if !seen.sound {
        text += " damaged";
    }
    if !seen.payload.is_empty() {
        let start = &seen.payload[..seen.payload.len().min(24)];
        text += &format!(" \"{}\"", start.escape_ascii());
    }
    text
}

fn option(option: &SeenOpt, relative: &mut impl FnMut(u32) -> String) -> String {
    match option {
        SeenOpt::Mss(n) => format!("mss {n}"),
        SeenOpt::WindowScale(n) => format!("ws {n}"),
        SeenOpt::SackOk => "sackOK".into(),
        SeenOpt::Timestamps(val, ecr) => format!("TS val {val} ecr {ecr}"),
        SeenOpt::Sack(blocks) => {
            let mut text = "sack".to_owned();
            for (left, right) in blocks {
                text += &format!(" {}:{}", relative(*left), relative(*right));
            }
            text
        }
        SeenOpt::Raw(kind, data) => {
            let hex: String = data.iter().map(|octet| format!("{octet:02x}")).collect();
            format!("raw {kind:02x}{hex}")
        }
    }
}
