//! What waits in one direction, as numbers: octets in a row that one operation adds to while another takes from its front.

/// A part of what waits: octets before it, and in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub at: u32,
    pub len: u32,
}

/// One direction. At most one receive and one send are under way.
#[derive(Clone, Debug)]
pub struct Pipe {
    capacity: u32,
    /// Of the whole stream.
    received: u64,
    sent: u64,
    /// Octets of room given to the receive under way, and given to the send; 0: there is none.
    receiving: u32,
    sending: u32,
    ended: bool,
    shut: bool,
    /// No memory to receive into, until something is sent.
    starved: bool,
}

impl Pipe {
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity: capacity.max(1),
            received: 0,
            sent: 0,
            receiving: 0,
            sending: 0,
            ended: false,
            shut: false,
            starved: false,
        }
    }

    /// Octets to receive at most; `limit` bounds those held. From then on a receive is under way.
    ///
    /// A nearly full buffer offers nothing: many small receives cost more than the wait.
    pub fn offer_recv(&mut self, limit: u32) -> Option<u32> {
        if self.is_receiving() || self.ended || self.starved {
            return None;
        }
        let limit = limit.min(self.capacity);
        let free = limit.saturating_sub(self.level());
        if free == 0 || (self.level() > 0 && limit == self.capacity && free < self.capacity / 4) {
            return None;
        }
        self.receiving = free;
        Some(free)
    }

    /// How many octets of the first `limit` of the stream are not sent yet.
    pub fn within(&self, limit: u64) -> u32 {
        u32::try_from(limit.saturating_sub(self.sent)).unwrap_or(u32::MAX)
    }

    /// Octets that a send could take; 0 while one is under way.
    pub fn sendable(&self) -> u32 {
        if self.is_sending() || self.shut { 0 } else { self.level() }
    }

    /// Octets to send, at most so many. From then on a send is under way.
    pub fn offer_send(&mut self, most: u32) -> Option<u32> {
        let len = self.sendable().min(most);
        if len == 0 {
            return None;
        }
        self.sending = len;
        Some(len)
    }

    /// The end is reached and everything before it was sent: yields true once.
    pub fn offer_shutdown(&mut self) -> bool {
        let due = self.ended && self.level() == 0 && !self.is_sending() && !self.shut;
        self.shut |= due;
        due
    }

    /// Where the octets behind the first `octet` of the stream stand, as far as they were not sent.
    pub fn from_octet(&self, octet: u64) -> Span {
        let at = self.within(octet).min(self.level());
        Span { at, len: self.level() - at }
    }

    /// Where the last `len` octets received stand.
    pub fn last(&self, len: u32) -> Span {
        let len = len.min(self.level());
        Span { at: self.level() - len, len }
    }

    /// False when no receive was under way, or it was for less.
    pub fn received(&mut self, len: u32) -> bool {
        if len == 0 || len > self.receiving {
            return false;
        }
        self.receiving = 0;
        self.received += u64::from(len);
        true
    }

    /// False when no send was under way, or it was for less.
    pub fn sent(&mut self, len: u32) -> bool {
        if !self.is_sending() || len > self.sending {
            return false;
        }
        self.sending = 0;
        self.starved = false;
        self.sent += u64::from(len);
        true
    }

    /// FIN. False when no receive was under way.
    pub fn ended(&mut self) -> bool {
        let was = std::mem::take(&mut self.receiving) > 0;
        self.ended |= was;
        was
    }

    /// The receive under way came to nothing for want of memory: the next one comes after a send. With nothing to send it
    /// would never come, so that is not waited for.
    pub fn starved(&mut self) {
        self.starved = std::mem::take(&mut self.receiving) > 0 && self.level() > 0;
    }

    /// The receive under way came to nothing, and the next one comes after [`Self::room`], or a send.
    pub fn full(&mut self) {
        self.starved |= std::mem::take(&mut self.receiving) > 0;
    }

    /// There may be room again.
    pub fn room(&mut self) {
        self.starved = false;
    }

    /// The receive under way came to nothing. False when there was none.
    pub fn recv_failed(&mut self) -> bool {
        std::mem::take(&mut self.receiving) > 0
    }

    /// The send under way came to nothing. False when there was none.
    pub fn send_failed(&mut self) -> bool {
        std::mem::take(&mut self.sending) > 0
    }

    pub fn is_receiving(&self) -> bool {
        self.receiving > 0
    }

    pub fn is_sending(&self) -> bool {
        self.sending > 0
    }

    /// FIN was received.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// FIN was passed on.
    pub fn is_shut(&self) -> bool {
        self.shut
    }

    /// Octets held: no more than the capacity.
    pub fn level(&self) -> u32 {
        (self.received - self.sent) as u32
    }

    pub fn total_received(&self) -> u64 {
        self.received
    }

    pub fn total_sent(&self) -> u64 {
        self.sent
    }
}
