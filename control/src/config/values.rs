//! Values that are written as strings. Each function gives the value, or a sentence with what was expected.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv6Net};
use weir_core::ids::Nanos;
use weir_core::pace::Rate;
use weir_core::vlan::IDS;

use super::model::Mark;

/// Octets: `16KiB`, `1MiB`, `512B`.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text).ok_or_else(|| format!("`{text}` is no size; write one like `16KiB`"))?;
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "" => return Err(format!("`{text}` has no unit; allowed: B, KiB, MiB, GiB")),
        _ => return Err(format!("`{unit}` in `{text}` is no unit of size; allowed: B, KiB, MiB, GiB")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// Time: `500ms`, `3s`, `5m`, `1h`.
pub fn time(text: &str) -> Result<Nanos, String> {
    let (number, unit) = split(text).ok_or_else(|| format!("`{text}` is no time; write one like `3s`"))?;
    let factor = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        "" => return Err(format!("`{text}` has no unit; allowed: us, ms, s, m, h")),
        _ => return Err(format!("`{unit}` in `{text}` is no unit of time; allowed: us, ms, s, m, h")),
    };
    number.checked_mul(factor).map(Nanos).ok_or_else(|| format!("`{text}` is too long"))
}

/// Octets per second, written as bits: `10Mbit/s`.
pub fn rate(text: &str) -> Result<Rate, String> {
    let (number, unit) =
        split(text).ok_or_else(|| format!("`{text}` is no bandwidth; write one like `10Mbit/s`"))?;
    let factor = match unit {
        "kbit/s" => 1_000,
        "Mbit/s" => 1_000_000,
        "Gbit/s" => 1_000_000_000,
        "" => return Err(format!("`{text}` has no unit; allowed: kbit/s, Mbit/s, Gbit/s")),
        _ => {
            return Err(format!(
                "`{unit}` in `{text}` is no unit of bandwidth; allowed: kbit/s, Mbit/s, Gbit/s"
            ));
        }
    };
    match number.checked_mul(factor) {
        Some(bits) if RATES.contains(&bits) => Ok(Rate(bits / 8)),
        _ => Err(format!("`{text}` is not allowed; allowed: 64kbit/s to 1000Gbit/s")),
    }
}

/// In bits per second. Less is no bandwidth for TCP: a segment would take longer than a round trip may.
const RATES: RangeInclusive<u64> = 64_000..=1_000_000_000_000;

/// The digits and what follows them.
fn split(text: &str) -> Option<(u64, &str)> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    Some((text[..text.len() - unit.len()].parse().ok()?, unit.trim_start_matches(' ')))
}

/// A mark and its mask: `0x77/0xff`. The mask says which bits are weir's, so that others keep theirs.
pub fn mark(text: &str) -> Result<Mark, String> {
    let (value, mask) = text.split_once('/').ok_or_else(|| {
        format!(
            "`{text}` has no mask; write mark and mask like `0x77/0xff`, so that other marks stay untouched"
        )
    })?;
    let (value, mask) = (number32(value)?, number32(mask)?);
    if value == 0 {
        return Err(format!("`{text}` is mark 0, which every unmarked packet has"));
    }
    if value & !mask != 0 {
        return Err(format!(
            "mark {value:#x} has bits outside its mask {mask:#x}, so no packet could carry it"
        ));
    }
    Ok(Mark { value, mask })
}

fn number32(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("`{text}` is no number of 32 bits; write one like `0x77` or `119`"))
}

/// A range of TCP ports, both ends in it: `8000-8099`; or one: `80`.
pub fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |part: &str| match part.trim().parse::<u16>() {
        Ok(0) => Err("port 0 is no port; allowed: 1 to 65535".to_owned()),
        Ok(port) => Ok(port),
        Err(_) => Err(format!("`{text}` is neither a port (1 to 65535) nor a range like `8000-8099`")),
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("the range `{text}` is empty; the lower port comes first"));
    }
    Ok(first..=last)
}

/// What an element of `vlan` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vlans {
    Ids(RangeInclusive<u16>),
    /// The outer one first.
    Stacked(u16, u16),
    Untagged,
    Any,
}

/// VLANs: `10`, a range with both its ends `100-199`, one in another `100.10`; `untagged`; `any`.
pub fn vlan(text: &str) -> Result<Vlans, String> {
    let id = |part: &str| match part.trim().parse::<u16>() {
        Ok(id) if IDS.contains(&id) => Ok(id),
        Ok(id) => Err(format!("{id} is no VLAN; allowed: 1 to 4094")),
        Err(_) => Err(format!(
            "`{text}` is none of a VLAN (1 to 4094), a range like `100-199`, one in another like `100.10`, `untagged` and `any`"
        )),
    };
    match text {
        "untagged" => return Ok(Vlans::Untagged),
        "any" => return Ok(Vlans::Any),
        _ => {}
    }
    if let Some((outer, inner)) = text.split_once('.') {
        return Ok(Vlans::Stacked(id(outer)?, id(inner)?));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (id(first)?, id(last)?);
    if first > last {
        return Err(format!("the range `{text}` is empty; the lower VLAN comes first"));
    }
    Ok(Vlans::Ids(first..=last))
}

/// A prefix: `10.1.9.0/24`, `fd77::/16`; or one address.
pub fn prefix(text: &str) -> Result<IpNet, String> {
    let parsed = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| {
            format!("`{text}` is no prefix; write one like `10.1.9.0/24` or `2001:db8::/32`, or an address")
        })?,
    };
    if parsed != parsed.trunc() {
        return Err(format!(
            "`{text}` has bits behind its length; write `{}`, or one address",
            parsed.trunc()
        ));
    }
    let mapped = Ipv6Net::new([0, 0, 0, 0, 0, 0xffff, 0, 0].into(), 96).is_ok_and(|net| match parsed {
        IpNet::V4(_) => false,
        IpNet::V6(p) => net.contains(&p),
    });
    if mapped {
        return Err(format!("`{text}` is an IPv4 address in IPv6 form; write the IPv4 prefix"));
    }
    Ok(parsed)
}

/// An address and a port: `127.0.0.1:9470`, `[::1]:9470`.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let parsed: SocketAddr = text.parse().map_err(|_| {
        format!("`{text}` is no address with a port; write one like `127.0.0.1:9470` or `[::1]:9470`")
    })?;
    if parsed.port() == 0 {
        return Err(format!("`{text}` has port 0; allowed: 1 to 65535"));
    }
    Ok(parsed)
}

/// The name of a port, an intercept or a pool; it appears in commands, metrics and nft comments.
pub fn name(text: &str) -> Result<String, String> {
    const MAX: usize = 32;
    if text.is_empty() || text.len() > MAX {
        return Err(format!("a name has 1 to {MAX} characters, `{text}` has {}", text.chars().count()));
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        Some(bad) => {
            Err(format!("`{bad}` in `{text}`; allowed in a name: letters, digits, `-`, `_` and `.`"))
        }
        None => Ok(text.to_owned()),
    }
}

/// The name of a network device (dev_valid_name in the kernel's net/core/dev.c).
pub fn device(text: &str) -> Result<String, String> {
    /// IFNAMSIZ without the terminating zero.
    const MAX: usize = 15;
    if text.is_empty() || text.len() > MAX {
        return Err(format!("a device name has 1 to {MAX} octets, `{text}` has {}", text.len()));
    }
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text == "." || text == ".." || text.contains(bad) {
        return Err(format!("`{text}` is no device name; see `ip link` for those of this host"));
    }
    Ok(text.to_owned())
}
