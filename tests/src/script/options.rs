//! TCP options as a script writes them.

use super::number::Number;

/// What a line says about options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Options {
    Any,
    These(Vec<Opt>),
}

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opt {
    Nop,
    Mss(u16),
    WindowScale(u8),
    SackOk,
    Timestamps(Number, Number),
    Sack(Vec<(Number, Number)>),
    /// Kind and data.
    Raw(u8, Vec<u8>),
}

/// An option as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SeenOpt {
    Mss(u16),
    WindowScale(u8),
    SackOk,
    Timestamps(u32, u32),
    Sack(Vec<(u32, u32)>),
    Raw(u8, Vec<u8>),
}

impl Options {
    /// Reads what stands between `<` and `>`.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(Self::These(parts.map(option).collect::<Result<_, _>>()?))
    }
}

fn option(text: &str) -> Result<Opt, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let small = |word: &str| word.parse::<u16>().map_err(|_| format!("`{word}` in `{text}` is no number"));
    Ok(match words.as_slice() {
        ["nop"] => Opt::Nop,
        ["mss", n] => Opt::Mss(small(n)?),
        ["ws", n] => Opt::WindowScale(small(n)? as u8),
        ["sackOK"] => Opt::SackOk,
        ["TS", "val", val, "ecr", ecr] => Opt::Timestamps(Number::read(val)?, Number::read(ecr)?),
        ["sack", blocks @ ..] => Opt::Sack(blocks.iter().map(|b| block(b)).collect::<Result<_, _>>()?),
        // A cookie (RFC 7413), MP_CAPABLE (RFC 8684), a digest (RFC 2385), a key's numbers and a digest (RFC 5925).
        ["fastopen"] => Opt::Raw(34, vec![1, 2, 3, 4, 5, 6, 7, 8]),
        ["mptcp"] => Opt::Raw(30, vec![0x01, 0x01]),
        ["md5"] => Opt::Raw(19, vec![0xd5; 16]),
        ["ao"] => {
            Opt::Raw(29, vec![1, 1, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0])
        }
        ["raw", hex] => raw(hex).ok_or_else(|| format!("`{hex}` is not kind and data in hexadecimal"))?,
        _ => return Err(format!("no such option: `{text}`")),
    })
}

fn block(text: &str) -> Result<(Number, Number), String> {
    let (left, right) = text.split_once(':').ok_or_else(|| format!("`{text}` is no block"))?;
    Ok((Number::read(left)?, Number::read(right)?))
}

fn raw(hex: &str) -> Option<Opt> {
    let octets: Option<Vec<u8>> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect();
    let octets = octets?;
    let (kind, data) = octets.split_first()?;
    Some(Opt::Raw(*kind, data.to_vec()))
}

/// The octets of options; `stamp` gives a timestamp's value, `edge` that of an edge of a block.
pub(super) fn octets(
    options: &[Opt],
    stamp: impl Fn(&Number) -> Result<u32, String>,
    edge: impl Fn(&Number) -> Result<u32, String>,
) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    for option in options {
        let (kind, data) = match option {
            Opt::Nop => {
                out.push(1);
                continue;
            }
            Opt::Mss(n) => (2, n.to_be_bytes().to_vec()),
            Opt::WindowScale(n) => (3, vec![*n]),
            Opt::SackOk => (4, vec![]),
            Opt::Timestamps(val, ecr) => (8, [stamp(val)?.to_be_bytes(), stamp(ecr)?.to_be_bytes()].concat()),
            Opt::Sack(blocks) => {
                let mut data = Vec::new();
                for (left, right) in blocks {
                    data.extend(edge(left)?.to_be_bytes());
                    data.extend(edge(right)?.to_be_bytes());
                }
                (5, data)
            }
            Opt::Raw(kind, data) => (*kind, data.clone()),
        };
        out.extend([kind, data.len() as u8 + 2]);
        out.extend(data);
    }
    let padding = out.len().next_multiple_of(4) - out.len();
    out.extend(std::iter::repeat_n(1, padding));
    if out.len() > 40 { Err(format!("{} octets of options", out.len())) } else { Ok(out) }
}

/// Reads options that were seen, without what only fills. `None`: one of them is broken.
pub(super) fn seen(octets: &[u8]) -> Option<Vec<SeenOpt>> {
    let mut out = Vec::new();
    let mut rest = octets;
    loop {
        rest = match rest {
            [] | [0, ..] => return Some(out),
            [1, rest @ ..] => rest,
            [kind, len, more @ ..] => {
                let data = more.get(..usize::from(*len).checked_sub(2)?)?;
                out.push(one(*kind, data));
                &more[data.len()..]
            }
            [_] => return None,
        };
    }
}

fn one(kind: u8, data: &[u8]) -> SeenOpt {
    let word = |at: usize| u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
    match (kind, data.len()) {
        (2, 2) => SeenOpt::Mss(u16::from_be_bytes([data[0], data[1]])),
        (3, 1) => SeenOpt::WindowScale(data[0]),
        (4, 0) => SeenOpt::SackOk,
        (8, 8) => SeenOpt::Timestamps(word(0), word(4)),
        (5, n) if n % 8 == 0 => SeenOpt::Sack((0..n / 8).map(|b| (word(b * 8), word(b * 8 + 4))).collect()),
        _ => SeenOpt::Raw(kind, data.to_vec()),
    }
}

/// Whether what came is what is expected. `stamp` and `edge` compare numbers, and may learn.
pub(super) fn fit(
    expected: &[Opt],
    seen: &[SeenOpt],
    mut stamp: impl FnMut(&Number, u32) -> bool,
    mut edge: impl FnMut(&Number, u32) -> bool,
) -> bool {
    let expected: Vec<&Opt> = expected.iter().filter(|option| **option != Opt::Nop).collect();
    expected.len() == seen.len()
        && expected.into_iter().zip(seen).all(|pair| match pair {
            (Opt::Mss(a), SeenOpt::Mss(b)) => a == b,
            (Opt::WindowScale(a), SeenOpt::WindowScale(b)) => a == b,
            (Opt::SackOk, SeenOpt::SackOk) => true,
            (Opt::Timestamps(val, ecr), SeenOpt::Timestamps(v, e)) => stamp(val, *v) && stamp(ecr, *e),
            (Opt::Sack(a), SeenOpt::Sack(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|((l, r), (a, b))| edge(l, *a) && edge(r, *b))
            }
            (Opt::Raw(a, x), SeenOpt::Raw(b, y)) => a == b && x == y,
            _ => false,
        })
}
