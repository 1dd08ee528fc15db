//! Numbers of a script: fixed, relative to the end of a stream, named, or any.

use std::collections::HashMap;

/// A number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Is(i64),
    /// So many behind the end of the sender's stream; of the receiver's for an acknowledgment.
    End(i64),
    /// So many behind what the name stands for.
    Named(String, i64),
    Any,
}

impl Number {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let wrong = || format!("`{text}` is no number");
        let offset = |rest: &str| match rest {
            "" => Ok(0),
            more => more.parse::<i64>().map_err(|_| wrong()),
        };
        if let Some(rest) = text.strip_prefix("end") {
            return Ok(Self::End(offset(rest)?));
        }
        if let Some(rest) = text.strip_prefix('$') {
            let cut = rest.find(['+', '-']).unwrap_or(rest.len());
            return Ok(Self::Named(rest[..cut].into(), offset(&rest[cut..])?));
        }
        Ok(Self::Is(text.parse().map_err(|_| wrong())?))
    }
}

/// What numbers are measured by: names, and for the one at hand its zero and the length of its stream.
#[derive(Debug)]
pub(super) struct Scale<'a> {
    pub(super) names: &'a mut HashMap<String, u32>,
    /// Where zero is; `None` when it is not known yet.
    pub(super) zero: &'a mut Option<u32>,
    /// Octets of the stream.
    pub(super) length: usize,
}

impl Scale<'_> {
    /// The number as it stands in a packet that is sent.
    pub(super) fn value(&self, number: &Number) -> Result<u32, String> {
        let from_zero = |n: i64| match *self.zero {
            Some(zero) => Ok(zero.wrapping_add(n as u32)),
            None => Err("the initial sequence number of this leg is not known yet".to_owned()),
        };
        match number {
            Number::Is(n) => from_zero(*n),
            Number::End(n) => from_zero(self.length as i64 + 1 + n),
            Number::Named(name, n) => match self.names.get(name) {
                Some(value) => Ok(value.wrapping_add(*n as u32)),
                None => Err(format!("nobody has said what ${name} is")),
            },
            Number::Any => Err("`*` is only for what is expected".into()),
        }
    }

    /// Whether a packet that came may have `seen`. Learns a zero or a name that is not known.
    pub(super) fn takes(&mut self, number: &Number, seen: u32) -> bool {
        let behind_zero = match number {
            Number::Any => return true,
            Number::Named(name, n) => {
                let value = seen.wrapping_sub(*n as u32);
                return *self.names.entry(name.clone()).or_insert(value) == value;
            }
            Number::Is(n) => *n,
            Number::End(n) => self.length as i64 + 1 + n,
        };
        let zero = seen.wrapping_sub(behind_zero as u32);
        *self.zero.get_or_insert(zero) == zero
    }
}
