//! The admin API: one JSON object a line over a Unix socket, one JSON line in answer.
//!
//! [`server`] runs in `weir run`; [`client`] is what `weir status`, `weir flows`, `weir drain` and
//! `weir reload` use; [`table`] prints for people. [`listing`] is the list of all flows.

pub mod client;
pub mod listing;
pub mod part;
pub mod repairs;
pub mod server;
pub mod state;
pub mod table;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weir_sys::steering::VlanTags;

/// What is asked: `{"op":"status"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the gateway is.
    Status,
    /// All flows.
    Flows,
    /// A server of a pool gets no new connections, or with `undo` gets them again.
    Drain {
        pool: String,
        server: SocketAddr,
        #[serde(default)]
        undo: bool,
    },
    /// The whole box takes nothing new, lets what runs finish for so long, and ends.
    Leave { deadline_ms: u64 },
    /// Another process takes this one's place: [`crate::run::handover`]. `patience_ms`: how long its start may take.
    Replace {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        patience_ms: Option<u64>,
    },
    /// Read the configuration file again and put it in force; `file`: the one that the asker believes weir was started
    /// with. With `reevaluate` live connections are judged by it, too.
    Reload {
        #[serde(default)]
        file: Option<PathBuf>,
        #[serde(default)]
        reevaluate: bool,
    },
    /// What becomes of one connection; `device`: the one that the client's packets come in by, `tags`: those of their VLAN, as
    /// EtherType and number; `host`: the name that it asks for.
    Explain {
        from: SocketAddr,
        to: SocketAddr,
        #[serde(default)]
        device: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tags: Option<VlanTags>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
}

/// What is answered when a request is not understood or cannot be carried out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}
