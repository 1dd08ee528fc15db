//! How far the verdict of what was read can be trusted: lists that could not be read, and what of file and lists is not what the
//! running gateway has in force. By the contents of a list that is not known a rule may take what it does not seem to, or not take
//! what it does.

use std::collections::BTreeSet;

use weir_core::policy::Policy;

use super::gateway::Gateway;
use super::ingress::Ingress;
use super::{Layer, Question, Source, Step, policy};
use crate::config::Config;
use crate::lists::Content;

/// What is doubted.
#[derive(Debug, Default)]
pub struct Doubts {
    /// A sentence for each, without a full stop.
    pub told: Vec<String>,
    /// Lists of which it is not known what they hold.
    lists: Vec<Content>,
}

/// Compares what was read with what the gateway says that it has in force.
pub fn find(config: Option<&Config>, gateway: &Gateway, steps: &mut Vec<Step>) -> Doubts {
    let mut doubts = Doubts::default();
    let Some(config) = config else { return doubts };
    if let Some(doubt) = gateway.doubts(config) {
        let asked = "does the gateway run with this file?";
        steps.push(Step::new(Layer::Policy, Source::Gateway, asked, format!("perhaps not: {doubt}")));
        doubts.told.push(doubt);
    }
    for list in &config.missing {
        let (source, why) = match gateway.warning(config, &list.path, list.content.kind()) {
            Some(warning) => (Source::Gateway, warning),
            None => (Source::Configuration, list.why.clone()),
        };
        let what = format!("list {} {why}", list.path.display());
        doubts.add(what, (config, &list.content), source, steps);
    }
    for list in &config.lists {
        if let Some(why) = gateway.doubts_list(config, list) {
            let what = format!("list {} {why}", list.path.display());
            doubts.add(what, (config, &list.content), Source::Gateway, steps);
        }
    }
    doubts
}

impl Doubts {
    fn add(
        &mut self,
        what: String,
        (config, list): (&Config, &Content),
        source: Source,
        steps: &mut Vec<Step>,
    ) {
        let rules = config.rules_with(list).into_iter();
        let rules = rules.map(|rule| format!("the rule at {rule} cannot be judged by it"));
        let asked = "is it known what its lists hold?";
        steps.push(Step::new(Layer::Policy, source, asked, format!("no: {what}")).detail(rules));
        self.told.push(what);
        self.lists.push(list.clone());
    }

    /// Looks whether the verdict depends on what is not known.
    pub fn look_at(
        &mut self,
        config: Option<&Config>,
        compile: impl Fn(&Config) -> Policy,
        (ingress, question): (&Ingress, &Question),
        steps: &mut Vec<Step>,
    ) {
        let Some(config) = config.filter(|_| !self.lists.is_empty()) else { return };
        let supposed =
            [Content::everything, Content::nothing].map(|contents| config.supposing(&self.lists, contents));
        let all = [config, &supposed[0], &supposed[1]]
            .map(|config| policy::deciding(&compile(config), ingress, question));
        let asked = "does the verdict depend on what is not known?";
        let step = |answer: String| Step::new(Layer::Policy, Source::Configuration, asked, answer);
        if all.iter().all(|rules| *rules == all[0]) {
            steps.push(step("no: whatever these lists hold, it is the same".to_owned()));
            return;
        }
        let unknown: BTreeSet<String> = self.lists.iter().flat_map(|list| config.rules_with(list)).collect();
        let open: BTreeSet<&String> =
            all.iter().flatten().flatten().filter(|rule| unknown.contains(*rule)).collect();
        let open: Vec<String> = open.into_iter().map(|rule| format!("the rule at {rule}")).collect();
        let doubt =
            format!("the verdict is not certain: whether {} takes it is not known", open.join(", or "));
        steps.push(step(format!("yes: {doubt}")));
        self.told.push(doubt);
    }
}
