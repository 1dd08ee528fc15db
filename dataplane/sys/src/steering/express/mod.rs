//! The express lane: flows that the program rewrites and sends on by itself, while the process lives and when it is gone.
//!
//! # What is where
//!
//! * `express_flows`: one entry for each direction of a flow, by source and destination as the packet has them when it comes in.
//!   weir-dataplane puts flows in and takes them out ([`Express::insert`], [`Express::take`]); the program only counts, notes when
//!   a direction was last seen, and that it has sent on a FIN or an RST when there was no worker to judge it.
//! * `express_notes`: beside each flow what a process that takes it over has to know of it ([`Express::note`]).
//! * `express_links`: the devices that packets of the lane may come in by and go out by. weir-control writes them
//!   ([`Express::set_link`]). Their numbers are the lane's own: a device keeps its number as long as the maps are pinned,
//!   whatever the order of ports in a configuration.
//! * `express_hops`: next hops by number. A neighbour's change is one [`Express::set_hop`]; flows only name the number.
//!   Which number means what is the caller's to keep (or to read back: [`Express::hop`]).
//!
//! # What the program does
//!
//! A packet whose source and destination have an entry is of the lane, before own addresses, the heartbeat and everything else are
//! looked at; so the lane holds on a dead process and on a box that fails closed. No entry may be for packets to one of the
//! box's own addresses, but for those of connections that the gateway itself makes to a pool: who puts flows in sees to that, and
//! takes them out ([`Express::sweep`] finds them) when an address becomes the box's. It must be a plain segment: ACK, no SYN, FIN, RST or URG, whole, no IP options or extension headers,
//! TTL above 1, within the MTU, come in by its link, its hop up. It is rewritten exactly as weir-core's
//! `Translation` would, and leaves by `express_ports`; the counter is [`Outcome::Express`](super::Outcome::Express).
//!
//! Everything else of such a flow goes to the worker (`Outcome::Express...`, one for each cause). When there is no sign of life, FIN, RST and URG
//! and segments without ACK are sent on as well, and noted in [`Seen`]; what cannot be rewritten passes to the kernel, or is
//! dropped where the kernel could not go on (`ExpressDrop`). A SYN never takes the lane; once it has seen both FINs or an RST without a
//! worker, it ends the lane of its flow.
//!
//! A flow that stands by ([`ExpressFlow::stands_by`]) is its worker's: every packet of it but SYNs goes there (`Outcome::Redirect`) as long as
//! there is a sign of life and a socket, and the rest of steering is spared it. When there is none, it is carried as any other of the lane.
//! A flow that changes over from a worker ([`ExpressFlow::from`]) is the worker's until that and all others have been seen with nothing in
//! hand more than 0.13 ms after the last packet it was given (`Outcome::ExpressChanging`), so that as good as nothing is overtaken. A
//! direction of which that is not seen in 2,048 packets, or in 64 when the worker has not been seen so for 20 ms, changes over all the
//! same (`Outcome::ExpressOvertaking`: one for each direction).
//! So does one of which an end has finished ([`Express::set_ending`]): the other may go on for long.
//! A stray ([`Express::set_stray`]) is no worker's: all of it is carried as if there were no sign of life, and what cannot be rewritten is
//! for the kernel (`KernelFlow`), or dropped where that could not go on, or the box fails closed.
//!
//! # Order
//!
//! Links and hops first, then flows. [`Express::enable`] switches the lane as a whole; [`Steering::disable`](super::Steering::disable) switches
//! it off with the rest. When `Sizes::adopt` finds the maps that a process before has pinned ([`Steering::pin`](super::Steering::pin)), they are
//! used as they are, at their size, and the lane is on from the load: no packet of it is missed when the link is taken over.

mod flow;
pub(super) mod layout;
mod note;
mod sweep;

use std::io;
use std::net::SocketAddr;

use aya::Ebpf;
use zerocopy::IntoBytes as _;

pub use flow::{Ends, ExpressFlow, Splice};
pub use note::ExpressNote;
pub use sweep::{Change, ExpressEntry, Sweep};

use super::error::SteeringError;
use super::layout::Config;
use super::map::Map;
use super::trial::Routine;
use super::{map_data, map_of, routine, set};
use crate::clock;
use layout::{Entry, FIN, HopValue, Key, LINKS, LinkValue, RST, SAID, STANDBY, STRAY, UNFINISHED_SUMS, VOID};

/// The program that marks an entry in place.
const MARK: &str = "weir_mark";

/// The unit of `last_seen` in the map, as a power of 2, in ns.
pub(super) const SEEN_SHIFT: u32 = 30;

/// What an entry costs the kernel: its header (48 octets) and an allocator's link (8) with key and value, in a class of 192 octets.
const ENTRY_OCTETS: u64 = 192;
/// What a note costs, likewise.
const NOTE_OCTETS: u64 = 256;
/// What a bucket costs; there are as many as entries, rounded up to a power of 2.
const BUCKET_OCTETS: u64 = 16;

/// What the lane's map takes of the kernel's memory, in octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpressMemory {
    /// At once.
    pub index: u64,
    /// When it is full, besides: used as far as there are flows.
    pub flows: u64,
}

/// A way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpressHop {
    /// The device: a number from [`Express::set_link`].
    pub link: u8,
    /// The next station's Ethernet address and the device's own.
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// The largest IP packet, in octets.
    pub mtu: u16,
    /// False: packets go to the worker.
    pub is_up: bool,
}

/// A device of the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpressLink {
    pub number: u8,
    pub ifindex: u32,
    /// The device's Ethernet address: frames for other stations are none of the lane.
    pub mac: [u8; 6],
    /// Its frames may come with checksums that a device was to finish (veth, virtio): the program looks, and finishes them.
    pub partial_checksums: bool,
}

/// What the program has noted of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub packets: u64,
    /// Of payload.
    pub bytes: u64,
    /// When a packet last passed, ns of CLOCK_MONOTONIC, to 4 s.
    pub last_seen: u64,
    /// A FIN, an RST was sent on without a worker.
    pub fin: bool,
    pub rst: bool,
    /// A worker has had a FIN of which it could not tell whose it was ([`Express::set_ending`]).
    pub says: bool,
    /// The program has ended the flow's lane: a SYN came after that.
    pub is_void: bool,
    /// No worker knows the flow.
    pub is_stray: bool,
}

impl From<&Entry> for Seen {
    fn from(entry: &Entry) -> Self {
        Self {
            packets: entry.packets,
            bytes: entry.bytes,
            last_seen: u64::from(entry.head.last_seen) << SEEN_SHIFT,
            fin: entry.head.ended & FIN != 0,
            rst: entry.head.ended & RST != 0,
            says: entry.head.ended & SAID != 0,
            is_void: entry.head.flags & VOID != 0,
            is_stray: entry.is_stray(),
        }
    }
}

/// Room for inserting many flows in one system call: made once by each thread that does, allocates nothing later.
#[derive(Debug)]
pub struct ExpressBatch {
    keys: Vec<Key>,
    entries: Vec<Entry>,
    notes: Vec<ExpressNote>,
}

impl ExpressBatch {
    /// Room for this many flows.
    pub fn new(flows: usize) -> Self {
        Self {
            keys: Vec::with_capacity(flows * 2),
            entries: Vec::with_capacity(flows * 2),
            notes: Vec::with_capacity(flows),
        }
    }
}

/// A handle on the lane: cheap to clone, no lock, for any thread.
#[derive(Clone, Debug)]
pub struct Express {
    flows: Map<Key, Entry>,
    notes: Map<Key, ExpressNote>,
    hops: Map<u32, HopValue>,
    links: Map<u32, LinkValue>,
    /// Interface index, and no program: `struct bpf_devmap_val`.
    ports: Map<u32, [u32; 2]>,
    idle: Map<u32, u64>,
    mark: Routine,
    config: Map<u32, u64>,
    capacity: usize,
    is_adopted: bool,
}

impl Express {
    pub(super) fn new(ebpf: &mut Ebpf, is_adopted: bool) -> Result<Self, SteeringError> {
        let mark = routine(ebpf, MARK)?;
        let entries = Map::<Key, Entry>::room("express_flows", map_data(ebpf, "express_flows")?)?;
        let express = Self {
            flows: map_of(ebpf, "express_flows")?,
            notes: map_of(ebpf, "express_notes")?,
            hops: map_of(ebpf, "express_hops")?,
            links: map_of(ebpf, "express_links")?,
            ports: map_of(ebpf, "express_ports")?,
            idle: map_of(ebpf, "express_idle")?,
            mark,
            config: map_of(ebpf, "config")?,
            capacity: entries as usize / 2,
            is_adopted,
        };
        express.enable(is_adopted)?;
        Ok(express)
    }

    /// What room for so many flows takes of the kernel's memory.
    pub fn memory(flows: u32) -> ExpressMemory {
        let flows = u64::from(flows);
        let buckets = (flows * 2).next_power_of_two() + flows.next_power_of_two();
        ExpressMemory { index: buckets * BUCKET_OCTETS, flows: flows * (2 * ENTRY_OCTETS + NOTE_OCTETS) }
    }

    /// Flows that there is room for. 0: the program was loaded without a lane.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether the maps are those that a process before has pinned.
    pub const fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// Opens the lane, or closes it: then its flows are treated as all others are.
    ///
    /// # Errors
    /// [`SteeringError::Map`]; none is expected.
    pub fn enable(&self, on: bool) -> Result<(), SteeringError> {
        set(&self.config, "config", &(Config::Express as u32), &u64::from(on))
    }

    /// Puts flows into the lane, both directions of each, as seen now; a flow already there starts over. Returns how many, from the
    /// first on: the others found no room (or no memory), and stay where they were. One system call. Takes no more than the
    /// batch has room for.
    ///
    /// # Errors
    /// What the kernel says but for that; then none of the flows that were not counted is in the lane.
    pub fn insert(&self, batch: &mut ExpressBatch, flows: &[ExpressFlow]) -> io::Result<usize> {
        batch.keys.clear();
        batch.entries.clear();
        let now = (clock::monotonic_ns() >> SEEN_SHIFT) as u32;
        for flow in flows.iter().take(batch.keys.capacity() / 2) {
            let (keys, entries) = flow.entries(now);
            batch.keys.extend(keys);
            batch.entries.extend(entries);
        }
        let (entries, result) = self.flows.set_all(&batch.keys, &batch.entries);
        if entries % 2 == 1 {
            // Half a flow is none. That it came for a moment does no harm: a direction needs only itself.
            self.flows.remove(&batch.keys[entries - 1])?;
        }
        match result {
            Err(error) if !is_shortage(&error) => Err(error),
            _ => Ok(entries / 2),
        }
    }

    /// Puts notes beside flows, each by what the client sends; a later one takes the place of an earlier one. A flow whose
    /// note finds no room has none. One system call. Takes no more than the batch has room for.
    ///
    /// # Errors
    /// What the kernel says: those without room.
    pub fn note(
        &self,
        batch: &mut ExpressBatch,
        notes: impl IntoIterator<Item = (Ends, ExpressNote)>,
    ) -> io::Result<()> {
        batch.keys.clear();
        batch.notes.clear();
        for (client, note) in notes.into_iter().take(batch.notes.capacity()) {
            batch.keys.push(Key::new(client.0, client.1));
            batch.notes.push(note);
        }
        let (noted, result) = self.notes.set_all(&batch.keys, &batch.notes);
        if result.is_err() {
            // Nobody is to find what was noted of an earlier flow with these addresses.
            self.notes.remove_all(&batch.keys[noted..])?;
        }
        result
    }

    /// What was noted of a flow, by what its client sends.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn noted(&self, client: Ends) -> io::Result<Option<ExpressNote>> {
        self.notes.get(&Key::new(client.0, client.1))
    }

    /// Takes a flow out of the lane, with its note; what was seen of its directions, to the server and to the client, as far as they
    /// were there. Packets that the program has begun with still go out. Three system calls.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(&self, client: Ends, server: Ends) -> io::Result<[Option<Seen>; 2]> {
        let [to_server, to_client] = ExpressFlow::keys(client, server);
        let up = self.flows.take(&to_server)?;
        let down = self.flows.take(&to_client)?;
        self.notes.remove(&to_server)?;
        Ok([up, down].map(|entry| entry.as_ref().map(Seen::from)))
    }

    /// Says that a worker had nothing in hand at `at` (ns, CLOCK_MONOTONIC) of what had come in until then: flows that change over from it
    /// ([`ExpressFlow::from`]) are the program's from their next pause on. One system call.
    ///
    /// # Errors
    /// What the kernel says; none is expected.
    pub fn tell_idle(&self, worker: u8, at: u64) -> io::Result<()> {
        self.idle.set(&worker.into(), &at)
    }

    /// Has the program carry a flow that no worker knows, whatever it is a packet of, as seen now; or one that a worker knows again, at
    /// once. Nothing of what it notes meanwhile is lost. Two system calls.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_stray(&self, client: Ends, server: Ends, is_stray: bool) -> io::Result<()> {
        let mark = if is_stray { STRAY } else { 0 };
        self.mark_both(client, server, mark, [0, 0])
    }

    /// Gives a flow back to its worker, for which the program only stands by from now on, and notes FINs that it has had, of the client and
    /// of the server; `says`: also those that nobody has acknowledged ([`Seen::says`]). Two system calls.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_ending(
        &self,
        client: Ends,
        server: Ends,
        fins: (bool, bool),
        says: (bool, bool),
    ) -> io::Result<()> {
        let bit = |is: bool, bit: u8| if is { bit } else { 0 };
        let ended = [(fins.0, says.0), (fins.1, says.1)].map(|(fin, said)| bit(fin, FIN) | bit(said, SAID));
        self.mark_both(client, server, STANDBY, ended)
    }

    fn mark_both(&self, client: Ends, server: Ends, mark: u8, ended: [u8; 2]) -> io::Result<()> {
        for (key, ended) in ExpressFlow::keys(client, server).iter().zip(ended) {
            let mut input = [0; size_of::<Key>() + 2];
            let (place, marks) = input.split_at_mut(size_of::<Key>());
            place.copy_from_slice(key.as_bytes());
            marks.copy_from_slice(&[mark, ended]);
            // An entry that is not there is none to be marked.
            self.mark.run(&input)?;
        }
        Ok(())
    }

    /// What was noted of a flow, as [`Express::take`], without taking it out.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn seen(&self, client: Ends, server: Ends) -> io::Result<[Option<Seen>; 2]> {
        let [to_server, to_client] = ExpressFlow::keys(client, server);
        let entries = [self.flows.get(&to_server)?, self.flows.get(&to_client)?];
        Ok(entries.map(|entry| entry.as_ref().map(Seen::from)))
    }

    /// Removes many flows and their notes; those that are not there are no error. Two system calls, and one more for each
    /// direction and each note that was missing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(
        &self,
        batch: &mut ExpressBatch,
        flows: impl IntoIterator<Item = (Ends, Ends)>,
    ) -> io::Result<()> {
        let remove = |keys: &[Key]| {
            self.flows.remove_all(keys)?;
            self.notes.remove_all(keys)
        };
        batch.keys.clear();
        for (client, server) in flows {
            batch.keys.extend(ExpressFlow::keys(client, server));
            if batch.keys.len() + 2 > batch.keys.capacity() {
                remove(&batch.keys)?;
                batch.keys.clear();
            }
        }
        remove(&batch.keys)
    }

    /// Removes one direction, and the note by it: for an entry of a [`Sweep`] whose flow nobody knows. Whether it was there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove_direction(&self, from: SocketAddr, to: SocketAddr) -> io::Result<bool> {
        let key = Key::new(from, to);
        self.notes.remove(&key)?;
        self.flows.remove(&key)
    }

    /// Reads the next entries of the map, in no order; whether there are more. For idle timers, counters and adoption. An entry
    /// that stays is read once; one that comes or goes meanwhile, perhaps. One system call.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn sweep(&self, sweep: &mut Sweep) -> io::Result<bool> {
        sweep.read(&self.flows)
    }

    /// Makes a device one of the lane's, for both ways, and returns its number: the one that it has already, or a free one. The
    /// device must be in the calling thread's network namespace. That frames may be sent out by it (`ndo_xdp_xmit`; of veth, that its
    /// peer takes them) is the caller's to know.
    ///
    /// # Errors
    /// [`SteeringError::Map`]; [`SteeringError::PortNumber`] when there are 32 already.
    pub fn set_link(&self, ifindex: u32, mac: [u8; 6], partial_checksums: bool) -> Result<u8, SteeringError> {
        let links = self.links()?;
        let known = links.iter().find(|link| link.ifindex == ifindex).map(|link| link.number);
        let free = (0..LINKS as u8).find(|number| links.iter().all(|link| link.number != *number));
        let number = known.or(free).ok_or_else(|| SteeringError::PortNumber {
            device: format!("with index {ifindex}"),
            port: LINKS,
        })?;
        let flags = if partial_checksums { UNFINISHED_SUMS } else { 0 };
        set(&self.ports, "express_ports", &number.into(), &[ifindex, 0])?;
        let value = LinkValue { ifindex, mac, flags, reserved: 0 };
        set(&self.links, "express_links", &number.into(), &value)?;
        Ok(number)
    }

    /// Takes a device out: packets of the lane that come in by it, or would go out by it, go to their workers.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn unset_link(&self, number: u8) -> Result<(), SteeringError> {
        set(&self.links, "express_links", &number.into(), &LinkValue::default())?;
        self.ports
            .remove(&number.into())
            .map(drop)
            .map_err(SteeringError::of_map("express_ports", "removing from"))
    }

    /// The devices of the lane.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn links(&self) -> Result<Vec<ExpressLink>, SteeringError> {
        let mut links = Vec::new();
        for number in 0..LINKS {
            let read = self.links.get(&number).map_err(SteeringError::of_map("express_links", "reading"))?;
            if let Some(value) = read.filter(|value| value.ifindex != 0) {
                links.push(ExpressLink {
                    number: number as u8,
                    ifindex: value.ifindex,
                    mac: value.mac,
                    partial_checksums: value.flags & UNFINISHED_SUMS != 0,
                });
            }
        }
        Ok(links)
    }

    /// Says what a next hop is, from now on, to all flows that name it. While it changes, packets go to the worker.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn set_hop(&self, number: u16, hop: &ExpressHop) -> Result<(), SteeringError> {
        let number = u32::from(number);
        let value = HopValue {
            dst_mac: hop.dst_mac,
            src_mac: hop.src_mac,
            mtu: hop.mtu,
            link: hop.link,
            up: u8::from(hop.is_up),
        };
        let before = self.hops.get(&number).map_err(SteeringError::of_map("express_hops", "reading"))?;
        if before == Some(value) {
            return Ok(());
        }
        // The program reads a hop in two words: none of a hop that is up changes beside it.
        let down = |value| HopValue { up: 0, ..value };
        for step in before.map(down).into_iter().chain([down(value), value]) {
            set(&self.hops, "express_hops", &number, &step)?;
        }
        Ok(())
    }

    /// A next hop as it is in the map; one that nobody has set is not up, with an MTU of 0.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn hop(&self, number: u16) -> Result<ExpressHop, SteeringError> {
        let read = self.hops.get(&number.into());
        let value = read.map_err(SteeringError::of_map("express_hops", "reading"))?.unwrap_or_default();
        Ok(ExpressHop {
            link: value.link,
            dst_mac: value.dst_mac,
            src_mac: value.src_mac,
            mtu: value.mtu,
            is_up: value.up != 0,
        })
    }
}

/// No room in the map, or no memory for an entry.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM | libc::EAGAIN))
}
