//! XDP and AF_XDP as a port really gives them.
//!
//! A running gateway says what it got. Else the steering program is put on the port for a moment (it lets everything pass)
//! and an AF_XDP socket bound to each queue that the configuration takes; the kernel says what they became. A port that
//! carries a program already, or is down, is left alone.

use std::time::{Duration, Instant};

use weir_sys::ethtool;
use weir_sys::steering::{AttachMode, Sizes, Steering, SteeringError};
use weir_sys::xsk::{self, Area, Queue, RingSizes, XskError};

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use super::limits::queues;
use super::rss;
use super::sent::{self, Open, Seen};
use crate::config::{Mode, Port};
use crate::host::sysctl::Key;
use crate::host::{self, Host, HostError, LinkInfo, Paths, port_device};
use crate::run::convert;

/// Entries of the rings of a trial, and frames for each queue.
const RING: u32 = 64;
/// How long the kernel may take to free the devices.
const DETACH: Duration = Duration::from_secs(2);

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    if !ground.fast {
        return;
    }
    if ground.running.is_some() {
        for port in &ground.config.ports {
            told(ground, port, found);
        }
        return;
    }
    // It may be about to start, and finds its ports taken.
    if let Some(pid) = ground.holder {
        for port in &ground.config.ports {
            found.skip(
                "xdp-mode",
                &port.device,
                format!("process {pid} is another weir, and may want the port"),
            );
            found.skip(
                "zero-copy",
                &port.device,
                format!("process {pid} is another weir, and may want the port"),
            );
        }
        return;
    }
    let seen = try_all(ground, found);
    rss::directions(ground, seen, found);
}

/// Tries every port that nothing hinders; and, on all of them, where the directions of connections arrive, or why that cannot be seen.
fn try_all(ground: &Ground<'_>, found: &mut Findings) -> Result<Seen, String> {
    let hindrance = |link: &LinkInfo| match link {
        link if port_device::unfit(link, &ground.links).is_some() => Some("the device can be no port"),
        LinkInfo { up: false, .. } => Some("the port is down"),
        LinkInfo { xdp: Some(_), .. } => Some("the port carries an XDP program: it is left alone"),
        _ => None,
    };
    for (port, why) in ground.ports().filter_map(|(port, link)| Some((port, hindrance(link)?))) {
        found.skip("xdp-mode", &port.device, why);
        found.skip("zero-copy", &port.device, why);
    }
    let mut steering = match Steering::load(&Sizes::default()) {
        Ok(steering) => steering,
        Err(error) => {
            match refused(&error) {
                Some(finding) => found.push(finding),
                None => {
                    ground.config.ports.iter().for_each(|port| found.skip("xdp-mode", &port.device, &error))
                }
            }
            return Err("the steering program cannot be loaded".to_owned());
        }
    };
    found.push(Finding::good("steering-program", "kernel", "takes the steering program"));
    let before: Vec<Settings> = ground
        .ports()
        .filter(|(_, link)| hindrance(link).is_none())
        .map(|(port, _)| Settings::of(&port.device))
        .collect();
    let (mut tried, mut open) = (Vec::new(), Vec::new());
    for (port, link) in ground.ports().filter(|(_, link)| hindrance(link).is_none()) {
        tried.push(port.device.as_str());
        open.extend(trial(&mut steering, port, link, found).map(|queues| Open { link, queues }));
    }
    let seen = match open.len() == ground.config.ports.len() {
        _ if rss::has_one_worker(ground) => Err("there is one worker".to_owned()),
        true => sent::play(ground, &mut steering, &mut open),
        false => Err("not every port could be tried".to_owned()),
    };
    open.into_iter().flat_map(|open| open.queues).for_each(|queue| std::mem::forget(queue.close()));
    drop(steering);
    wait_until_free(&ground.paths, &tried);
    before.iter().for_each(Settings::put_back);
    seen
}

/// What a device may lose when an XDP program comes: XDP in the kernel's stack and some drivers switch off that segments are
/// merged, and others make their queues anew, and with them the hash's table.
struct Settings {
    device: String,
    merging: Vec<(Key, Option<String>)>,
    table: Vec<u32>,
}

impl Settings {
    fn of(device: &str) -> Self {
        let merging = Key::of_merging(device).into_iter().map(|key| {
            let value = key.read().ok().flatten();
            (key, value)
        });
        let table = ethtool::rss_of(device).map(|rss| rss.indirection).unwrap_or_default();
        Self { device: device.to_owned(), merging: merging.collect(), table }
    }

    fn put_back(&self) {
        for (key, value) in &self.merging {
            let now = key.read().ok().flatten();
            if let Some(value) = value.as_ref().filter(|_| now != *value)
                && let Err(error) = key.write(value)
            {
                tracing::warn!(%error, "{} was not put back: {}", key, key.command(value));
            }
        }
        let now = ethtool::rss_of(&self.device).map(|rss| rss.indirection).unwrap_or_default();
        if !self.table.is_empty()
            && now != self.table
            && let Err(error) = ethtool::set_indirection(&self.device, &self.table)
        {
            tracing::warn!(%error, "the table of the hash of {} was not put back", self.device);
        }
    }
}

/// The kernel does not take the program; none: not from this user.
fn refused(error: &SteeringError) -> Option<Finding> {
    let is_users = matches!(error, SteeringError::NotPermitted { .. });
    let finding = Finding::bad("steering-program", "kernel", error.to_string(), "weir does not start");
    (!is_users).then(|| finding.by_hand(NoCommand::Kernel))
}

/// What the running gateway got.
fn told(ground: &Ground<'_>, port: &Port, found: &mut Findings) {
    let Some(status) = ground.status_of(&port.device) else {
        return found.skip(
            "xdp-mode",
            &port.device,
            "the running weir has no such port: it runs with another configuration",
        );
    };
    let generic = (status["xdp"] == "generic").then_some("the running weir says so");
    xdp_mode(port, generic, found);
    zero_copy(port, status["zero_copy"] == true, found);
}

/// The port's sockets, if it gives all of them.
fn trial(steering: &mut Steering, port: &Port, link: &LinkInfo, found: &mut Findings) -> Option<Vec<Queue>> {
    let device = &port.device;
    match attach(steering, port, link) {
        Ok(refused) => xdp_mode(port, refused.as_deref(), found),
        Err(error) => {
            found.push(
                Finding::bad(
                    "xdp-mode",
                    device,
                    error.to_string(),
                    "weir does not start with this `mode`: say \"auto\"",
                )
                .by_hand(NoCommand::Configuration)
                .on(device),
            );
            return None;
        }
    }
    match sockets(port, link) {
        Ok(queues) => {
            zero_copy(port, queues.iter().all(Queue::zero_copy), found);
            Some(queues)
        }
        Err(error) => {
            found.push(
                Finding::bad(
                    "zero-copy",
                    device,
                    error.to_string(),
                    "weir does not start: the fast road needs these sockets",
                )
                .by_hand(NoCommand::Hardware)
                .on(device),
            );
            None
        }
    }
}

/// Puts the program on the port as its `mode` asks; where it runs in the kernel's stack, why.
fn attach(steering: &mut Steering, port: &Port, link: &LinkInfo) -> Result<Option<String>, SteeringError> {
    let mut attach = |mode| steering.attach(&port.device, link.ifindex, mode);
    match convert::attach_mode(port.mode) {
        // As `weir run` does, which logs the reason.
        AttachMode::Auto => match attach(AttachMode::Native) {
            Err(refused @ SteeringError::NoXdp { .. }) => {
                attach(AttachMode::Generic).map(|_| Some(refused.to_string()))
            }
            other => other.map(|_| None),
        },
        AttachMode::Generic => attach(AttachMode::Generic).map(|_| Some(String::new())),
        AttachMode::Native => attach(AttachMode::Native).map(|_| None),
    }
}

/// Opens a socket on each queue that is configured.
fn sockets(port: &Port, link: &LinkInfo) -> Result<Vec<Queue>, XskError> {
    let wanted = queues(port);
    let (area, mut frames) =
        Area::new(wanted.len().max(1) * RING as usize, xsk::FrameSize::Page as usize, false)?;
    let mode = match port.mode {
        Mode::Auto => xsk::Mode::Auto,
        Mode::ZeroCopy => xsk::Mode::ZeroCopy,
        Mode::Copy | Mode::Generic => xsk::Mode::Copy,
    };
    let mut opened = Vec::new();
    for queue in wanted {
        let mut open = |mode| {
            let sizes = RingSizes::all(RING);
            Queue::open(&area, &link.name, link.ifindex, queue, mode, sizes, &mut frames)
        };
        let socket = match open(mode) {
            // As `weir run` does: a driver without zero-copy.
            Err(XskError::Socket { source, .. })
                if mode == xsk::Mode::ZeroCopy && source.kind() == std::io::ErrorKind::Unsupported =>
            {
                open(xsk::Mode::Copy)
            }
            other => other,
        };
        match socket {
            Ok(socket) => opened.push(socket),
            Err(error) => {
                opened.into_iter().for_each(|socket| std::mem::forget(socket.close()));
                std::mem::forget(frames);
                return Err(error);
            }
        }
    }
    // The area lasts as long as the process, and nobody asks it for its frames.
    std::mem::forget(frames);
    Ok(opened)
}

/// `generic`: it runs in the kernel's stack, and why.
fn xdp_mode(port: &Port, generic: Option<&str>, found: &mut Findings) {
    let device = &port.device;
    found.push(
        match (generic, port.mode) {
            (None, _) => Finding::good("xdp-mode", device, "XDP runs in the driver"),
            (Some(_), Mode::Generic) => Finding::good("xdp-mode", device, "XDP runs in the kernel's stack, as `mode` asks"),
            (Some(reason), _) => Finding::note(
                "xdp-mode",
                device,
                format!("the driver takes no XDP, so it runs in the kernel's stack ({reason})"),
                "every packet is copied and costs several times as much; another NIC or a newer driver would do better",
            )
            .by_hand(NoCommand::Hardware),
        }
        .on(device),
    );
}

fn zero_copy(port: &Port, real: bool, found: &mut Findings) {
    let device = &port.device;
    let slower = "every packet is copied once in each direction, on the core of its queue";
    found.push(
        match (real, port.mode) {
            (true, _) => Finding::good("zero-copy", device, "the AF_XDP sockets are zero-copy"),
            (false, Mode::Copy | Mode::Generic) => {
                Finding::good("zero-copy", device, "the AF_XDP sockets copy, as `mode` asks")
            }
            (false, Mode::ZeroCopy) => Finding::bad(
                "zero-copy",
                device,
                "`mode` asks for zero-copy, and the AF_XDP sockets copy",
                format!("the driver has no zero-copy on these queues: {slower}; say mode = \"auto\" to be content with it"),
            )
            .by_hand(NoCommand::Configuration),
            (false, Mode::Auto) => {
                Finding::note("zero-copy", device, "the AF_XDP sockets copy: the driver has no zero-copy", slower)
                    .by_hand(NoCommand::Hardware)
            }
        }
        .on(device),
    );
}

/// The kernel takes the program off its devices a few milliseconds after it was let go.
fn wait_until_free(paths: &Paths, devices: &[&str]) {
    let free = || {
        let look = async {
            let host = Host::open(paths.clone())?;
            for device in devices {
                if host.link_info(device).await.is_ok_and(|link| link.xdp.is_some()) {
                    return Ok(false);
                }
            }
            Ok::<bool, HostError>(true)
        };
        host::wait(look).unwrap_or(true)
    };
    let deadline = Instant::now() + DETACH;
    while !free() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn program_that_the_kernel_refuses_is_told_from_a_user_who_may_not_load_it() {
        let finding = refused(&SteeringError::Load { reason: "unknown func".to_owned() }).unwrap();
        assert_eq!((finding.id, finding.severity), ("steering-program", Severity::Bad));
        assert!(finding.what.contains("unknown func"), "{finding:?}");
        let reason = String::new();
        assert_eq!(refused(&SteeringError::NotPermitted { action: String::new(), reason }), None);
    }
}
