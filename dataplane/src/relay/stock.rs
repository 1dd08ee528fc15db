//! Octets on their way from one socket to the other.
//!
//! What is received lies in the thread's own memory until the other socket has taken it, which mostly is at once. Only what that
//! does not take is kept with the connection: a connection that waits for nothing has no buffer. Where octets come in bulk they
//! go through a pipe (splice) and are not copied at all.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsFd;

use weir_core::relay::{Side, Span};
use weir_sys::pipe::Pipe;
use weir_sys::sockopt;

/// The most that is received at a time.
pub(super) const CHUNK: usize = 64 * 1024;
/// Octets that wait in connections of a thread, above which each may add but little.
const PLENTY: usize = 64 << 20;
/// What a direction may hold all the same: so every connection goes on, and the whole is bounded.
pub(super) const LITTLE: usize = 4096;
/// Pipes of a thread: each has two descriptors, and is a direction's only while octets are in it.
const PIPES: usize = 32;

/// What one direction of a connection holds.
#[derive(Debug, Default)]
pub(super) enum Stock {
    #[default]
    Nothing,
    Kept(Box<Kept>),
    Piped(Box<Piped>),
}

/// Octets in order, the first of them at `start`.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    start: usize,
    /// The room that it has among what is held until there is a verdict: as much as may be, whatever has come.
    held: usize,
}

impl Kept {
    /// Gives back the memory of what was sent; how many octets that were.
    fn shrink(&mut self) -> usize {
        let before = self.bytes.capacity();
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.shrink_to_fit();
        before - self.bytes.capacity()
    }
}

/// Octets in a pipe.
#[derive(Debug)]
pub(super) struct Piped {
    pipe: Pipe,
    level: usize,
}

/// What became of a receive.
pub(super) enum Taken {
    /// So many octets; `left`: whether there is more, or the end, as far as the kernel says so.
    Octets {
        len: u32,
        left: Option<bool>,
    },
    End,
    /// There is nothing.
    Nothing,
    /// There may be something, and no room for it.
    NoRoom,
    /// Likewise, among what is held by all until there is a verdict.
    HoldFull,
    Failed(io::Error),
}

/// A thread's own memory: what was received from each side for the connection at hand, and what all have kept.
#[derive(Debug)]
pub(super) struct Stocks {
    chunks: [Box<[u8]>; 2],
    /// The part that is yet to be sent, by side: from, to.
    loose: [(usize, usize); 2],
    /// What may be held of it, where there is no verdict yet.
    held_loose: [usize; 2],
    /// Memory of what is kept in connections, in octets.
    kept: usize,
    /// From so much on there is little for each.
    plenty: usize,
    /// The room that connections without a verdict have, and that all may have.
    held: usize,
    may_hold: usize,
    pipes: Vec<Pipe>,
    /// Pipes that there are, in connections or not.
    made: usize,
}

impl Stocks {
    pub fn new() -> Self {
        let chunk = || vec![0; CHUNK].into_boxed_slice();
        Self {
            chunks: [chunk(), chunk()],
            loose: [(0, 0); 2],
            held_loose: [0; 2],
            kept: 0,
            plenty: PLENTY,
            held: 0,
            may_hold: PLENTY,
            pipes: Vec::new(),
            made: 0,
        }
    }

    /// So many octets may wait for verdicts. Each connection has the room for all that it may bring, so that none waits for another
    /// that waits for it.
    pub fn set_hold_room(&mut self, octets: usize) {
        self.may_hold = octets;
    }

    /// Whether there is room for so many more octets that wait for verdicts.
    pub const fn has_hold_room(&self, octets: usize) -> bool {
        self.held + octets <= self.may_hold
    }

    /// Receives at most `most` octets; in bulk through a pipe, if there is one and nothing waits. `tells`: the socket says what is left.
    pub fn receive(
        &mut self,
        stock: &mut Stock,
        from: Side,
        socket: impl AsFd,
        most: usize,
        wish: Wish,
        tells: bool,
    ) -> Taken {
        if wish == Wish::Bulk && matches!(stock, Stock::Nothing) && !self.is_loose(from) {
            *stock = self.take_pipe();
        }
        if wish != Wish::Bulk && matches!(stock, Stock::Piped(piped) if piped.level == 0) {
            self.give_back(stock);
        }
        if let Stock::Piped(piped) = stock {
            match piped.pipe.fill(&socket, most) {
                Ok(0) if piped.level == 0 => return Taken::End,
                Ok(len) if len > 0 => {
                    piped.level += len;
                    return Taken::Octets { len: len as u32, left: None };
                }
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Taken::Failed(e),
                // Of several things: the socket has nothing or has ended, or the pipe's slots are taken.
                _ if piped.level > 0 => return Taken::NoRoom,
                // Or urgent data is in the way: a splice does not get past it (net/ipv4/tcp.c, tcp_read_sock), a receive does.
                _ => self.give_back(stock),
            }
        }
        self.keep(stock, from);
        let mut most = most.min(CHUNK);
        let mut reserves = 0;
        if wish == Wish::Held {
            let has_room = matches!(stock, Stock::Kept(kept) if kept.held > 0);
            if !has_room && !self.has_hold_room(most) {
                return Taken::HoldFull;
            }
            reserves = if has_room { 0 } else { most };
        } else if self.kept >= self.plenty {
            if !matches!(stock, Stock::Nothing) {
                return Taken::NoRoom;
            }
            most = most.min(LITTLE);
        }
        let Some(chunk) = self.chunks[from as usize].get_mut(..most) else { return Taken::NoRoom };
        let received = match tells {
            true => sockopt::recv_and_look(socket, chunk),
            false => sockopt::recv_now(socket, chunk).map(|len| (len, None)),
        };
        match received {
            Ok((0, _)) => Taken::End,
            Ok((len, left)) => {
                self.loose[from as usize] = (0, len);
                self.held_loose[from as usize] = reserves;
                Taken::Octets { len: len as u32, left }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Taken::Nothing,
            Err(e) => Taken::Failed(e),
        }
    }

    /// Sends at most `most` of the octets that came from `from`, in their order. `closes`: their end is known and follows at once, so
    /// that FIN can go with the last of them.
    pub fn send(
        &mut self,
        stock: &mut Stock,
        from: Side,
        socket: impl AsFd,
        most: usize,
        closes: bool,
    ) -> io::Result<usize> {
        match stock {
            Stock::Nothing => {
                let (start, all) = self.loose[from as usize];
                let end = all.min(start + most);
                let octets = &self.chunks[from as usize][start..end];
                let sent = sockopt::send_now(socket, octets, closes && end == all)?;
                self.loose[from as usize].0 += sent;
                Ok(sent)
            }
            Stock::Kept(kept) => {
                let all = kept.bytes.len();
                let end = all.min(kept.start + most);
                let octets = &kept.bytes[kept.start..end];
                let sent = sockopt::send_now(socket, octets, closes && end == all)?;
                kept.start += sent;
                self.held -= std::mem::take(&mut kept.held);
                if kept.start == kept.bytes.len() {
                    self.give_back(stock);
                } else if kept.start >= LITTLE && kept.start > kept.bytes.len() / 2 {
                    self.kept -= kept.shrink();
                }
                Ok(sent)
            }
            Stock::Piped(piped) => {
                let sent = piped.pipe.drain(socket, most.min(piped.level))?;
                piped.level -= sent;
                Ok(sent)
            }
        }
    }

    /// Some of the octets that came from `from`, in one piece; not of a direction that was received as [`Wish::Bulk`].
    pub fn peek<'a>(&'a mut self, stock: &'a mut Stock, from: Side, span: Span) -> Option<&'a [u8]> {
        if !matches!(stock, Stock::Nothing) {
            self.keep(stock, from);
        }
        let octets = match stock {
            Stock::Nothing => {
                let (start, end) = self.loose[from as usize];
                self.chunks[from as usize].get(start..end)?
            }
            Stock::Kept(kept) => kept.bytes.get(kept.start..)?,
            Stock::Piped(_) => return None,
        };
        octets.get(span.at as usize..)?.get(..span.len as usize)
    }

    /// The connection is left for now: what is loose goes with it, and a pipe stays only where it is needed.
    pub fn leave(&mut self, stock: &mut Stock, from: Side) {
        self.keep(stock, from);
        if matches!(stock, Stock::Piped(piped) if piped.level == 0) {
            self.give_back(stock);
        }
    }

    /// Nobody wants the octets any more.
    pub fn discard(&mut self, stock: &mut Stock, from: Side) {
        self.loose[from as usize] = (0, 0);
        self.give_back(stock);
    }

    fn is_loose(&self, from: Side) -> bool {
        let (start, end) = self.loose[from as usize];
        start < end
    }

    fn keep(&mut self, stock: &mut Stock, from: Side) {
        let (start, end) = std::mem::take(&mut self.loose[from as usize]);
        if start == end {
            return;
        }
        let loose = &self.chunks[from as usize][start..end];
        if !matches!(stock, Stock::Kept(_)) {
            *stock = Stock::Kept(Box::default());
        }
        let Stock::Kept(kept) = stock else { return };
        let before = kept.bytes.capacity();
        kept.bytes.reserve_exact(loose.len());
        kept.bytes.extend_from_slice(loose);
        self.kept += kept.bytes.capacity() - before;
        let held = std::mem::take(&mut self.held_loose[from as usize]);
        kept.held += held;
        self.held += held;
    }

    fn take_pipe(&mut self) -> Stock {
        let pipe = self.pipes.pop().or_else(|| {
            let pipe = (self.made < PIPES).then(Pipe::new)?;
            self.made += usize::from(pipe.is_ok());
            pipe.ok()
        });
        pipe.map_or(Stock::Nothing, |pipe| Stock::Piped(Box::new(Piped { pipe, level: 0 })))
    }

    fn give_back(&mut self, stock: &mut Stock) {
        match std::mem::take(stock) {
            Stock::Nothing => {}
            Stock::Kept(kept) => {
                self.kept -= kept.bytes.capacity();
                self.held -= kept.held;
            }
            Stock::Piped(piped) if piped.level == 0 => self.pipes.push(piped.pipe),
            // What is in it is another connection's no more than anybody's.
            Stock::Piped(_) => self.made -= 1,
        }
    }
}

/// How a direction is to be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Until there is a verdict on it: it is bounded by what the intercept holds.
    Held,
    /// In one piece, to be read where that is wanted.
    Plain,
    Bulk,
}
