//! Why a packet was not sent on: every reason has a name and a sentence for the operator, in one list.

use serde::{Deserialize, Serialize};

/// Makes a reason enum with its list, names and sentences.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $label:literal, $sentence:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[repr(u8)]
        pub enum $name { $(#[doc = $sentence] $variant,)* }

        impl $name {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// One sentence for the operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

pub(crate) use reasons;

reasons! {
    /// Why a packet was dropped.
    DropReason {
        Truncated = "truncated", "The frame ends before its headers do.";
        BadIpHeader = "bad-ip-header", "The IP header contradicts itself (version, header length, total length or checksum).";
        BadTcpHeader = "bad-tcp-header", "The TCP data offset or the combination of flags is impossible.";
        ExtensionHeaders = "extension-headers", "More IPv6 extension headers than are looked at.";
        BadChecksum = "bad-checksum", "The TCP checksum of a segment that would be inspected, or that ends a connection, is wrong.";
        Martian = "martian", "An address that no packet on a wire may have: loopback, multicast, link-local, IPv4-mapped (RFC 1812 section 5.3.7, RFC 4291).";
        WrongPort = "wrong-port", "A packet in the name of a server, from a port that the server is not behind.";
        BeforeHandshake = "before-handshake", "The client sent data before the server answered its SYN.";
        UnexpectedSyn = "unexpected-syn", "A SYN or SYN-ACK that belongs to no handshake of the connection.";
        OutOfWindow = "out-of-window", "A segment before its verdict lies outside what can be held.";
        RstOutOfWindow = "rst-out-of-window", "An RST whose sequence number is not in the receiver's window (RFC 5961).";
        HoldFull = "hold-full", "No room to hold this segment; the client sends it again.";
        HoldDuplicate = "hold-duplicate", "A segment before the verdict that brings nothing that is not held already.";
        ChangedBytes = "changed-bytes", "A retransmission with other bytes than were inspected: the connection is ended.";
        HelloRetry = "hello-retry", "A second ClientHello that the rules judge otherwise than the first, or one that no server has asked for: the connection is ended.";
        Unacknowledged = "unacknowledged", "The server did not acknowledge the inspected bytes in time: the connection is ended.";
        Ended = "ended", "The connection ended before its verdict, and what was held of it with it.";
        VerdictReset = "verdict-reset", "The connection was refused with a reset; this packet belongs to it.";
        VerdictDrop = "verdict-drop", "The connection is dropped by a rule; this packet belongs to it.";
        Midstream = "midstream", "A packet of a connection that is not known, after the grace time.";
        TableFull = "table-full", "No room for another flow, and the intercept says `drop`.";
        AuthenticatedSyn = "authenticated-syn", "A SYN that is signed (TCP-AO) and would have to be changed.";
        TooBig = "too-big", "A segment of a spliced connection that does not fit the way out: its sender is told (ICMP).";
        TtlExpired = "ttl-expired", "A segment of a spliced connection whose TTL or hop limit ran out: its sender is told (ICMP).";
        Untranslatable = "untranslatable", "A packet of a spliced connection that cannot be rewritten for the other leg: its addresses are fixed by a source route or an authentication header, or it has no room for an option that was promised, or an ICMP error quotes another connection.";
        FragmentOverlap = "fragment-overlap", "Fragments overlap (RFC 5722); the whole datagram is discarded.";
        FragmentDuplicate = "fragment-duplicate", "A fragment that came before, with the same bytes.";
        FragmentTimeout = "fragment-timeout", "Not all fragments of a datagram came in time.";
        FragmentFull = "fragment-full", "No room for another datagram under reassembly, or it has too many fragments.";
        FragmentTooBig = "fragment-too-big", "The reassembled segment does not fit the way out.";
        BadFragment = "bad-fragment", "A fragment too small for its headers, or one with an impossible offset or length.";
        ToWeir = "to-weir", "A segment for weir itself: of a handshake that it answers, or of a server leg that it opens.";
        OldLeg = "old-leg", "A packet of a server that the connection was taken away from, or does not have yet.";
        LegInUse = "leg-in-use", "A client's packet with the addresses of a connection that weir opened to a server.";
        NoServer = "no-server", "The server that the verdict asked for refused, did not answer, or cannot be reached: the connection is reset.";
        BadCookie = "bad-cookie", "An ACK of an unknown connection that brings back no SYN cookie of ours, while such are about.";
        SourceLimit = "source-limit", "The source prefix has as many connections, or opens them as fast, as `limits` allow.";
        HalfOpenFull = "half-open-full", "As many half-open connections as `limits` allow.";
        IcmpOutOfWindow = "icmp-out-of-window", "An ICMP error that quotes no segment which can be under way (RFC 5927).";
        NoFrame = "no-frame", "No free frame to build an answer in.";
        TxFull = "tx-full", "The port's transmit ring stayed full.";
        Late = "late", "It waited for a worker that hung for seconds: its sender has sent it again, and that went another way.";
        HandoffFull = "handoff-full", "The ring to the worker that owns the flow is full.";
        PuntFailed = "punt-failed", "The kernel did not take a frame that was handed to it.";
        PortLost = "port-lost", "The port the packet had to leave by is gone.";
        NestedTag = "nested-tag", "More VLAN tags than a link of the box has, or a priority tag among others.";
        VlanLost = "vlan-lost", "The VLAN that the packet came by, or had to leave by, has no sub-interface here any more.";
    }
}

reasons! {
    /// Why a packet, or a whole flow, was given to the kernel.
    PuntReason {
        RelayRule = "relay-rule", "A rule says `relay`, or the intercept's handshake is `relay`.";
        TableFull = "table-full", "No room for another flow, and the intercept says `kernel`: the relay takes it.";
        NoPort = "no-port", "The route to the server leaves by no port of the dataplane: the relay takes the flow.";
        Midstream = "midstream", "A connection from before the start, in the grace time.";
        NoNeighbour = "no-neighbour", "The next hop is not resolved yet; the kernel resolves it and forwards this packet.";
        NoRoute = "no-route", "No route by a port of the dataplane for this packet: the kernel decides.";
        TtlExpired = "ttl-expired", "TTL or hop limit ran out; the kernel answers with ICMP.";
        MtuExceeded = "mtu-exceeded", "The packet is larger than the way out; the kernel fragments it or answers with ICMP.";
        NotIntercepted = "not-intercepted", "The packet belongs to no intercept; the kernel forwards it.";
        KernelFlow = "kernel-flow", "The flow is on the kernel road; its map entry was not in place.";
    }
}

/// Counters, one per reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    pub dropped: [u64; DropReason::COUNT],
    pub punted: [u64; PuntReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self { dropped: [0; DropReason::COUNT], punted: [0; PuntReason::COUNT] }
    }
}

impl Counters {
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        if let Some(n) = self.dropped.get_mut(reason as usize) {
            *n += 1;
        }
    }

    /// The kernel did not take a frame that was counted as given to it.
    pub fn punt_failed(&mut self, reason: PuntReason) {
        if let Some(n) = self.punted.get_mut(reason as usize) {
            *n = n.saturating_sub(1);
        }
        self.drop(DropReason::PuntFailed);
    }

    #[inline]
    pub fn punt(&mut self, reason: PuntReason) {
        if let Some(n) = self.punted.get_mut(reason as usize) {
            *n += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sentences_end() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
        assert!(DropReason::ALL.iter().all(|r| r.sentence().ends_with('.')));
        assert!(PuntReason::ALL.iter().all(|r| r.sentence().ends_with('.')));
    }
}
