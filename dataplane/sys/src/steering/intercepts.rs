//! The intercepts as the program matches them: bits of one word, in two generations.
//!
//! The program reads the generation that `config` names. A new table is written to the other one, completely, and then
//! one store of the generation's number makes it hold: no packet meets a mixture of two tables.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::layout::{Bits, Config, MAX_LINKS, Prefix4, Prefix6};
use super::map::Map;

/// How long a run of the program that began before the switch may still read the old generation. A run takes
/// microseconds.
const GRACE: Duration = Duration::from_millis(2);

/// What is intercepted. Bit n of every word stands for intercept n; where several match, the lowest decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterceptTable {
    /// Server addresses, and whose they are. What a shorter prefix says holds for the longer ones in it as well.
    pub prefixes: Vec<(IpNet, u64)>,
    /// Server TCP ports, first to last.
    pub tcp_ports: Vec<(u16, u16, u64)>,
    /// Per ingress port, or VLAN of one (its number): the intercepts whose clients are there.
    pub from: Vec<(u32, u64)>,
    /// Intercepts with handshake = relay: their flows are the kernel's.
    pub relay_mask: u64,
    /// Intercepts whose SYNs may be answered with cookies without their worker: at any time, or under pressure.
    pub cookies_always: u64,
    pub cookies_auto: u64,
    /// Intercepts whose connections are translated, some or all: the kernel could not go on with them.
    pub translated: u64,
    /// Prefixes that are the box's own: nothing in them is intercepted.
    pub exempt: Vec<IpNet>,
}

impl InterceptTable {
    /// Adds intercept `bit` (0 to 63).
    pub fn add(
        &mut self,
        bit: u32,
        to: impl IntoIterator<Item = IpNet>,
        tcp: impl IntoIterator<Item = (u16, u16)>,
        from: impl IntoIterator<Item = u32>,
        is_relay: bool,
    ) {
        let mask = 1u64.checked_shl(bit).unwrap_or(0);
        self.prefixes.extend(to.into_iter().map(|net| (net, mask)));
        self.tcp_ports.extend(tcp.into_iter().map(|(first, last)| (first, last, mask)));
        self.from.extend(from.into_iter().map(|port| (port, mask)));
        if is_relay {
            self.relay_mask |= mask;
        }
    }

    /// Each prefix once, with the bits of every prefix that covers it: what the longest match must give.
    fn closed_prefixes(&self) -> Vec<(IpNet, u64)> {
        let mut nets: Vec<(IpNet, u64)> =
            self.prefixes.iter().map(|(net, bits)| (net.trunc(), *bits)).collect();
        // IpNet orders by family, address, length: a prefix comes right before those that it covers.
        nets.sort_unstable();
        let mut closed: Vec<(IpNet, u64)> = Vec::with_capacity(nets.len());
        let mut covering: Vec<(IpNet, u64)> = Vec::new();
        for (net, bits) in nets {
            while covering.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
                covering.pop();
            }
            let bits = bits | covering.last().map_or(0, |(_, bits)| *bits);
            covering.push((net, bits));
            match closed.last_mut() {
                Some(last) if last.0 == net => last.1 |= bits,
                _ => closed.push((net, bits)),
            }
        }
        let is_exempt = |net: &IpNet| self.exempt.iter().any(|own| own.contains(net));
        closed.retain(|(net, _)| !is_exempt(net));
        closed.extend(self.exempt.iter().map(|own| (own.trunc(), 0)));
        closed
    }
}

/// The maps of the intercepts, and what is in them.
#[derive(Debug)]
pub(super) struct Intercepts {
    pub config: Map<u32, u64>,
    pub prefixes4: [Map<Prefix4, u64>; 2],
    pub prefixes6: [Map<Prefix6, u64>; 2],
    pub tcp_ports: Map<u32, Bits>,
    pub from_ports: Map<u32, Bits>,
    /// What tcp_ports holds, so that only differences are written: it has 65,536 entries.
    written_ports: HashMap<u16, Bits>,
    generation: usize,
    switched: Option<Instant>,
}

impl Intercepts {
    pub fn new(
        config: Map<u32, u64>,
        prefixes4: [Map<Prefix4, u64>; 2],
        prefixes6: [Map<Prefix6, u64>; 2],
        tcp_ports: Map<u32, Bits>,
        from_ports: Map<u32, Bits>,
    ) -> Self {
        Self {
            config,
            prefixes4,
            prefixes6,
            tcp_ports,
            from_ports,
            written_ports: HashMap::new(),
            generation: 0,
            switched: None,
        }
    }

    /// Makes `table` hold. When it fails, the table before still does.
    pub fn set(&mut self, table: &InterceptTable) -> Result<(), (&'static str, io::Error)> {
        if let Some(rest) = self.switched.and_then(|at| GRACE.checked_sub(at.elapsed())) {
            std::thread::sleep(rest);
        }
        let next = 1 - self.generation;
        self.write_prefixes(next, table).map_err(|error| ("prefixes", error))?;
        self.write_tcp_ports(next, table).map_err(|error| ("tcp_ports", error))?;
        self.write_from_ports(next, table).map_err(|error| ("from_ports", error))?;
        let in_config = |error| ("config", error);
        for (slots, mask) in [
            ([Config::RelayMask, Config::RelayMask1], table.relay_mask),
            ([Config::CookiesAlways, Config::CookiesAlways1], table.cookies_always),
            ([Config::CookiesAuto, Config::CookiesAuto1], table.cookies_auto),
            ([Config::Translated, Config::Translated1], table.translated),
        ] {
            self.config.set(&(slots[next] as u32), &mask).map_err(in_config)?;
        }
        self.config.set(&(Config::Generation as u32), &(next as u64)).map_err(in_config)?;
        self.generation = next;
        self.switched = Some(Instant::now());
        Ok(())
    }

    fn write_prefixes(&self, generation: usize, table: &InterceptTable) -> io::Result<()> {
        let (four, six) = (&self.prefixes4[generation], &self.prefixes6[generation]);
        four.clear()?;
        six.clear()?;
        for (net, bits) in table.closed_prefixes() {
            let length = u32::from(net.prefix_len());
            match net {
                IpNet::V4(net) => four.set(&Prefix4 { length, bytes: net.network().octets() }, &bits)?,
                IpNet::V6(net) => six.set(&Prefix6 { length, bytes: net.network().octets() }, &bits)?,
            }
        }
        Ok(())
    }

    fn write_tcp_ports(&mut self, generation: usize, table: &InterceptTable) -> io::Result<()> {
        let mut wanted: HashMap<u16, u64> = HashMap::new();
        for (first, last, bits) in &table.tcp_ports {
            for port in *first..=*last {
                *wanted.entry(port).or_default() |= bits;
            }
        }
        let before: Vec<u16> = self.written_ports.keys().copied().collect();
        for port in before.into_iter().chain(wanted.keys().copied()) {
            let is = self.written_ports.get(&port).copied().unwrap_or_default();
            let mut new = is;
            new.of[generation] = wanted.get(&port).copied().unwrap_or(0);
            if new == is {
                continue;
            }
            self.tcp_ports.set(&u32::from(port), &new)?;
            if new == Bits::default() {
                self.written_ports.remove(&port);
            } else {
                self.written_ports.insert(port, new);
            }
        }
        Ok(())
    }

    fn write_from_ports(&self, generation: usize, table: &InterceptTable) -> io::Result<()> {
        for port in 0..MAX_LINKS {
            let wanted =
                table.from.iter().filter(|(from, _)| *from == port).fold(0, |all, (_, bits)| all | bits);
            let mut bits = self.from_ports.get(&port)?.unwrap_or_default();
            if bits.of[generation] != wanted {
                bits.of[generation] = wanted;
                self.from_ports.set(&port, &bits)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::InterceptTable;

    #[test]
    fn prefixes_in_prefixes_take_the_bits_of_all_that_cover_them() {
        let rows = [
            ("0.0.0.0/0", 1, 1),
            ("10.0.0.0/8", 2, 3),
            ("10.1.0.0/16", 4, 7),
            ("10.2.0.0/16", 8, 11),
            ("11.0.0.0/8", 16, 17),
            ("::/0", 32, 32),
            ("fd00::/8", 64, 96),
        ];
        let prefixes = rows.iter().rev().map(|(net, bits, _)| (net.parse().unwrap(), *bits)).collect();
        let table = InterceptTable { prefixes, ..InterceptTable::default() };
        let closed = table.closed_prefixes();
        for (net, _, bits) in rows {
            assert!(closed.contains(&(net.parse().unwrap(), bits)), "{net}: {closed:?}");
        }
        assert_eq!(closed.len(), rows.len());
    }

    #[test]
    fn prefix_named_twice_takes_both_bits() {
        let prefixes = vec![
            ("10.1.2.3/8".parse().unwrap(), 1),
            ("10.0.0.0/8".parse().unwrap(), 2),
            ("10.0.0.0/9".parse().unwrap(), 4),
        ];
        let table = InterceptTable { prefixes, ..InterceptTable::default() };
        assert_eq!(
            table.closed_prefixes(),
            [("10.0.0.0/8".parse().unwrap(), 3), ("10.0.0.0/9".parse().unwrap(), 7)]
        );
    }
}
