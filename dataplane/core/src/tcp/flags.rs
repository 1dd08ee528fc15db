//! The control bits of a TCP header (RFC 9293 section 3.1).

/// The low eight control bits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const URG: u8 = 0x20;
    /// Congestion experienced echo and congestion window reduced (RFC 3168 section 6.1).
    pub const ECE: u8 = 0x40;
    pub const CWR: u8 = 0x80;

    #[inline]
    pub const fn fin(self) -> bool {
        self.0 & Self::FIN != 0
    }
    #[inline]
    pub const fn syn(self) -> bool {
        self.0 & Self::SYN != 0
    }
    #[inline]
    pub const fn rst(self) -> bool {
        self.0 & Self::RST != 0
    }
    #[inline]
    pub const fn ack(self) -> bool {
        self.0 & Self::ACK != 0
    }
    #[inline]
    pub const fn urg(self) -> bool {
        self.0 & Self::URG != 0
    }
    /// Whether it neither opens nor ends anything.
    #[inline]
    pub const fn is_plain(self) -> bool {
        self.0 & (Self::SYN | Self::FIN | Self::RST) == 0
    }
    /// A SYN that opens a connection: no ACK.
    #[inline]
    pub const fn opens(self) -> bool {
        self.syn() && !self.ack()
    }

    /// Whether any TCP sends this: not none at all, not SYN with FIN or RST, not FIN alone
    /// (the combinations that nf_conntrack_proto_tcp's `tcp_valid_flags` refuses).
    #[inline]
    pub const fn possible(self) -> bool {
        if self.syn() {
            return !self.fin() && !self.rst();
        }
        self.ack() || (self.rst() && !self.fin())
    }
}

impl std::fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (bit, name) in [(0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x10, "."), (0x20, "U")] {
            if self.0 & bit != 0 {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}
