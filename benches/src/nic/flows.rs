//! The connections of the generator: which are there, what is sent on them, and how TCP ones are opened.

use std::time::{Duration, Instant};

use super::port::Port;
use super::shape::{Kind, Shape};
use crate::Failure;
use crate::made::{self, Heard, Link};

/// Connections that are opened at a time.
const AT_ONCE: usize = 32;
/// How often those are tried again that did not come to be.
const TRIES: usize = 5;
/// Without a packet for so long, those that are missing are lost.
const PATIENCE: Duration = Duration::from_millis(250);
/// IMIX as testers have it: of twelve packets seven, four and one have so many octets (RFC 6985 gives such mixes their names).
const IMIX: [(usize, usize); 3] = [(64, 7), (594, 4), (1518, 1)];

/// Which IP versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    #[value(name = "4")]
    V4,
    #[value(name = "6")]
    V6,
    /// In turn.
    Both,
}

/// How large frames are, FCS included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Octets(usize),
    Imix,
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "imix" => Ok(Self::Imix),
            text => match text.parse() {
                Ok(octets @ 64..=1518) => Ok(Self::Octets(octets)),
                _ => Err(format!("{text}: neither imix nor a size from 64 to 1518 octets (with the FCS)")),
            },
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Octets(octets) => write!(f, "{octets}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

/// Connections, and the frames that are sent on them in turn.
#[derive(Clone, Debug)]
pub struct Flows {
    numbers: Vec<u32>,
    /// What each client acknowledges, of TCP.
    acks: Vec<u32>,
    /// Of both families, in the order of their sizes' mix.
    shapes: [Vec<Shape>; 2],
    flow: usize,
    turn: usize,
    pub sent: u32,
}

impl Flows {
    /// So many connections.
    pub fn new(kind: Kind, family: Family, count: u32, size: Size, stamped: bool, link: Link) -> Self {
        let number = |n: u32| match family {
            Family::V4 => n * 2,
            Family::V6 => n * 2 + 1,
            Family::Both => n,
        };
        let mix = match size {
            Size::Octets(octets) => vec![octets],
            Size::Imix => spread(&IMIX),
        };
        let of = |v6| mix.iter().map(|octets| Shape::new(kind, v6, *octets, stamped, link)).collect();
        let numbers: Vec<u32> = (0..count).map(number).collect();
        Self {
            acks: vec![0; numbers.len()],
            numbers,
            shapes: [of(false), of(true)],
            flow: 0,
            turn: 0,
            sent: 0,
        }
    }

    /// Octets of a frame in the mean, FCS included.
    pub fn mean_size(&self) -> f64 {
        let v6 = self.numbers.iter().filter(|n| **n % 2 == 1).count();
        let part = v6 as f64 / self.numbers.len() as f64;
        let [four, six] = self
            .shapes
            .each_ref()
            .map(|shapes| shapes.iter().map(|shape| shape.size() as f64).sum::<f64>() / shapes.len() as f64);
        four * (1.0 - part) + six * part
    }

    /// Writes the next frame, of the next connection.
    #[inline]
    pub fn write(&mut self, buffer: &mut [u8], now: u64) -> Option<usize> {
        let (n, ack) = (*self.numbers.get(self.flow)?, *self.acks.get(self.flow)?);
        let shapes = &self.shapes[n as usize % 2];
        let len = shapes.get(self.turn)?.write(buffer, &made::tuple(n), ack, self.sent, now);
        self.flow = if self.flow + 1 == self.numbers.len() { 0 } else { self.flow + 1 };
        self.turn = if self.turn + 1 == shapes.len() { 0 } else { self.turn + 1 };
        self.sent = self.sent.wrapping_add(1);
        len
    }

    /// Opens all connections: the client's side at `tx`, the server's at `rx`. Those that do not come to be are left out; returns how
    /// many these are.
    pub fn open(
        &mut self,
        tx: &mut Port,
        rx: &mut Port,
        client: Link,
        server: Link,
    ) -> Result<usize, Failure> {
        let asked = self.numbers.len();
        let place = self.numbers.iter().enumerate().map(|(place, n)| (*n, place));
        let place: std::collections::HashMap<u32, usize> = place.collect();
        let mut is_done = vec![false; asked];
        for _ in 0..TRIES {
            let missing: Vec<u32> = self.numbers.iter().copied().filter(|n| !is_done[place[n]]).collect();
            for some in missing.chunks(AT_ONCE) {
                for n in some {
                    tx.send_one(0, &made::syn(*n, client).ok_or("a SYN does not fit its frame")?);
                }
                let (mut left, mut last) = (some.len(), Instant::now());
                while left > 0 && last.elapsed() < PATIENCE {
                    let got = rx.receive(|_, octets| made::answer(octets, server));
                    let heard = tx.receive(|_, octets| match made::hear(octets, client)? {
                        Heard::Open { n, ack, request } => {
                            *self.acks.get_mut(*place.get(&n)?)? = ack;
                            Some(request)
                        }
                        Heard::Done(n) => {
                            let done = is_done.get_mut(*place.get(&n)?)?;
                            left -= usize::from(!*done).min(left);
                            *done = true;
                            None
                        }
                    });
                    if got + heard > 0 {
                        last = Instant::now();
                    } else {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                }
            }
        }
        let mut done = is_done.iter();
        self.acks.retain(|_| done.next().is_some_and(|done| *done));
        let mut done = is_done.iter();
        self.numbers.retain(|_| done.next().is_some_and(|done| *done));
        Ok(asked - self.numbers.len())
    }
}

/// A mix as a sequence in which each size is spread as evenly as it goes.
fn spread(mix: &[(usize, usize)]) -> Vec<usize> {
    let all: usize = mix.iter().map(|(_, count)| count).sum();
    let mut places: Vec<(usize, usize)> = Vec::new();
    for (size, count) in mix {
        // In the middle of each of its shares of the sequence.
        places.extend((0..*count).map(|at| ((2 * at + 1) * all * 1000 / (2 * count), *size)));
    }
    places.sort_unstable();
    places.into_iter().map(|(_, size)| size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { own: [2; 6], gateway: [4; 6] };

    #[test]
    fn imix_has_each_size_as_often_as_it_says() {
        let mix = spread(&IMIX);
        for (size, count) in IMIX {
            assert_eq!(mix.iter().filter(|other| **other == size).count(), count);
        }
        let flows = Flows::new(Kind::Udp, Family::V4, 5, Size::Imix, false, LINK);
        assert_eq!(flows.mean_size(), (64.0 * 7.0 + 594.0 * 4.0 + 1518.0) / 12.0);
    }

    #[test]
    fn frames_go_round_all_connections_of_the_family() {
        let mut flows = Flows::new(Kind::Udp, Family::V6, 3, Size::Octets(128), true, LINK);
        let mut buffer = [0; 2048];
        let sources: Vec<Vec<u8>> = (0..6)
            .map(|_| {
                let len = flows.write(&mut buffer, 1).unwrap();
                buffer[14 + 8..len][..34].to_vec()
            })
            .collect();
        assert_eq!(sources[..3], sources[3..]);
        assert!(sources[0] != sources[1] && sources[1] != sources[2]);
    }

    #[test]
    fn size_that_no_frame_has_is_refused() {
        for text in ["63", "1519", "large", ""] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains("64 to 1518"), "{error}");
        }
    }
}
