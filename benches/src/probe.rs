//! The packet counters at both ends of a connection: a packet of it every millisecond each way, and what arrives of them.
//!
//! When a packet leaves must not depend on when a process gets a CPU: on a kernel that is not preempted, a long system call of somebody
//! else's keeps it waiting for milliseconds, in which traffic from a wire would go on. So the packets wait in a queue of the device
//! (tc-tbf), whose timer lets one go each millisecond, in the kernel and between whatever else runs there.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use weir_control::lab::{Capture, CapturedFrame, Lab, Namespace, TcpFrame};
use weir_sys::affinity;
use weir_sys::packet::PacketSocket;

use crate::Failure;
use crate::ends::KEEP;

/// Between two packets.
pub const INTERVAL: Duration = Duration::from_millis(1);

/// Until the acknowledgment of an answer has been sent.
const LAST_WORD: Duration = Duration::from_millis(60);
/// Packets that wait for their time, and how often they are made up to so many.
const AHEAD: u32 = 200;
const TOP_UP: Duration = Duration::from_millis(20);
/// Of what else the ends say, what does not fit the queue's burst is lost: neighbours must be found.
const BURST: usize = 128;

/// What is under way arrives.
const UNDER_WAY: Duration = Duration::from_millis(20);

/// One direction, for a while.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The longest time without a packet, beyond the interval between two.
    pub outage: Duration,
    /// Packets that never arrived.
    pub lost: usize,
}

impl Sample {
    /// [`Sample::outage`] in ms.
    pub fn outage_ms(&self) -> f64 {
        self.outage.as_secs_f64() * 1e3
    }
}

/// All that was sent and that arrived, at the client and at the server.
#[derive(Debug)]
pub struct Recorded {
    client: Vec<CapturedFrame>,
    server: Vec<CapturedFrame>,
}

impl Recorded {
    /// What happened in a while, to the server and to the client.
    ///
    /// # Errors
    /// No packet was seen in it.
    pub fn between(&self, since: SystemTime, until: SystemTime) -> Result<[Sample; 2], Failure> {
        let Self { client, server } = self;
        Ok([sample(client, server, since, until)?, sample(server, client, since, until)?])
    }
}

/// Both senders and both recordings.
#[derive(Debug)]
pub struct Probes<'lab> {
    end: Arc<AtomicBool>,
    senders: Vec<JoinHandle<Result<(), std::io::Error>>>,
    _paces: [Pace<'lab>; 2],
    at_client: Capture,
    at_server: Capture,
}

impl<'lab> Probes<'lab> {
    /// Begins to send, and to count. The packets look like acknowledgments of the connection, which tell its ends nothing new.
    ///
    /// # Errors
    /// The connection is not answered, or packet sockets are refused.
    pub fn start(lab: &'lab Lab, connection: &TcpStream) -> Result<Self, Failure> {
        let (client, server) = (connection.local_addr()?, connection.peer_addr()?);
        let (at_client, at_server) =
            (lab.capture(&lab.client, "client0")?, lab.capture(&lab.server, "server0")?);
        let mut stream = connection.try_clone()?;
        stream.write_all(KEEP)?;
        if stream.read(&mut [0; 1024])? == 0 {
            return Err("the origin hung up".into());
        }
        std::thread::sleep(LAST_WORD);
        // Where weir translates, the two ends know each other by other numbers, and the client its server by another address.
        let up = last(&at_client.stop(), |tcp| (tcp.source, tcp.destination) == (client, server))?;
        let down = last(&at_server.stop(), |tcp| tcp.destination == client)?;
        let end = Arc::<AtomicBool>::default();
        let at_client = lab.capture(&lab.client, "client0")?;
        let at_server = lab.capture(&lab.server, "server0")?;
        let paces = [Pace::set(&lab.client, "client0", &up)?, Pace::set(&lab.server, "server0", &down)?];
        let senders = [(&lab.client, "client0", up), (&lab.server, "server0", down)]
            .into_iter()
            .map(|(namespace, device, template)| send(namespace, device, template, end.clone()))
            .collect::<Result<_, _>>()?;
        Ok(Self { end, senders, _paces: paces, at_client, at_server })
    }

    /// Ends it.
    ///
    /// # Errors
    /// A sender has failed.
    pub fn stop(self) -> Result<Recorded, Failure> {
        self.end.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.join().map_err(|_| "a sender panicked")??;
        }
        std::thread::sleep(UNDER_WAY);
        Ok(Recorded { client: self.at_client.stop(), server: self.at_server.stop() })
    }
}

fn send(
    namespace: &Namespace,
    device: &'static str,
    mut template: Template,
    end: Arc<AtomicBool>,
) -> Result<JoinHandle<Result<(), std::io::Error>>, Failure> {
    let socket = namespace.run(|| PacketSocket::open(device))?;
    let body = move || {
        // A sender that is later than its packets last looks like an outage.
        affinity::run_promptly()?;
        let (begun, mut sent) = (Instant::now(), 0);
        while !end.load(Ordering::Relaxed) {
            let due = AHEAD + (begun.elapsed().as_nanos() / INTERVAL.as_nanos()) as u32;
            while sent < due {
                sent += 1;
                match socket.send(&template.next()) {
                    Err(error) if error.raw_os_error() == Some(105) => {}
                    other => other?,
                }
            }
            std::thread::sleep(TOP_UP);
        }
        Ok(())
    };
    Ok(std::thread::spawn(body))
}

/// The queue of a device, from which a packet leaves each millisecond. Dropped, it is as it was.
#[derive(Debug)]
struct Pace<'lab> {
    namespace: &'lab Namespace,
    device: &'static str,
}

impl<'lab> Pace<'lab> {
    fn set(namespace: &'lab Namespace, device: &'static str, template: &Template) -> Result<Self, Failure> {
        let octets = template.len();
        let rate = format!("{}bps", octets as u128 * 1_000_000_000 / INTERVAL.as_nanos());
        let (burst, limit) = (BURST.to_string(), (2 * AHEAD as usize * octets).to_string());
        let words = [
            "qdisc", "replace", "dev", device, "root", "tbf", "rate", &rate, "burst", &burst, "limit", &limit,
        ];
        if !tc(namespace, &words)? {
            return Err(format!("tc {}: install iproute2; the kernel needs sch_tbf", words.join(" ")).into());
        }
        Ok(Self { namespace, device })
    }
}

impl Drop for Pace<'_> {
    fn drop(&mut self) {
        let _ = tc(self.namespace, &["qdisc", "del", "dev", self.device, "root"]);
    }
}

fn tc(namespace: &Namespace, words: &[&str]) -> std::io::Result<bool> {
    let mut command = Command::new("tc");
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(namespace.run(|| command.status())?.success())
}

/// The last frame that was sent of a connection, as a template.
fn last(frames: &[CapturedFrame], is_it: impl Fn(&TcpFrame) -> bool) -> Result<Template, Failure> {
    let sent = |frame: &&CapturedFrame| frame.outgoing && frame.tcp().as_ref().is_some_and(&is_it);
    Template::of(frames.iter().rfind(sent).ok_or("the connection says nothing")?)
}

/// A frame of the connection without payload, to be numbered.
struct Template {
    ethernet: [u8; 14],
    net: NetHeaders,
    tcp: etherparse::TcpHeader,
    number: u16,
}

/// The numbers of probes are in the identification of IPv4 and the low bits of IPv6's flow label, under this mark: a traffic class
/// (DSCP 43, no ECN) that nobody else has here.
const MARK: u8 = 43 << 2;

impl Template {
    fn of(frame: &CapturedFrame) -> Result<Self, Failure> {
        let headers = PacketHeaders::from_ethernet_slice(&frame.bytes)?;
        let (Some(net), Some(TransportHeader::Tcp(mut tcp))) = (headers.net, headers.transport) else {
            return Err("a frame without headers".into());
        };
        let ethernet = frame.bytes.get(..14).ok_or("a short frame")?.try_into()?;
        // Behind what was sent last.
        tcp.sequence_number = tcp.sequence_number.wrapping_add(headers.payload.slice().len() as u32);
        (tcp.psh, tcp.ack) = (false, true);
        Ok(Self { ethernet, net, tcp, number: 0 })
    }

    /// Octets of a frame.
    fn len(&self) -> usize {
        self.ethernet.len() + self.net.header_len() + self.tcp.header_len()
    }

    fn next(&mut self) -> Vec<u8> {
        self.number = self.number.wrapping_add(1);
        let length = self.tcp.header_len();
        let mut frame = self.ethernet.to_vec();
        let tcp = &mut self.tcp;
        match &mut self.net {
            NetHeaders::Ipv4(ip, _) => {
                ip.identification = self.number;
                ip.dscp = etherparse::IpDscp::try_new(MARK >> 2).unwrap_or_default();
                ip.time_to_live = 64;
                ip.total_len = (ip.header_len() + length) as u16;
                ip.header_checksum = ip.calc_header_checksum();
                tcp.checksum = tcp.calc_checksum_ipv4(ip, &[]).unwrap_or(0);
                frame.extend_from_slice(&ip.to_bytes());
            }
            NetHeaders::Ipv6(ip, _) => {
                ip.flow_label =
                    etherparse::Ipv6FlowLabel::try_new(u32::from(self.number)).unwrap_or_default();
                ip.traffic_class = MARK;
                ip.hop_limit = 64;
                ip.payload_length = length as u16;
                tcp.checksum = tcp.calc_checksum_ipv6(ip, &[]).unwrap_or(0);
                frame.extend_from_slice(&ip.to_bytes());
            }
            NetHeaders::Arp(_) => {}
        }
        frame.extend_from_slice(&tcp.to_bytes());
        frame
    }
}

/// A probe, as it arrived: its time and number, and what its receiver knows the connection by.
struct Arrived {
    time: SystemTime,
    number: u16,
    known_by: (SocketAddr, SocketAddr, u32, u32),
}

impl Arrived {
    fn of(frame: &CapturedFrame) -> Option<Self> {
        let number = match PacketHeaders::from_ethernet_slice(&frame.bytes).ok()?.net? {
            NetHeaders::Ipv4(ip, _) if ip.dscp.value() == MARK >> 2 => ip.identification,
            NetHeaders::Ipv6(ip, _) if ip.traffic_class == MARK => {
                u16::try_from(ip.flow_label.value()).ok()?
            }
            _ => return None,
        };
        let tcp = frame.tcp()?;
        let known_by = (tcp.source, tcp.destination, tcp.sequence, tcp.acknowledgment);
        Some(Self { time: frame.time, number, known_by })
    }
}

/// What was sent at one end and arrived at the other.
fn sample(
    from: &[CapturedFrame],
    to: &[CapturedFrame],
    since: SystemTime,
    until: SystemTime,
) -> Result<Sample, Failure> {
    let probes = |frames: &[CapturedFrame], outgoing: bool, until: SystemTime| -> Vec<Arrived> {
        let frames = frames.iter().filter(|frame| frame.outgoing == outgoing && frame.time < until);
        frames.filter_map(Arrived::of).collect()
    };
    let mut sent = probes(from, true, until);
    sent.retain(|probe| probe.time >= since);
    let mut arrived = probes(to, false, until + UNDER_WAY);
    // One that comes untranslated is as good as lost: its receiver does not know it.
    let first = arrived.first().map(|probe| probe.known_by);
    arrived.retain(|probe| Some(probe.known_by) == first);
    let before = arrived.iter().rposition(|probe| probe.time < since).unwrap_or(0);
    let watched = arrived.get(before..).unwrap_or_default();
    let is_lost = |probe: &&Arrived| !watched.iter().any(|other| other.number == probe.number);
    let lost = sent.iter().filter(is_lost).count();
    let pause =
        watched.windows(2).filter_map(|pair| pair[1].time.duration_since(pair[0].time.max(since)).ok());
    let pause = pause.max();
    let end = match (watched.last(), sent.last()) {
        (Some(arrived), Some(sent)) => sent.time.duration_since(arrived.time.max(since)).unwrap_or_default(),
        _ => return Err("no packet was seen".into()),
    };
    let pause = pause.unwrap_or_default().max(end);
    Ok(Sample { outage: pause.saturating_sub(INTERVAL), lost })
}
