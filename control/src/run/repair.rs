//! Puts back what somebody takes from a running gateway: rules, routes, the nft table, sysctls, the steering program and its pins,
//! the TUN devices and their addresses.
//!
//! A round compares everything with what is wanted. It is due when the kernel announced a change (see `host::watch`), when
//! the look twice a second found one that nobody announces, and when something that is contested has its turn; [`Pace`] says
//! how often at most. With
//! `fail = "open"`, while a rule or route is missing and has to wait, the nft table is taken out too: what it marks would be
//! dropped for want of a route, and a box that fails open forwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weir_sys::steering::Steering;
use weir_sys::tun::Tun;

use super::contest::{Contests, Item};
use super::pace::Pace;
use super::road::ready_tun;
use crate::admin::repairs::{Contested, Repairs};
use crate::host::sysctl::Key;
use crate::host::writers::SysctlWriters;
use crate::host::{Culprit, Effort, Fail, Host, HostError, HostSpec, Kind, Removal, Step};

/// How often what nobody announces is looked at: sysctls, programs on devices, pins.
const LOOK: Duration = Duration::from_millis(500);
/// Whether there are other switches than those that are listened to is looked at after each round, and this long after the last look.
const LISTEN: Duration = Duration::from_secs(5);

/// What the repair of a program begins with; a device follows.
const ATTACH: &str = "attach XDP to ";

/// The repairing part of a gateway.
#[derive(Debug)]
pub struct Repair {
    contests: Contests,
    pace: Pace,
    board: Arc<Repairs>,
    tuns: Vec<Arc<Tun>>,
    next_look: Instant,
    /// When it is seen to again that all switches are listened to that there are.
    next_listen: Instant,
    /// Who removed something of a kind since its last repair: when that has to wait, the news of it is old by then.
    culprits: BTreeMap<Kind, Culprit>,
    /// Who wrote to sysctls; none where this process may not know.
    writers: Option<SysctlWriters>,
    /// The table is out on purpose: what it marks has no route now.
    opened: bool,
}

/// Something that was put back.
struct Done {
    title: String,
    kind: Kind,
    /// The sysctl, if it is one.
    key: Option<Key>,
    failure: Option<String>,
}

impl Repair {
    pub fn new(board: Arc<Repairs>, tuns: Vec<Arc<Tun>>) -> Self {
        let now = Instant::now();
        let writers = SysctlWriters::start().inspect_err(|error| {
            tracing::debug!(%error, "who changes sysctls cannot be told");
        });
        Self {
            contests: Contests::default(),
            pace: Pace::new(now),
            board,
            tuns,
            next_look: now,
            next_listen: now,
            culprits: BTreeMap::new(),
            writers: writers.ok(),
            opened: false,
        }
    }

    /// The devices that are looked after.
    pub fn tuns(&self) -> &[Arc<Tun>] {
        &self.tuns
    }

    /// Devices whose program somebody has taken off, and where it cannot be put back now.
    pub fn bare(&self) -> impl Iterator<Item = &str> {
        self.contests
            .items()
            .filter(|(_, item)| item.is_missing)
            .filter_map(|(title, _)| title.strip_prefix(ATTACH))
    }

    /// Everything was put in force, the table too, be it that its way is missing again.
    pub fn all_was_applied(&mut self) {
        self.opened = false;
        self.pace.want();
    }

    /// When [`Self::look`] wants to be called.
    pub fn due(&self) -> Instant {
        let turn = self.contests.next().map(|turn| self.pace.not_before(turn));
        [turn, self.pace.due()].into_iter().flatten().fold(self.next_look, Instant::min)
    }

    /// The kernel announced a change: a round is due. `removals`: what of weir's was removed, and by whom.
    pub fn touched(&mut self, host: &Host, removals: &[Removal]) {
        for removal in removals.iter().filter(|removal| !host.is_own(removal.by.pid)) {
            self.culprits.insert(removal.kind, removal.by.clone());
        }
        self.pace.want();
    }

    /// Looks whether a round is due, cheaply, and does one then.
    pub async fn look(&mut self, host: &Host, spec: &HostSpec, steering: &Mutex<Option<Steering>>) {
        let now = Instant::now();
        if now >= self.next_look {
            self.next_look = now + LOOK;
            let sysctl = host.has_changed_sysctl(spec).unwrap_or(false);
            self.listen(host, spec, sysctl, now);
            let tun = self.tuns.iter().any(|tun| !is_whole(tun));
            if sysctl || tun || !detached(steering).is_empty() || misses_pins(steering).is_some() {
                self.pace.want();
            }
        }
        if self.contests.next().is_some_and(|turn| turn <= now) {
            self.pace.want();
        }
        if self.pace.due().is_some_and(|due| due <= now) {
            let effort = Effort::begin();
            self.round(host, spec, steering).await;
            self.pace.done(now, Instant::now(), effort.spent());
            self.board.count_round();
        } else if !self.contests.is_empty() {
            self.settle(host, spec).await;
        }
    }

    /// Hears from now on who writes to the sysctls that there are now; what was heard is of no use while all are as they should be.
    fn listen(&mut self, host: &Host, spec: &HostSpec, changed: bool, now: Instant) {
        let Some(writers) = &self.writers else { return };
        if now >= self.next_listen {
            self.next_listen = now + LISTEN;
            writers.watch(&host.switches(spec));
        }
        if !changed && !self.contests.waits(Kind::Sysctl) {
            writers.forget_all();
        }
    }

    /// Who removed something, as well as it is known.
    fn culprit_of(&self, done: &Done) -> Option<Culprit> {
        let writer = done.key.as_ref().zip(self.writers.as_ref()).and_then(|(key, writers)| writers.of(key));
        writer.or_else(|| self.culprits.get(&done.kind).cloned())
    }

    fn forget_culprit_of(&mut self, done: &Done) {
        self.culprits.remove(&done.kind);
        if let (Some(key), Some(writers)) = (&done.key, &self.writers) {
            writers.forget(key);
        }
    }

    /// Compares everything and puts back what is missing and not waiting.
    async fn round(&mut self, host: &Host, spec: &HostSpec, steering: &Mutex<Option<Steering>>) {
        self.contests.begin();
        // Devices may have come, and their switches with them.
        self.next_listen = self.next_look;
        let mut done = self.repair_tuns();
        done.extend(self.repair_programs(steering));
        done.extend(self.repair_pins(steering));
        done.extend(self.repair_host(host, spec).await);
        let now = Instant::now();
        for done in &done {
            let (Done { title, kind, failure, .. }, by) = (done, self.culprit_of(done));
            let contested = self.contests.repaired(title, *kind, by.as_ref(), failure.clone(), now);
            if failure.is_none() {
                self.board.count(*kind);
            }
            tell(title, by.as_ref(), failure.as_deref(), contested, self.item(title));
        }
        done.iter().for_each(|done| self.forget_culprit_of(done));
        self.settle(host, spec).await;
    }

    fn item(&self, title: &str) -> Option<&Item> {
        self.contests.items().find(|(known, _)| *known == title).map(|(_, item)| item)
    }

    async fn settle(&mut self, host: &Host, spec: &HostSpec) {
        let now = Instant::now();
        for command in self.contests.settle(now) {
            tracing::info!(command, "holds again: nobody removes it any more");
        }
        // Before it is said that all is well: the table may have been out until now.
        self.open_or_close(host, spec).await;
        let contested = self.contests.items().filter(|(_, item)| item.is_contested() || item.is_missing);
        self.board.set(contested.map(|(title, item)| of_item(title, item, now)).collect());
    }

    fn repair_tuns(&mut self) -> Vec<Done> {
        let mut done = Vec::new();
        for tun in self.tuns.clone() {
            let title = format!("ip tuntap add {} mode tun", tun.name());
            if is_whole(&tun) || !self.contests.may(&title, Kind::Tun, Instant::now()) {
                continue;
            }
            let made = if tun.exists() { Ok(()) } else { tun.restore() };
            let failure = made.and_then(|()| ready_tun(&tun)).err().map(|error| error.to_string());
            done.push(Done { title, kind: Kind::Tun, key: None, failure });
        }
        done
    }

    fn repair_programs(&mut self, steering: &Mutex<Option<Steering>>) -> Vec<Done> {
        let mut done = Vec::new();
        for (device, ifindex) in detached(steering) {
            let title = format!("{ATTACH}{device}");
            if !self.contests.may(&title, Kind::Xdp, Instant::now()) {
                continue;
            }
            let Ok(mut steering) = steering.lock() else { continue };
            let Some(steering) = steering.as_mut() else { continue };
            let failure = steering.reattach(ifindex).err().map(|error| error.to_string());
            done.push(Done { title, kind: Kind::Xdp, key: None, failure });
        }
        done
    }

    fn repair_pins(&mut self, steering: &Mutex<Option<Steering>>) -> Option<Done> {
        let title = format!("pin program and maps in {}", misses_pins(steering)?.display());
        if !self.contests.may(&title, Kind::Xdp, Instant::now()) {
            return None;
        }
        let failure = steering.lock().ok()?.as_mut()?.restore_pins().err().map(|error| error.to_string());
        Some(Done { title, kind: Kind::Xdp, key: None, failure })
    }

    async fn repair_host(&mut self, host: &Host, spec: &HostSpec) -> Vec<Done> {
        let (contests, opened) = (&mut self.contests, self.opened);
        let mut chosen = |step: &Step| {
            let kind = step.action.kind();
            !(kind == Kind::Table && opened) && contests.may(&step.action.title(), kind, Instant::now())
        };
        match host.apply_each(spec, &mut chosen).await {
            Ok(done) => {
                let of = |(step, error): (Step, Option<HostError>)| Done {
                    title: step.action.title(),
                    kind: step.action.kind(),
                    key: step.action.sysctl().cloned(),
                    failure: error.map(|error| error.to_string()),
                };
                done.into_iter().map(of).collect()
            }
            Err(error) => {
                let (title, kind) = ("the kernel's side".to_owned(), Kind::Rule);
                let may = self.contests.may(&title, kind, Instant::now());
                let failed = Done { title, kind, key: None, failure: Some(error.to_string()) };
                if may { vec![failed] } else { Vec::new() }
            }
        }
    }

    /// Takes the table out while what it marks has no way, and puts it back when it has.
    async fn open_or_close(&mut self, host: &Host, spec: &HostSpec) {
        // Once out, the table stays out until nobody has removed a rule for a while.
        let (contests, opened) = (&self.contests, self.opened);
        let has_no_way = |kind| contests.waits(kind) || opened && contests.contests(kind);
        let stuck = spec.fail == Fail::Open && [Kind::Rule, Kind::Route].into_iter().any(has_no_way);
        if stuck == self.opened {
            return;
        }
        self.opened = stuck;
        let result = if stuck {
            host.unload_table()
        } else {
            host.apply_chosen(spec, &mut |_| Ok(true)).await.map(drop)
        };
        match (result, stuck) {
            (Ok(()), true) => tracing::warn!(
                "while rules or routes are missing, new connections of the kernel road are forwarded (fail = \"open\")"
            ),
            (Ok(()), false) => tracing::info!("the kernel road is whole again"),
            (Err(error), _) => {
                tracing::error!(%error, "the nft table");
                self.opened = !stuck;
            }
        }
    }
}

fn is_whole(tun: &Tun) -> bool {
    tun.exists() && tun.is_up().unwrap_or(false)
}

fn detached(steering: &Mutex<Option<Steering>>) -> Vec<(String, u32)> {
    let Ok(mut steering) = steering.lock() else { return Vec::new() };
    steering.as_mut().and_then(|steering| steering.detached().ok()).unwrap_or_default()
}

/// Where pins have been removed that keep the program beyond the process.
fn misses_pins(steering: &Mutex<Option<Steering>>) -> Option<PathBuf> {
    steering.lock().ok()?.as_ref()?.misses_pins().map(Path::to_path_buf)
}

/// One line for each event.
fn tell(command: &str, by: Option<&Culprit>, failure: Option<&str>, contested: bool, item: Option<&Item>) {
    let name = |by: Option<&Culprit>| by.map_or_else(|| "somebody".to_owned(), ToString::to_string);
    match failure {
        Some(reason) if contested => {
            tracing::error!(command, reason, "cannot be put back; weir goes on trying");
        }
        Some(reason) => tracing::debug!(command, reason, "cannot be put back"),
        None => {
            tracing::warn!(command, by = name(by), "was removed or changed; it is put back");
        }
    }
    if let (true, None, Some(item)) = (contested, failure, item) {
        tracing::error!(
            command,
            by = name(item.by.as_ref()),
            repairs = item.repairs,
            "is removed again and again; weir backs off"
        );
    }
}

fn of_item(title: &str, item: &Item, now: Instant) -> Contested {
    Contested {
        what: title.to_owned(),
        kind: item.kind,
        repairs: item.repairs,
        is_contested: item.is_contested(),
        by: item.by.as_ref().map(ToString::to_string),
        retry_ms: item.wait(now).map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        failure: item.failure.clone(),
    }
}
