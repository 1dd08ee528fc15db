//! `weir run` from end to end: the binary in a lab's gateway, real TCP at both sides, frames seen at the far ends of
//! both links. Every test begins with a gateway that was never touched and ends with one that looks the same.

mod config;
mod weir;
mod world;

mod admin;
mod after_reload;
mod answer;
mod changes;
mod closed;
mod crash;
mod doctor;
mod drain;
mod endings;
mod explain;
mod express;
mod failing;
mod flood;
mod fragments;
mod frames;
mod handover;
mod identity;
mod idle;
mod lane_changes;
mod lane_notes;
mod limits;
mod lists;
mod lost;
mod ownership;
mod pools;
mod proxy;
mod raw;
mod refusals;
mod relayed_sends;
mod reload;
mod repair;
mod replace;
mod retry;
mod returns;
mod roads;
mod send;
mod stalled;
mod survival;
mod uplinks;
mod verify;
mod wrappings;
