//! The rules let a connection on, and a resolver is to say whether its name has the address that it goes to. With
//! `verify_host = "reset"` it stays in its stage until then, and what it has sent stays held; with `"log"` it goes on at once.

use crate::flow::record::Stage;
use crate::frame::Frame;
use crate::ids::Nanos;
use crate::inspect::Found;
use crate::pipeline::{Output, Pipeline};
use crate::policy::Action;
use crate::verdict::Ruling;
use crate::verify::{self, Answer, HostCheck, Need, Question, Verified};

impl<F: Frame> Pipeline<F> {
    /// What the check of the name takes, where there is one and the rules let the connection on. The servers of a capture are
    /// not those of today: nothing is asked for it.
    pub(crate) fn verification(
        &self,
        slot: u32,
        ruling: &Ruling,
        found: Option<&Found>,
        known: Option<Verified>,
    ) -> Need {
        let name = found.and_then(|found| found.host.as_ref());
        let (Some(name), Some(flow)) = (name, self.flows.get(slot)) else { return Need::Nothing };
        if self.is_replay || matches!(ruling.decision.action, Action::Reset | Action::Drop) {
            return Need::Nothing;
        }
        let destination = flow.tuple().dst.addr;
        match (verify::need(ruling.verify_host, name.as_str(), ruling.is_hidden, destination.ip()), known) {
            (Need::Ask { .. }, Some(verified)) => Need::Known(verified),
            (Need::Ask { waits }, None) => {
                let remembered = self.answers.get(self.answers.tag(name.as_str(), &destination), self.now);
                // Control logs each connection that differs.
                match remembered.filter(|verified| waits || *verified == Verified::Matches) {
                    Some(verified) => Need::Known(verified),
                    None => Need::Ask { waits },
                }
            }
            (need, _) => need,
        }
    }

    pub(crate) fn ask(&mut self, slot: u32, found: Option<&Found>, waits: bool, out: &mut Output<F>) {
        let name = found.and_then(|found| found.host);
        let (Some(name), Some(flow)) = (name, self.flows.get(slot)) else { return };
        let (tuple, key) = (flow.tuple(), flow.key);
        let tag = self.answers.tag(name.as_str(), &tuple.dst.addr);
        self.totals.host_asked += 1;
        out.questions.push(Question { key, client: tuple.src, destination: tuple.dst, name, tag, waits });
    }

    pub(crate) fn count_verified(&mut self, verified: Verified) {
        match verified {
            Verified::Matches => {}
            Verified::Differs => self.totals.host_mismatch += 1,
            Verified::Unknown => self.totals.host_unknown += 1,
        }
    }

    /// The answer to one of [`Output::questions`]. It is remembered, and a connection that waits for it goes on or ends. One
    /// for a connection that has ended, or has the addresses of the one that asked and another name, changes nothing else.
    pub fn handle_verified(&mut self, now: Nanos, answer: &Answer, out: &mut Output<F>) {
        self.now = now;
        self.answers.learn(answer, now);
        if !answer.waits {
            self.count_verified(answer.verified);
        }
        let Some(slot) = self.flows.find(&answer.key) else { return };
        let Some(flow) = self.flows.get_mut(slot) else { return };
        let destination = flow.tuple().dst.addr;
        match flow.check {
            HostCheck::Waiting if matches!(flow.stage, Stage::Held | Stage::Answered) => {
                let Some(found) = self.holds.found(flow.hold) else { return };
                let same = |name: &str| answer.waits && self.answers.tag(name, &destination) == answer.tag;
                if found.host.is_some_and(|name| same(name.as_str())) {
                    self.conclude(slot, Some(&found), Some(answer.verified), out);
                }
            }
            HostCheck::Waiting if flow.stage == Stage::Splice && flow.second.is_expected() => {
                let Some(found) = self.holds.found(flow.hold) else { return };
                let same = |name: &str| answer.waits && self.answers.tag(name, &destination) == answer.tag;
                if found.host.is_some_and(|name| same(name.as_str())) {
                    self.judge_second(slot, Some(&found), Some(answer.verified), out);
                }
            }
            HostCheck::Asked if !answer.waits => {
                let name = self.names.get(flow.name);
                if name.is_some_and(|name| self.answers.tag(name, &destination) == answer.tag) {
                    flow.check = HostCheck::Known(answer.verified);
                    self.note_anew(slot, out);
                }
            }
            _ => {}
        }
    }

    /// There was no answer as long as the connection may be held.
    pub(crate) fn unverified(&mut self, slot: u32, out: &mut Output<F>) {
        let found = self.flows.get(slot).and_then(|flow| self.holds.found(flow.hold));
        let known = found.map(|_| Verified::Unknown);
        self.conclude(slot, found.as_ref(), known, out);
    }
}
