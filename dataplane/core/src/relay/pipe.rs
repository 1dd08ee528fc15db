//! One direction's buffer, as numbers: a circle of octets that one operation fills while another drains it.

/// A part of a buffer, in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub at: u32,
    pub len: u32,
}

/// One direction. At most one receive and one send are under way, on parts that do not overlap.
#[derive(Clone, Debug)]
pub struct Pipe {
    capacity: u32,
    /// Where the oldest octet stands.
    start: u32,
    level: u32,
    received: u64,
    sent: u64,
    /// Octets of room given to the receive under way.
    receiving: Option<u32>,
    sending: Option<u32>,
    ended: bool,
    shut: bool,
    /// No memory to receive into, until something is sent.
    starved: bool,
}

impl Pipe {
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity: capacity.max(1),
            start: 0,
            level: 0,
            received: 0,
            sent: 0,
            receiving: None,
            sending: None,
            ended: false,
            shut: false,
            starved: false,
        }
    }

    /// Room to receive into; `limit` bounds the octets held. From then on a receive is under way.
    ///
    /// A nearly full buffer offers nothing: many small receives cost more than the wait.
    pub fn offer_recv(&mut self, limit: u32) -> Option<Span> {
        if self.receiving.is_some() || self.ended || self.starved {
            return None;
        }
        let limit = limit.min(self.capacity);
        let free = limit.saturating_sub(self.level);
        if free == 0 || (self.level > 0 && limit == self.capacity && free < self.capacity / 4) {
            return None;
        }
        if self.level == 0 && self.sending.is_none() {
            // Starting over keeps a quiet connection on the first pages of its buffer.
            self.start = 0;
        }
        let at = self.wrap(self.start, self.level);
        let span = Span { at, len: free.min(self.capacity - at) };
        self.receiving = Some(span.len);
        Some(span)
    }

    /// Octets that a send could take; 0 while one is under way.
    pub fn sendable(&self) -> u32 {
        if self.sending.is_some() || self.shut { 0 } else { self.level.min(self.capacity - self.start) }
    }

    /// Octets to send, at most so many. From then on a send is under way.
    pub fn offer_send(&mut self, most: u32) -> Option<Span> {
        let len = self.sendable().min(most);
        if len == 0 {
            return None;
        }
        let span = Span { at: self.start, len };
        self.sending = Some(span.len);
        Some(span)
    }

    /// The end is reached and everything before it was sent: yields true once.
    pub fn offer_shutdown(&mut self) -> bool {
        let due = self.ended && self.level == 0 && self.sending.is_none() && !self.shut;
        self.shut |= due;
        due
    }

    /// False when no receive was under way, or it was for less.
    pub fn received(&mut self, len: u32) -> bool {
        if len == 0 || self.receiving.is_none_or(|room| len > room) {
            return false;
        }
        self.receiving = None;
        self.level += len;
        self.received += u64::from(len);
        true
    }

    /// False when no send was under way, or it was for less.
    pub fn sent(&mut self, len: u32) -> bool {
        if self.sending.is_none_or(|room| len > room) {
            return false;
        }
        self.sending = None;
        self.starved = false;
        self.start = self.wrap(self.start, len);
        self.level -= len;
        self.sent += u64::from(len);
        true
    }

    /// FIN. False when no receive was under way.
    pub fn ended(&mut self) -> bool {
        let was = self.receiving.take().is_some();
        self.ended |= was;
        was
    }

    /// The receive under way came to nothing for want of memory: the next one comes after a send. With nothing to send it
    /// would never come, so that is not waited for.
    pub fn starved(&mut self) {
        self.starved = self.receiving.take().is_some() && self.level > 0;
    }

    /// The receive under way came to nothing. False when there was none.
    pub fn recv_failed(&mut self) -> bool {
        self.receiving.take().is_some()
    }

    /// The send under way came to nothing. False when there was none.
    pub fn send_failed(&mut self) -> bool {
        self.sending.take().is_some()
    }

    pub fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }

    pub fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// FIN was received.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// FIN was passed on.
    pub fn is_shut(&self) -> bool {
        self.shut
    }

    /// Octets held.
    pub fn level(&self) -> u32 {
        self.level
    }

    pub fn total_received(&self) -> u64 {
        self.received
    }

    pub fn total_sent(&self) -> u64 {
        self.sent
    }

    fn wrap(&self, at: u32, by: u32) -> u32 {
        // Both are at most the capacity, so one subtraction is enough; u64 because their sum may not fit.
        let sum = u64::from(at) + u64::from(by);
        let capacity = u64::from(self.capacity);
        (if sum >= capacity { sum - capacity } else { sum }) as u32
    }
}
