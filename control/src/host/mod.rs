//! The kernel's side of a weir box: what the kernel must be told so that it can carry what the dataplane gives it.
//!
//! `weir run`, `weir plan`, `weir clean` and the demo call this module; nothing else of weir changes a host.
//!
//! - [`spec`]: what is wanted, as plain data. [`nft`]: the table `inet weir`, as text.
//! - [`observe`]: what is there. [`plan`]: what differs, and the commands a person would type: a pure function.
//! - [`iptables`]: the same in the words of iptables, for people.
//! - [`apply`]: does what the plan says, in the order that never black-holes traffic, and takes it back when a step fails.
//! - [`clean`]: removes everything that carries weir's tag, with no configuration and after any crash.
//!   [`closed`]: whether what a weir was to intercept is dropped now.
//! - [`journal`]: the old values of sysctls, on disk before the first is changed; [`sysctl_files`]: what somebody else wants of
//!   them. [`lock`]: one weir per network namespace; [`instance`]: which.
//! - [`watch`]: routes, neighbours, links and addresses as the fast road needs them ([`notify`] hears that something changed,
//!   [`picture`] puts it together with the gateway's own [`source`] addresses, [`keepalive`] keeps neighbours true).
//!   [`preflight`]: may we, can the kernel? [`local_ports`]: are ports free for the gateway? [`port_device`]: which devices
//!   can be ports. [`sub_interface`]: VLANs of them. [`culprit`]: who removed something of weir's; [`writers`]: who changed a sysctl.
//!
//! Everything works in the network namespace of the calling thread (rtnetlink sockets, `nft` children and /proc/sys/net all
//! follow it), and everything asynchronous runs on a tokio current_thread runtime: [`wait`] makes one for callers without.

pub mod apply;
pub mod clean;
pub mod closed;
pub mod culprit;
pub mod effort;
pub mod error;
pub mod instance;
pub mod iptables;
pub mod journal;
pub mod keepalive;
pub mod link;
pub mod local_ports;
pub mod lock;
pub mod netlink;
pub mod nexthops;
pub mod nft;
pub mod notify;
pub mod observe;
pub mod picture;
pub mod plan;
pub mod port_device;
pub mod preflight;
mod removals;
pub mod rule;
pub mod sockets;
pub mod source;
pub mod spec;
pub mod sub_interface;
pub mod sysctl;
pub mod sysctl_files;
mod undo;
pub mod watch;
pub mod writers;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Mutex;

pub use apply::Applied;
pub use clean::{Removed, is_pinned};
pub use closed::Closed;
pub use culprit::{Culprit, Removal};
pub use effort::Effort;
pub use error::HostError;
pub use instance::Instance;
pub use iptables::IptablesPlan;
pub use link::LinkInfo;
pub use local_ports::LocalPorts;
pub use lock::Lock;
pub use picture::OwnAddresses;
pub use plan::{Kind, Plan, Status, Step};
pub use preflight::preflight;
pub use spec::{Fail, HostSpec, InterceptSpec};
pub use sub_interface::SubInterface;
pub use watch::{HostEvent, PortChange, Watch};

use netlink::Netlink;
use weir_sys::steering;

/// rtnetlink's protocol number of weir's own rules and routes (`proto 119`): the tag by which `weir clean` finds them.
pub const PROTOCOL: u8 = 119;

/// The TUN device through which frames reach the transparent listener.
pub const RELAY_TUN: &str = "weir-relay";

/// The TUN device through which frames are handed to plain forwarding.
pub const PUNT_TUN: &str = "weir-punt";

/// Where weir keeps what must outlive its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Old values of sysctls.
    pub journal: PathBuf,
    /// Who runs here.
    pub instance: PathBuf,
    /// weir's folder in bpffs, where links and maps are pinned.
    pub pins: PathBuf,
}

impl Paths {
    /// The usual places. All carry the number of the calling thread's network namespace in their names: /run and bpffs
    /// are not separated by network namespaces, and a weir in one must neither read nor clean what belongs to another.
    pub fn of_this_namespace() -> Result<Self, HostError> {
        let number = journal::netns_number()?;
        Ok(Self {
            journal: PathBuf::from(format!("/run/weir/journal-{number}.json")),
            instance: PathBuf::from(format!("/run/weir/instance-{number}.json")),
            pins: PathBuf::from(format!("/sys/fs/bpf/weir/{number}")),
        })
    }
}

/// A connection to the kernel of this network namespace.
#[derive(Debug)]
pub struct Host {
    pub(crate) netlink: Netlink,
    pub(crate) paths: Paths,
    /// Process ids of the nft children that changed something last: what the kernel announces under them is weir's own.
    own: Mutex<VecDeque<u32>>,
}

/// nft children that are remembered.
const OWN_CHILDREN: usize = 32;

impl Host {
    /// Opens the netlink connection. Must be called on a tokio runtime (see [`wait`]).
    pub fn open(paths: Paths) -> Result<Self, HostError> {
        Ok(Self { netlink: Netlink::open()?, paths, own: Mutex::default() })
    }

    /// What `spec` needs and what differs from it now. Changes nothing.
    pub async fn plan(&self, spec: &HostSpec) -> Result<Plan, HostError> {
        spec.validate()?;
        let set = journal::Journal::load(&self.paths.journal)?.written();
        let mut seen = observe::observe(&self.netlink, spec, set).await?;
        seen.pins = steering::pins(&self.paths.pins).map_err(|error| HostError::Kernel(error.to_string()))?;
        Ok(plan::plan(spec, &seen))
    }

    /// As [`Self::plan`], with iptables in the place of nft.
    pub async fn plan_iptables(&self, spec: &HostSpec) -> Result<IptablesPlan, HostError> {
        iptables::iptables_plan(spec, &self.plan(spec).await?)
    }

    /// Remembers a child that changed something in weir's name.
    pub(crate) fn note_own(&self, pid: u32) {
        if let Ok(mut own) = self.own.lock() {
            own.push_back(pid);
            let beyond = own.len().saturating_sub(OWN_CHILDREN);
            own.drain(..beyond);
        }
    }

    /// Whether a process was a child of this one that changed something in weir's name, or is this one.
    pub fn is_own(&self, pid: u32) -> bool {
        pid == std::process::id() || self.own.lock().is_ok_and(|own| own.contains(&pid))
    }

    /// Takes the nft table out, and nothing else: new connections are forwarded until the next `apply`.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn unload_table(&self) -> Result<(), HostError> {
        if nft::read()?.is_some_and(|table| table.is_ours()) {
            self.note_own(nft::delete()?);
        }
        Ok(())
    }

    /// Puts the table in place, in one step, with which all that `spec` intercepts is dropped ([`nft::Ruleset::shut`]), and nothing
    /// else: it needs no device, and is there until the next [`Self::apply`] or [`Self::clean`]. `links`: all that there are.
    ///
    /// # Errors
    /// A table of somebody else's has the name; nft is missing, or refuses.
    pub fn shut(&self, spec: &HostSpec, links: &[LinkInfo]) -> Result<(), HostError> {
        spec.validate()?;
        if nft::read()?.is_some_and(|table| !table.is_ours()) {
            return Err(HostError::Foreign(nft::foreign()));
        }
        let failed =
            |reason| HostError::Command { command: format!("nft add table {} ...", nft::TABLE), reason };
        let loaded = nft::Ruleset::shut(spec, links).load().or_else(|error| {
            let late = nft::Ruleset::shut_late(spec, links).load();
            late.inspect(|_| {
                tracing::debug!(error, "what the box itself redirects is judged by its new destination")
            })
        });
        self.note_own(loaded.map_err(failed)?);
        Ok(())
    }

    /// The sysctls that such a change may come by.
    pub fn switches(&self, spec: &HostSpec) -> Vec<sysctl::Key> {
        observe::switches(spec, &self.written())
    }

    /// Whether a sysctl is not as `spec` needs it. Reads a few files of /proc, and asks nobody.
    pub fn has_changed_sysctl(&self, spec: &HostSpec) -> Result<bool, HostError> {
        let seen = observe::observe_sysctls(spec, self.written())?;
        Ok(plan::sysctl_steps(spec, &seen).iter().any(|step| step.is_due() && !step.waits))
    }

    /// What weir has set; nothing where the journal cannot be read.
    fn written(&self) -> BTreeMap<sysctl::Key, String> {
        journal::Journal::load(&self.paths.journal).map(|journal| journal.written()).unwrap_or_default()
    }
}

/// Runs `work` to its end on a runtime of its own, in the calling thread (and so in its network namespace).
pub fn wait<T>(work: impl Future<Output = Result<T, HostError>>) -> Result<T, HostError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| HostError::Kernel(format!("cannot start an event loop: {e}")))?;
    runtime.block_on(work)
}
