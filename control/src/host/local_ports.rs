//! The ports that the kernel gives to the box's own connections. Those that the gateway connects to servers from must not be
//! among them, or else answers to one would be taken for answers to the other.

use std::ops::RangeInclusive;

use super::HostError;
use super::sysctl::Key;

/// One sysctl for both families.
const RANGE: &str = "net/ipv4/ip_local_port_range";
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

/// What the kernel takes ports from when a socket does not say which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPorts {
    range: RangeInclusive<u16>,
    /// Left out of the range (ip_local_reserved_ports).
    reserved: Vec<RangeInclusive<u16>>,
}

impl LocalPorts {
    /// Those of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`HostError::File`]; [`HostError::Kernel`] when the kernel's text is not understood.
    pub fn read() -> Result<Self, HostError> {
        let text = |key| Ok::<_, HostError>(Key::new(key).read()?.unwrap_or_default());
        Self::parse(&text(RANGE)?, &text(RESERVED)?)
    }

    fn parse(range: &str, reserved: &str) -> Result<Self, HostError> {
        let unclear = |key: &str, text: &str| {
            HostError::Kernel(format!("{} is {text:?}, which is no range of ports", Key::new(key)))
        };
        let mut ends = range.split_whitespace().map(str::parse);
        let (Some(Ok(first)), Some(Ok(last)), None) = (ends.next(), ends.next(), ends.next()) else {
            return Err(unclear(RANGE, range));
        };
        let reserved = reserved.split(',').map(str::trim).filter(|part| !part.is_empty());
        let reserved = reserved.map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.parse(), last.parse()) {
                (Ok(first), Ok(last)) => Ok(first..=last),
                _ => Err(unclear(RESERVED, part)),
            }
        });
        Ok(Self { range: first..=last, reserved: reserved.collect::<Result<_, _>>()? })
    }

    /// Whether the kernel may give this port to a connection.
    fn gives(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port))
    }

    /// Refuses ports of a pool of which the kernel may give one to a connection of the box's own.
    ///
    /// # Errors
    /// [`HostError::Spec`].
    pub fn refuse_overlap(&self, pool: &str, ports: &RangeInclusive<u16>) -> Result<(), HostError> {
        let Some(port) = ports.clone().find(|port| self.gives(*port)) else { return Ok(()) };
        let (first, last) = (ports.start(), ports.end());
        Err(HostError::Spec(format!(
            "pool {pool}: the gateway would connect from its ports {first}-{last}, and the kernel gives {port} to connections of \
             the box's own ({} is {}-{}): give the pool other `ports`, or keep them from the kernel with `sysctl -w \
             net.ipv4.ip_local_reserved_ports={first}-{last}`",
            Key::new(RANGE),
            self.range.start(),
            self.range.end(),
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_the_kernel_gives_are_refused_unless_reserved() {
        for (range, reserved, ports, refused) in [
            ("32768\t60999", "", 10_000..=32_767, None),
            ("32768\t60999", "", 61_000..=65_535, None),
            ("32768\t60999", "", 10_000..=32_768, Some(32_768)),
            ("32768\t60999", "", 60_999..=61_010, Some(60_999)),
            ("1024\t65535", "", 20_000..=20_099, Some(20_000)),
            ("1024\t65535", "8080,20000-20099", 20_000..=20_099, None),
            ("1024\t65535", "20000-20049,20050,20051-20098", 20_000..=20_099, Some(20_099)),
        ] {
            let ports_of_kernel = LocalPorts::parse(range, reserved).unwrap();
            let error = ports_of_kernel.refuse_overlap("web", &ports).err().map(|error| error.to_string());
            match (&error, refused) {
                (None, None) => {}
                (Some(text), Some(port)) => {
                    assert!(
                        text.starts_with("pool web: ") && text.contains(&format!("gives {port} to")),
                        "{text}"
                    );
                }
                _ => panic!("{range} {reserved} {ports:?}: {error:?}"),
            }
        }
    }

    #[test]
    fn text_that_is_no_range_is_refused() {
        for (range, reserved) in
            [("", ""), ("1", ""), ("a b", ""), ("1 2 3", ""), ("1 99999", ""), ("1 2", "x"), ("1 2", "3-")]
        {
            assert!(LocalPorts::parse(range, reserved).is_err(), "{range:?} {reserved:?}");
        }
    }
}
