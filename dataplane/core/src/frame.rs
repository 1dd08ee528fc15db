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
}

/// A frame of ordinary memory: the in-memory driver's, and the tests'.
#[derive(Debug, Default)]
pub struct HeapFrame {
    bytes: Vec<u8>,
    len: usize,
}

impl HeapFrame {
    /// An empty frame that holds up to `capacity` octets.
    pub fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity], len: 0 }
    }

    /// A frame that holds `packet` and has room for `capacity` octets.
    pub fn from_packet(packet: &[u8], capacity: usize) -> Self {
        let mut frame = Self::new(capacity.max(packet.len()));
        frame.len = packet.len();
        crate::wire::put(&mut frame.bytes, 0, packet);
        frame
    }
}

impl Frame for HeapFrame {
    fn data(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
    fn data_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
    fn capacity(&self) -> usize {
        self.bytes.len()
    }
    fn set_len(&mut self, len: usize) {
        self.len = len.min(self.bytes.len());
    }
}
