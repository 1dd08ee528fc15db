//! A frame as the pipeline sees it: bytes with one owner.

/// One packet buffer. The AF_XDP driver's frames are UMEM chunks, the in-memory driver's are vectors; a frame that the
/// pipeline does not need any more goes back to the pool it was given, never out of scope.
pub trait Frame {
    /// The octets of the packet.
    fn data(&self) -> &[u8];
    /// The octets of the packet, for edits.
    fn data_mut(&mut self) -> &mut [u8];
    /// The most octets that fit.
    fn capacity(&self) -> usize;
    /// Makes the packet `len` octets long (at most the capacity). Octets beyond the old length are whatever was there.
    fn set_len(&mut self, len: usize);
    /// PCP and DEI of the VLAN tags that it came with: of the outer one in the high four bits, of the inner one in the low.
    fn priority(&self) -> u8;
    /// Says what that is. Of a frame that is received anew it is 0.
    fn set_priority(&mut self, priority: u8);
    /// Another packet begins in it, one that the gateway makes: what was noted of the one before counts no more.
    fn begin(&mut self) {
        self.set_priority(0);
    }
}

/// A frame of ordinary memory: the in-memory driver's, and the tests'.
#[derive(Debug, Default)]
pub struct HeapFrame {
    bytes: Box<[u8]>,
    len: u32,
    priority: u8,
}

impl HeapFrame {
    /// An empty frame that holds up to `capacity` octets.
    pub fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into_boxed_slice(), len: 0, priority: 0 }
    }

    /// A frame that holds `packet` and has room for `capacity` octets.
    pub fn from_packet(packet: &[u8], capacity: usize) -> Self {
        let mut frame = Self::new(capacity.max(packet.len()));
        frame.set_len(packet.len());
        crate::wire::put(&mut frame.bytes, 0, packet);
        frame
    }
}

impl Frame for HeapFrame {
    fn data(&self) -> &[u8] {
        self.bytes.get(..self.len as usize).unwrap_or_default()
    }
    fn data_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len as usize).unwrap_or_default()
    }
    fn capacity(&self) -> usize {
        self.bytes.len()
    }
    fn set_len(&mut self, len: usize) {
        self.len = u32::try_from(len.min(self.bytes.len())).unwrap_or(u32::MAX);
    }
    fn priority(&self) -> u8 {
        self.priority
    }
    fn set_priority(&mut self, priority: u8) {
        self.priority = priority;
    }
}
