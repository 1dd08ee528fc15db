//! Moves octets: what a connection's machine asks for, as soon as its sockets are ready for it.

use weir_core::policy::HeldFull;
use weir_core::relay::{Event, Side, Verdict};
use weir_sys::uring::{Errno, Key};

use super::conn::{Connection, Leg, failure_of};
use super::pump::{Pump, Turn};
use super::stats::Counter;
use super::stock::{CHUNK, LITTLE, Stock, Taken, Wish};

/// After so many octets others have their turn.
const TURN: u32 = 1 << 20;
/// A receive of so many octets is one of many.
const MANY: u32 = 16 * 1024;
/// And of so few it is not.
const FEW: u32 = 4 * 1024;

/// A pipe never has so much of packets of an MTU: its 16 slots take the payload of one each.
const LARGE: u32 = 24 * 1024;
/// So many receives into a pipe need not show that again.
const TRUST: u8 = 16;
/// Where none shows it what comes is better copied, and so much is, until that is tried again.
const COPIES: u32 = 4 << 20;

impl Leg {
    /// Judges by a receive of so many octets how the next one is to be.
    fn note(&mut self, len: u32, piped: bool) {
        if !piped {
            self.copies = self.copies.saturating_sub(len);
            self.bulk = self.copies == 0 && len >= MANY;
            return;
        }
        match self.trust.checked_sub(1) {
            _ if len >= LARGE => self.trust = TRUST,
            Some(left) => self.trust = left,
            None => self.copies = COPIES,
        }
        self.bulk = self.copies == 0 && len >= FEW;
    }
}

impl Pump {
    /// Receives, if that is wanted and there is something. `None`: it waits.
    pub(super) fn receive(
        &mut self,
        key: Key,
        conn: &mut Connection,
        from: Side,
        turn: &mut Turn,
    ) -> Option<Event> {
        let Connection { machine, legs, stocks, .. } = conn;
        let (leg, stock) = (&mut legs[from as usize], &mut stocks[from as usize]);
        let (Some(most), true) = (leg.receives, leg.ready.readable) else { return None };
        if turn.octets >= TURN {
            self.again(key, conn);
            return None;
        }
        let wish = match (machine.holds(from), leg.bulk && !machine.reads(from)) {
            (true, _) => Wish::Held,
            (false, true) => Wish::Bulk,
            (false, false) => Wish::Plain,
        };
        let socket = leg.socket.as_ref()?;
        let event = match self.stocks.receive(stock, from, socket, most as usize, wish, leg.tells) {
            Taken::Octets { len, left } => {
                let is_piped = matches!(stock, Stock::Piped(_));
                if left.is_none() && !is_piped {
                    leg.untold();
                }
                leg.ready.readable = left != Some(false) || leg.ready.hung;
                // A receive that was cut short by nothing but the end; of more than a little a segment less is not worth it.
                let is_last = !is_piped && (len as usize) < LITTLE.min(most as usize);
                leg.closes = leg.ready.ended && !leg.ready.hung && is_last;
                leg.note(len, is_piped);
                turn.octets = turn.octets.saturating_add(len);
                Event::Received { from, len }
            }
            Taken::End => Event::Eof(from),
            Taken::Nothing => {
                leg.ready.readable = false;
                return None;
            }
            Taken::NoRoom => Event::NoRoom(from),
            Taken::HoldFull => {
                self.stats.add(Counter::HoldFull, 1);
                match self.held_full {
                    HeldFull::Wait => self.hungry.push_back((key, CHUNK.min(most as usize))),
                    HeldFull::Reset => machine.handle_no_hold(self.now, Verdict::Reset),
                    HeldFull::Drop => machine.handle_no_hold(self.now, Verdict::Drop),
                }
                Event::HoldFull(from)
            }
            Taken::Failed(error) => Event::RecvFailed(from, failure_of(&error)),
        };
        leg.receives = None;
        Some(event)
    }

    /// Sends, if that is wanted and there is room. `None`: it waits.
    pub(super) fn send(&mut self, conn: &mut Connection, to: Side) -> Option<Event> {
        let from = to.other();
        let Connection { legs, stocks, .. } = conn;
        let closes = legs[from as usize].closes;
        let (leg, stock) = (&mut legs[to as usize], &mut stocks[from as usize]);
        let (Some(most), true) = (leg.sends, leg.ready.writable) else { return None };
        let event = match self.stocks.send(stock, from, leg.socket.as_ref()?, most as usize, closes) {
            Ok(len) => {
                leg.waits |= closes;
                Event::Sent { to, len: len as u32 }
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {
                leg.ready.writable = false;
                return None;
            }
            Err(error) => Event::SendFailed(to, failure_of(&error)),
        };
        leg.sends = None;
        Some(event)
    }

    fn again(&mut self, key: Key, conn: &mut Connection) {
        if !std::mem::replace(&mut conn.again, true) {
            self.again.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_small_pieces_is_copied_and_what_does_not_is_piped() {
        let mut leg = Leg::default();
        leg.note(FEW, false);
        assert!(!leg.bulk, "few octets are not many");
        leg.note(MANY, false);
        assert!(leg.bulk);
        leg.note(LARGE - 1, true);
        assert!(!leg.bulk, "nothing shows that it comes in large pieces");
        for _ in 1..COPIES / MANY {
            leg.note(MANY, false);
            assert!(!leg.bulk, "not tried again for a while");
        }
        leg.note(MANY, false);
        assert!(leg.bulk);
        leg.note(LARGE, true);
        for _ in 0..TRUST {
            leg.note(LARGE - 1, true);
            assert!(leg.bulk, "it was shown not long ago");
        }
        leg.note(LARGE - 1, true);
        assert!(!leg.bulk);
    }
}
