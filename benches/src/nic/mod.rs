//! A traffic generator and receiver on AF_XDP (`weir-bench nic`): for weir or any other box between two ports of this machine.
//!
//! ```text
//! weir-bench nic --tx eth1 --rx eth2 --via 10.0.1.1 --size 64,512,1518 --search
//! weir-bench nic --tx eth1 --rx eth2 --via 10.0.1.1 --via-back 10.0.2.1 --kind tcp --flows 100000 --rate 500000
//! weir-bench nic --tx eth1 --rx eth2                       a cable between the two
//! ```
//!
//! Frames go from `--tx` through the box to `--rx`. Clients are in 198.18.0.0/16 and 2001:2::/64, servers in 198.19.0.0/16 and
//! 2001:2:0:1::/64 (RFC 2544, RFC 5180): the box needs routes to the first by an address of `--tx`, to the second by one of
//! `--rx`. Everything else on the two ports stays the host's, which so answers ARP and neighbour discovery.
//!
//! Each trial tells what was sent, what arrived by queue of the receiving port, and, of frames that have room for a stamp in their payload,
//! how long they took. `--search` finds the highest rate without loss (RFC 2544 section 26.1) and tells the latency at it
//! (RFC 8219 section 7). Times are taken once for a batch of up to 64 frames on both sides. One thread sends, one receives.

mod flows;
mod port;
mod report;
mod search;
mod shape;
mod trial;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use socket2::{Domain, Protocol, Socket, Type};
use weir_sys::ethtool;

use crate::Failure;
use crate::machine::Machine;
use crate::made::Link;

pub use flows::{Family, Size};
pub use port::{Asked, Port};
pub use shape::Kind;

use flows::Flows;
use report::{Device, Latency, Result as Measured, Setup, Stored};
use trial::{Figures, Order, Outcome};

/// How long a neighbour may take to say its link-layer address.
const NEIGHBOUR: Duration = Duration::from_secs(3);
/// How long the sender's own limit is looked for before a search.
const LIMIT_SECONDS: f64 = 1.0;

/// The command line.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// The port that frames leave by.
    #[arg(long, value_name = "DEV")]
    pub tx: String,
    /// The port that they are to come back by.
    #[arg(long, value_name = "DEV")]
    pub rx: String,
    /// The box's address on the side of --tx; none, and no --mac: a cable goes from --tx to --rx.
    #[arg(long, value_name = "IP")]
    pub via: Option<IpAddr>,
    /// The box's address on the side of --rx, for TCP.
    #[arg(long, value_name = "IP")]
    pub via_back: Option<IpAddr>,
    /// The box's link-layer address on the side of --tx, where it is not asked for by --via.
    #[arg(long, value_parser = mac)]
    pub mac: Option<[u8; 6]>,
    /// The same on the side of --rx.
    #[arg(long, value_parser = mac)]
    pub mac_back: Option<[u8; 6]>,
    /// What frames are.
    #[arg(long, default_value = "udp")]
    pub kind: Kind,
    /// Which IP versions.
    #[arg(long, default_value = "both")]
    pub family: Family,
    /// Connections, in turn.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub flows: u32,
    /// Octets of frames with the FCS (64 to 1518), or imix; several: one after the other.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    pub size: Vec<Size>,
    /// Frames are as large as a stamp needs, at least: of each it is known how long it took.
    #[arg(long)]
    pub stamped: bool,
    /// Frames per second; else as many as can be sent.
    #[arg(long, conflicts_with = "search")]
    pub rate: Option<f64>,
    /// Find the highest rate without loss.
    #[arg(long)]
    pub search: bool,
    /// How long each trial takes.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// How AF_XDP is bound.
    #[arg(long, default_value = "auto")]
    pub mode: Asked,
    /// Queues that are sent by.
    #[arg(long, default_value_t = 1)]
    pub tx_queues: usize,
    /// The CPU that sends.
    #[arg(long)]
    pub tx_cpu: Option<usize>,
    /// The CPU that receives.
    #[arg(long)]
    pub rx_cpu: Option<usize>,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/nic.json")]
    pub json: PathBuf,
}

/// Measures, prints and stores.
///
/// # Errors
/// The ports are refused, or a neighbour does not answer.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    // Asked for before the ports are taken: some NICs reset their link then.
    let gateway = box_at(&arguments.tx, arguments.via, arguments.mac)?;
    let back = box_at(&arguments.rx, arguments.via_back, arguments.mac_back)?;
    let tx = Port::open(&arguments.tx, arguments.mode)?;
    let rx = Port::open(&arguments.rx, arguments.mode)?;
    let mut tester = Tester::new(tx, rx, gateway, back);
    for port in [&tester.tx, &tester.rx] {
        println!("{}: AF_XDP by queue {:?}", port.device(), port.modes());
    }
    let setup = Setup { command: std::env::args().collect(), tx: device(&tester.tx), rx: device(&tester.rx) };
    let mut results = Vec::new();
    for size in &arguments.size {
        let measured = tester.measure(arguments, *size)?;
        print!("{measured}");
        results.push(measured);
    }
    Stored { machine: Machine::this(), setup, results }.write(&arguments.json)?;
    println!("{}", arguments.json.display());
    Ok(())
}

/// Both ports, and who is behind each.
#[derive(Debug)]
pub struct Tester {
    tx: Port,
    rx: Port,
    client: Link,
    server: Link,
}

impl Tester {
    /// Link-layer addresses of the box on both sides; none: the other port is at the end of the cable.
    pub fn new(tx: Port, rx: Port, gateway: Option<[u8; 6]>, back: Option<[u8; 6]>) -> Self {
        let client = Link { own: tx.mac(), gateway: gateway.unwrap_or(rx.mac()) };
        let server = Link { own: rx.mac(), gateway: back.unwrap_or(tx.mac()) };
        Self { tx, rx, client, server }
    }

    /// All trials of one size.
    ///
    /// # Errors
    /// Of a trial; no connection comes to be.
    pub fn measure(&mut self, arguments: &Arguments, size: Size) -> Result<Measured, Failure> {
        let Arguments { kind, family, flows, stamped, .. } = *arguments;
        let mut flows = Flows::new(kind, family, flows, size, stamped, self.client);
        let mut not_opened = 0;
        if kind == Kind::Tcp {
            not_opened = flows.open(&mut self.tx, &mut self.rx, self.client, self.server)?;
            if not_opened == arguments.flows as usize {
                return Err("no connection came to be: does the box route both ways?".into());
            }
        }
        let order = Order {
            kind,
            rate: arguments.rate,
            seconds: arguments.seconds,
            tx_queues: arguments.tx_queues.clamp(1, self.tx.queues()),
            tx_cpu: arguments.tx_cpu,
            rx_cpu: arguments.rx_cpu,
        };
        let progress = spinner(size);
        let mut trials = Vec::new();
        let mut throughput = None;
        let mut told: Option<(Outcome, Figures)> = None;
        let mut trial = |order: &Order| -> Result<(Outcome, Figures), Failure> {
            progress
                .set_message(order.rate.map_or("all there is".into(), |rate| format!("{rate:.0} frames/s")));
            progress.tick();
            let outcome = trial::run(&mut self.tx, &mut self.rx, &mut flows, order)?;
            let figures = outcome.figures(order);
            trials.push(figures.clone());
            Ok((outcome, figures))
        };
        if arguments.search {
            let (_, limit) = trial(&Order { seconds: order.seconds.min(LIMIT_SECONDS), ..order })?;
            throughput = Some(search::throughput(limit.sent_per_s, |rate| {
                let (outcome, figures) = trial(&Order { rate: Some(rate), ..order })?;
                let loses = figures.lost > 0;
                if !loses {
                    told = Some((outcome, figures));
                }
                Ok(loses)
            })?);
        } else {
            told = Some(trial(&order)?);
        }
        progress.finish_and_clear();
        let connections = arguments.flows as usize - not_opened;
        let (outcome, told) = told.unzip();
        let latency = outcome.and_then(|outcome| Latency::of(&outcome.latency));
        let (mean_octets, size) = (flows.mean_size(), size.to_string());
        Ok(Measured { size, mean_octets, connections, not_opened, throughput, told, latency, trials })
    }
}

fn spinner(size: Size) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}: {msg} {elapsed}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style).with_prefix(format!("{size} octets"))
}

fn device(port: &Port) -> Device {
    let name = port.device();
    let mac: Vec<String> = port.mac().iter().map(|octet| format!("{octet:02x}")).collect();
    let driver = ethtool::driver_of(name).unwrap_or_else(|error| error.to_string());
    Device { device: name.into(), driver, mac: mac.join(":"), queues: port.modes() }
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let octets: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    octets
        .ok()
        .and_then(|octets| octets.try_into().ok())
        .ok_or(format!("{text} is no address like 02:00:00:00:00:01"))
}

/// The box's link-layer address on a side: as given, or as it says itself.
fn box_at(device: &str, via: Option<IpAddr>, mac: Option<[u8; 6]>) -> Result<Option<[u8; 6]>, Failure> {
    match (mac, via) {
        (Some(mac), _) => Ok(Some(mac)),
        (None, Some(via)) => neighbour(device, via).map(Some),
        (None, None) => Ok(None),
    }
}

/// Lets the kernel ask for a neighbour, and reads what it has learnt.
fn neighbour(device: &str, address: IpAddr) -> Result<[u8; 6], Failure> {
    let target = std::net::SocketAddr::new(address, 9);
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(device.as_bytes()))?;
    let started = Instant::now();
    while started.elapsed() < NEIGHBOUR {
        let sent = socket.send_to(b"who has it?", &target.into());
        std::thread::sleep(Duration::from_millis(50));
        let output = Command::new("ip")
            .args(["-json", "neigh", "show", &address.to_string(), "dev", device])
            .output()?;
        let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let Some(found) = listed[0]["lladdr"].as_str() {
            return Ok(mac(found)?);
        }
        sent.map_err(|error| format!("{address} by {device}: {error}"))?;
    }
    Err(format!(
        "{address} does not answer on {device}: give its link-layer address with --mac or --mac-back"
    )
    .into())
}

#[cfg(test)]
mod tests;
