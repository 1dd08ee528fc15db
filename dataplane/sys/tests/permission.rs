//! What a process without privileges is told. In a binary of its own: aya asks once per process what the kernel can do.

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use weir_sys::netns::Namespace;
use weir_sys::packet::PacketSocket;
use weir_sys::sockopt::transparent_listener;
use weir_sys::steering::{Steering, SteeringError};
use weir_sys::tun::Tun;

#[test]
fn process_without_capabilities_is_told_what_to_do() {
    let nothing = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // Capabilities are the thread's: the rest of the process keeps its own.
    set_capabilities(None, nothing).unwrap();
    let error = Steering::load(&Default::default()).unwrap_err();
    assert!(matches!(error, SteeringError::NotPermitted { .. }), "{error}");
    assert!(error.to_string().contains("run as root"), "{error}");
    let refused = |error: std::io::Error| assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    refused(Namespace::new().unwrap_err());
    refused(Tun::create("weir-punt").unwrap_err());
    refused(PacketSocket::open("lo").unwrap_err());
    refused(transparent_listener("127.0.0.1:0".parse().unwrap(), 16).unwrap_err());
}
