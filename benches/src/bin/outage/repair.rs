//! How long what somebody takes from a running weir stays away: rules, routes, the table, switches, a device, of both families.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use weir_control::lab::Namespace;

use super::bed::{Bed, Weir};
use super::{Failure, Handshake, Options};

/// What is removed must be back within this.
const BAR: Duration = Duration::from_secs(1);
/// After so many repairs of one thing in a row weir takes it for a quarrel, and waits: they are forgotten after this.
const CALM: Duration = Duration::from_millis(5500);
/// Removals of one thing without a calm.
const AT_ONCE: usize = 3;

/// What somebody does, and a shell's condition for that it is mended.
const REMOVALS: [(&str, &str); 8] = [
    ("ip rule del priority 1077", "ip rule | grep -q ^1077:"),
    ("ip -6 rule del priority 1077", "ip -6 rule | grep -q ^1077:"),
    ("ip route flush table 177", "ip route show table 177 | grep -q ^local"),
    ("ip -6 route flush table 177", "ip -6 route show table 177 | grep -q ^local"),
    ("nft flush ruleset", "nft list table inet weir 2>/dev/null | grep -q tproxy"),
    ("sysctl -qw net.ipv4.ip_forward=0", "grep -q 1 /proc/sys/net/ipv4/ip_forward"),
    ("sysctl -qw net.ipv6.conf.all.forwarding=0", "grep -q 1 /proc/sys/net/ipv6/conf/all/forwarding"),
    ("ip link del weir-punt", "ip link show weir-punt 2>/dev/null | grep -q LOWER_UP"),
];

fn shell(gateway: &Namespace, line: &str) -> Result<bool, Failure> {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(gateway.run(|| command.status())?.success())
}

/// Whether every median is below the bar.
pub fn measure(options: &Options) -> Result<bool, Failure> {
    let bed = Bed::new(options)?;
    let _weir = Weir::start(&bed, options, Handshake::Through)?;
    println!("what is removed is back after (ms; asked for by the kernel's own tools, which take a few)");
    println!("{:<44} {:>5} {:>8} {:>8} {:>8}", "removed by", "runs", "median", "longest", "bar");
    let mut all = true;
    for (removal, whole) in REMOVALS {
        let mut times = Vec::new();
        for run in 0..options.runs {
            if run % AT_ONCE == 0 && run > 0 {
                std::thread::sleep(CALM);
            }
            // Not always at the same point of weir's own rhythm.
            std::thread::sleep(Duration::from_millis(600 + 97 * run as u64 % 500));
            times.push(one(&bed.lab.gateway, removal, whole)?);
        }
        std::thread::sleep(CALM);
        times.sort_unstable();
        let (Some(median), Some(longest)) = (times.get(times.len() / 2), times.last()) else { continue };
        all &= *median < BAR;
        let ms = |time: &Duration| time.as_secs_f64() * 1e3;
        println!(
            "{removal:<44} {:>5} {:>8.0} {:>8.0} {:>8}",
            times.len(),
            ms(median),
            ms(longest),
            BAR.as_millis()
        );
    }
    Ok(all)
}

fn one(gateway: &Namespace, removal: &str, whole: &str) -> Result<Duration, Failure> {
    if !shell(gateway, whole)? || !shell(gateway, removal)? {
        return Err(format!("{removal}: it was not there").into());
    }
    let start = Instant::now();
    while !shell(gateway, whole)? {
        if start.elapsed() > 20 * BAR {
            return Err(format!("{removal}: it is not back").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(start.elapsed())
}
