//! Octets through stocks, between sockets of the kernel, in an order that a seed chooses.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::*;

/// SplitMix64: a run is its seed.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// One direction of a connection: who sends, the two sockets of the relay, who receives, and what is under way.
struct Direction {
    sender: UnixStream,
    comes: UnixStream,
    goes: UnixStream,
    receiver: UnixStream,
    stock: Stock,
    level: usize,
    /// Sent and not yet received.
    owed: VecDeque<u8>,
    /// Of these, at the receiver's socket.
    passed: usize,
    next: u8,
}

impl Direction {
    fn new() -> Self {
        let pair = || {
            let (one, other) = UnixStream::pair().unwrap();
            one.set_nonblocking(true).unwrap();
            other.set_nonblocking(true).unwrap();
            (one, other)
        };
        let ((sender, comes), (goes, receiver)) = (pair(), pair());
        let (stock, owed) = (Stock::Nothing, VecDeque::new());
        Self { sender, comes, goes, receiver, stock, level: 0, owed, passed: 0, next: 0 }
    }

    fn write(&mut self, len: usize) {
        let octets: Vec<u8> = (0..len).map(|at| self.next.wrapping_add(at as u8)).collect();
        match self.sender.write(&octets) {
            Ok(written) => {
                self.owed.extend(&octets[..written]);
                self.next = self.next.wrapping_add(written as u8);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn read(&mut self, len: usize) {
        let mut room = vec![0; len];
        match self.receiver.read(&mut room) {
            Ok(read) => {
                assert!(self.owed.drain(..read).eq(room[..read].iter().copied()), "in their order");
                self.passed -= read;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn receive(&mut self, stocks: &mut Stocks, most: usize, wish: Wish) {
        match stocks.receive(&mut self.stock, Side::Client, &self.comes, most, wish, false) {
            Taken::Octets { len, .. } => self.level += len as usize,
            Taken::Nothing => {}
            Taken::NoRoom => assert!(self.level > 0, "there is always room for a little"),
            Taken::HoldFull => assert!(wish == Wish::Held && !stocks.has_hold_room(most.min(CHUNK))),
            Taken::End | Taken::Failed(_) => panic!("nobody closes"),
        }
    }

    fn send(&mut self, stocks: &mut Stocks, most: usize) {
        let most = most.min(self.level);
        if most == 0 {
            return;
        }
        match stocks.send(&mut self.stock, Side::Client, &self.goes, most, false) {
            Ok(sent) => {
                self.level -= sent;
                self.passed += sent;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

/// Each connection receives or sends a few times in its turn and is left; receivers are slow.
fn run(seed: u64, stocks: &mut Stocks) {
    let mut rng = Rng(seed);
    let mut directions: Vec<Direction> = (0..1 + rng.below(4)).map(|_| Direction::new()).collect();
    let reads = rng.below(2) == 0;
    for _ in 0..100 {
        let number = rng.below(directions.len());
        let direction = &mut directions[number];
        direction.write(rng.below(100_000));
        for _ in 0..rng.below(4) {
            let wish = [Wish::Held, Wish::Plain, Wish::Bulk][rng.below(if reads { 2 } else { 3 })];
            direction.receive(stocks, 1 + rng.below(300_000), wish);
            if reads && direction.level > 0 {
                let at = rng.below(direction.level);
                let span = Span { at: at as u32, len: (direction.level - at) as u32 };
                let seen = stocks.peek(&mut direction.stock, Side::Client, span).unwrap();
                let waiting = direction.owed.range(direction.passed + at..direction.passed + direction.level);
                assert!(waiting.eq(seen), "seed {seed}: what waits from {at} on");
            }
            direction.send(stocks, 1 + rng.below(300_000));
        }
        stocks.leave(&mut direction.stock, Side::Client);
        direction.read(rng.below(80_000));
        assert!(stocks.held <= stocks.may_hold, "{} held", stocks.held);
    }
    for mut direction in directions {
        if rng.below(4) == 0 {
            stocks.discard(&mut direction.stock, Side::Client);
            continue;
        }
        while !direction.owed.is_empty() {
            direction.receive(stocks, CHUNK, Wish::Plain);
            direction.send(stocks, usize::MAX);
            stocks.leave(&mut direction.stock, Side::Client);
            direction.read(CHUNK);
        }
        assert!(matches!(direction.stock, Stock::Nothing), "who waits for nothing has no buffer");
    }
}

#[test]
fn octets_leave_in_their_order_and_nothing_stays_behind() {
    let mut stocks = Stocks::new();
    for seed in 0..40 {
        // By turns in plenty, and where hardly anything may be kept.
        let scarce = seed % 2 == 1;
        stocks.plenty = if scarce { 100_000 } else { PLENTY };
        stocks.set_hold_room(if scarce { 70_000 } else { PLENTY });
        run(seed, &mut stocks);
        assert_eq!((stocks.kept, stocks.held), (0, 0), "seed {seed}");
        assert_eq!(stocks.pipes.len(), stocks.made, "every pipe is free again, seed {seed}");
    }
    assert!((1..=PIPES).contains(&stocks.made));
}
