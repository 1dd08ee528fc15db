//! What became of the packets that the steering program saw.

/// One per packet; the order is that of `enum weir_outcome` in maps.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    NotIp,
    Vlan,
    Malformed,
    NotTcp,
    OwnAddress,
    Disabled,
    StalePass,
    StaleDrop,
    KernelFlow,
    NoIntercept,
    UnknownPort,
    NoSocketPass,
    NoSocketDrop,
    Redirect,
    RedirectFragment,
    OtherHost,
    NestedTagDrop,
    RedirectPool,
    RedirectGateway,
    RedirectIcmp,
    Cookie,
    CookieFailed,
    DoubtDrop,
    Express,
    ExpressAlone,
    ExpressFlags,
    ExpressOptions,
    ExpressHeader,
    ExpressUnfinished,
    ExpressTtl,
    ExpressMtu,
    ExpressIngress,
    ExpressHop,
    ExpressDrop,
    ExpressReplaced,
    ExpressChanging,
    ExpressOvertaking,
}

impl Outcome {
    /// All of them, in the order of the counters.
    pub const ALL: [Self; 37] = [
        Self::NotIp,
        Self::Vlan,
        Self::Malformed,
        Self::NotTcp,
        Self::OwnAddress,
        Self::Disabled,
        Self::StalePass,
        Self::StaleDrop,
        Self::KernelFlow,
        Self::NoIntercept,
        Self::UnknownPort,
        Self::NoSocketPass,
        Self::NoSocketDrop,
        Self::Redirect,
        Self::RedirectFragment,
        Self::OtherHost,
        Self::NestedTagDrop,
        Self::RedirectPool,
        Self::RedirectGateway,
        Self::RedirectIcmp,
        Self::Cookie,
        Self::CookieFailed,
        Self::DoubtDrop,
        Self::Express,
        Self::ExpressAlone,
        Self::ExpressFlags,
        Self::ExpressOptions,
        Self::ExpressHeader,
        Self::ExpressUnfinished,
        Self::ExpressTtl,
        Self::ExpressMtu,
        Self::ExpressIngress,
        Self::ExpressHop,
        Self::ExpressDrop,
        Self::ExpressReplaced,
        Self::ExpressChanging,
        Self::ExpressOvertaking,
    ];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Vlan => "vlan",
            Self::Malformed => "malformed",
            Self::NotTcp => "not_tcp",
            Self::OwnAddress => "own_address",
            Self::Disabled => "disabled",
            Self::StalePass => "stale_pass",
            Self::StaleDrop => "stale_drop",
            Self::KernelFlow => "kernel_flow",
            Self::NoIntercept => "no_intercept",
            Self::UnknownPort => "unknown_port",
            Self::NoSocketPass => "no_socket_pass",
            Self::NoSocketDrop => "no_socket_drop",
            Self::Redirect => "redirect",
            Self::RedirectFragment => "redirect_fragment",
            Self::OtherHost => "other_host",
            Self::NestedTagDrop => "nested_tag_drop",
            Self::RedirectPool => "redirect_pool",
            Self::RedirectGateway => "redirect_gateway",
            Self::RedirectIcmp => "redirect_icmp",
            Self::Cookie => "cookie",
            Self::CookieFailed => "cookie_failed",
            Self::DoubtDrop => "doubt_drop",
            Self::Express => "express",
            Self::ExpressAlone => "express_alone",
            Self::ExpressFlags => "express_flags",
            Self::ExpressOptions => "express_options",
            Self::ExpressHeader => "express_header",
            Self::ExpressUnfinished => "express_unfinished",
            Self::ExpressTtl => "express_ttl",
            Self::ExpressMtu => "express_mtu",
            Self::ExpressIngress => "express_ingress",
            Self::ExpressHop => "express_hop",
            Self::ExpressDrop => "express_drop",
            Self::ExpressReplaced => "express_replaced",
            Self::ExpressChanging => "express_changing",
            Self::ExpressOvertaking => "express_overtaking",
        }
    }

    /// What it means, for the operator.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NotIp => "neither IPv4 nor IPv6, ARP among it: to the kernel",
            Self::Vlan => "has a VLAN tag: to the kernel",
            Self::Malformed => "headers cut short or impossible: to the kernel, which drops it",
            Self::NotTcp => "IP, but neither TCP nor an ICMP error about TCP of weir's: to the kernel",
            Self::OwnAddress => "to an address of this box: to the kernel, never intercepted",
            Self::Disabled => "steering is not enabled yet: to the kernel",
            Self::StalePass => "the dataplane gave no sign of life within the limit: to the kernel",
            Self::StaleDrop => {
                "no sign of life, and the box fails closed: a packet of an intercept was dropped"
            }
            Self::KernelFlow => "its flow was given to the kernel: to the kernel",
            Self::NoIntercept => "TCP of no intercept: to the kernel",
            Self::UnknownPort => "came in by a device that is no port: to the kernel",
            Self::NoSocketPass => "of an intercept, but its queue has no worker: to the kernel",
            Self::NoSocketDrop => {
                "of an intercept, but its queue has no worker, and the box fails closed: dropped"
            }
            Self::Redirect => "of an intercept: to its worker",
            Self::RedirectFragment => {
                "a fragment or a very long header chain between addresses of an intercept: to its worker"
            }
            Self::OtherHost => "the frame is for another station: the kernel drops or bridges it",
            Self::NestedTagDrop => "a priority tag inside a priority tag, which nobody sends: dropped",
            Self::RedirectPool => "from a server of a pool: to its worker",
            Self::RedirectGateway => {
                "from a server of a pool to a port that the gateway connects from: to its worker"
            }
            Self::RedirectIcmp => "an ICMP error about a packet of an intercept or a pool: to its worker",
            Self::Cookie => "a SYN of an intercept, in a flood of them: answered at once with a SYN cookie",
            Self::CookieFailed => "a SYN of an intercept that could not be answered at once: dropped",
            Self::DoubtDrop => {
                "no sign of life for a moment, and the kernel cannot go on with a translated connection: dropped, to be sent again"
            }
            Self::Express => "of the express lane: rewritten and sent on",
            Self::ExpressAlone => {
                "of the express lane, a FIN, an RST or the like, and no worker: sent on, noted"
            }
            Self::ExpressFlags => "of the express lane, a SYN, FIN, RST, URG or no ACK: to its worker",
            Self::ExpressOptions => "of the express lane, more TCP options than it reads: to its worker",
            Self::ExpressHeader => "of the express lane, damaged, or octets behind the packet: to its worker",
            Self::ExpressUnfinished => "of the express lane, too long to finish its checksum: to its worker",
            Self::ExpressTtl => "of the express lane, its TTL or hop limit ends here: to its worker",
            Self::ExpressMtu => "of the express lane, larger than the way out allows: to its worker",
            Self::ExpressIngress => "of the express lane, came in by another device: to its worker",
            Self::ExpressHop => "of the express lane, its next hop is not known now: to its worker",
            Self::ExpressDrop => "of the express lane, for its worker alone, and there is none: dropped",
            Self::ExpressReplaced => {
                "of a flow that left the express lane this moment: dropped, to be sent again"
            }
            Self::ExpressChanging => {
                "of the express lane, and its worker may still have some that came before: to its worker"
            }
            Self::ExpressOvertaking => {
                "the first of the express lane of a flow whose worker was not seen without work in a pause of it: sent on, and may have overtaken some that came before"
            }
        }
    }

    /// Whether the packet goes to its worker.
    pub const fn is_redirect(self) -> bool {
        matches!(
            self,
            Self::Redirect
                | Self::RedirectFragment
                | Self::RedirectPool
                | Self::RedirectGateway
                | Self::RedirectIcmp
                | Self::ExpressFlags
                | Self::ExpressOptions
                | Self::ExpressHeader
                | Self::ExpressUnfinished
                | Self::ExpressTtl
                | Self::ExpressMtu
                | Self::ExpressIngress
                | Self::ExpressHop
                | Self::ExpressChanging
        )
    }

    pub(super) const fn slot(self) -> u32 {
        self as u32
    }
}

/// A reading of the counters: packets since the program was loaded, all CPUs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters([u64; Outcome::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; Outcome::ALL.len()])
    }
}

impl Counters {
    /// Packets that ended so.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0.get(outcome as usize).copied().unwrap_or(0)
    }

    /// All of them, in the program's order.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        Outcome::ALL.into_iter().map(|outcome| (outcome, self.of(outcome)))
    }

    pub(super) fn set(&mut self, outcome: Outcome, packets: u64) {
        if let Some(place) = self.0.get_mut(outcome as usize) {
            *place = packets;
        }
    }
}
