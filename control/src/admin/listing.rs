//! The list of all flows, as `weir flows` gets it: an object for each. Of an incomplete one the last object is no flow, but says who
//! has not told his: `{"incomplete":{"workers":1,"of_workers":2,"relay_threads":0,"of_relay_threads":2}}`.

use std::fmt;
use std::time::Duration;

use serde::ser::{SerializeSeq as _, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_core::view::FlowView;

/// How long workers and the relay may take to list their flows.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// All flows, as far as they were told.
#[derive(Clone, Debug)]
pub struct Listing {
    pub flows: Vec<FlowView>,
    pub incomplete: Option<Incomplete>,
}

/// How many threads have not told all their flows within [`PATIENCE`]: those are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    pub workers: usize,
    pub of_workers: usize,
    pub relay_threads: usize,
    pub of_relay_threads: usize,
}

#[derive(Serialize)]
struct Mark {
    incomplete: Incomplete,
}

impl Incomplete {
    /// Of how many are silent, of how many; none where nobody is.
    pub const fn of(
        (workers, of_workers): (usize, usize),
        (relay_threads, of_relay_threads): (usize, usize),
    ) -> Option<Self> {
        if workers + relay_threads == 0 {
            return None;
        }
        Some(Self { workers, of_workers, relay_threads, of_relay_threads })
    }
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.workers, self.of_workers, "workers"),
            (self.relay_threads, self.of_relay_threads, "threads of the relay"),
        ];
        let silent = all.iter().filter(|(silent, ..)| *silent > 0);
        let silent: Vec<String> =
            silent.map(|(silent, all, who)| format!("{silent} of {all} {who}")).collect();
        let (silent, seconds) = (silent.join(" and "), PATIENCE.as_secs());
        write!(f, "incomplete: {silent} did not answer within {seconds} s, and their flows are missing")
    }
}

impl Serialize for Listing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        self.flows.iter().try_for_each(|flow| list.serialize_element(flow))?;
        if let Some(incomplete) = self.incomplete {
            list.serialize_element(&Mark { incomplete })?;
        }
        list.end()
    }
}

/// The flows of an answer, and what is missing.
pub fn parts(answer: &Value) -> (&[Value], Option<Incomplete>) {
    let all = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let mark = |last: &Value| Incomplete::deserialize(last.get("incomplete")?).ok();
    match all.split_last() {
        Some((last, flows)) => match mark(last) {
            Some(incomplete) => (flows, Some(incomplete)),
            None => (all, None),
        },
        None => (all, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_list_says_so_behind_its_flows_and_a_complete_one_is_its_flows() {
        let list = |incomplete| serde_json::to_value(Listing { flows: Vec::new(), incomplete }).unwrap();
        assert_eq!(parts(&list(None)), (&[][..], None));
        let some = Incomplete::of((1, 2), (3, 4));
        let mut answer = list(some);
        assert_eq!(parts(&answer), (&[][..], some));
        answer.as_array_mut().unwrap().insert(0, serde_json::json!({ "client": "[fd00::1]:1" }));
        let (flows, incomplete) = parts(&answer);
        assert_eq!((flows.len(), incomplete), (1, some));
        assert_eq!(parts(&flows.to_vec().into()), (flows, None));
    }

    #[test]
    fn those_who_did_not_answer_are_counted_and_others_not_named() {
        assert_eq!(Incomplete::of((0, 2), (0, 1)), None);
        let both = Incomplete::of((1, 2), (1, 1)).unwrap().to_string();
        let text = "incomplete: 1 of 2 workers and 1 of 1 threads of the relay did not answer within 2 s, and their flows are missing";
        assert_eq!(both, text);
        let relay = Incomplete::of((0, 2), (1, 1)).unwrap().to_string();
        assert!(!relay.contains("workers"), "{relay}");
    }
}
