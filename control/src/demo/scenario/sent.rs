//! Connections that a rule sends to a server of a pool, and what that server learns of the client.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;

use super::{Case, GATEWAY_NAME, NGINX_NAME, RELAY_PORT};
use crate::demo::client::{self, Response};
use crate::demo::origin::{HTTP_PORT, HTTPS_PORTS, NGINX_BODY_BYTES};
use crate::demo::stage::{Differs, Seen, Stage, own_address, plainly};

/// HTTP; nginx is told of the client by a PROXY header of version 1.
pub(super) fn play_nginx_http(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    stage.nginx.as_ref().map_err(Clone::clone)?;
    let mut stream = case.connect(stage, HTTP_PORT)?;
    let response = client::get(&mut stream, NGINX_NAME, "/body", &AtomicU64::new(0));
    let (client, road) = (own_address(&stream)?, stage.road_of(&stream)?);
    let what = judge(&response.map_err(|error| plainly(&error))?, client, case.target(HTTP_PORT))?;
    Ok(Seen { what, road })
}

/// HTTPS; nginx is told of the client by a PROXY header of version 2, and ends TLS itself.
pub(super) fn play_nginx_https(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    stage.nginx.as_ref().map_err(Clone::clone)?;
    let stream = case.connect(stage, HTTPS_PORTS[0])?;
    let mut tls = stage.start_tls(NGINX_NAME, stream).map_err(|error| plainly(&error))?;
    let response = client::get(&mut tls, NGINX_NAME, "/body", &AtomicU64::new(0));
    let (client, road) = (own_address(tls.tcp())?, stage.road_of(tls.tcp())?);
    let what = judge(&response.map_err(|error| plainly(&error))?, client, case.target(HTTPS_PORTS[0]))?;
    Ok(Seen { what, road })
}

/// The body must be whole, and the header must name the client and where it wanted to go.
fn judge(response: &Response, client: SocketAddr, target: SocketAddr) -> Result<String, Differs> {
    if !response.is_intact() || response.length != NGINX_BODY_BYTES {
        return Err(format!("status {}, {} bytes, wrong hash", response.status, response.length));
    }
    let expected = format!("{} {} {} {}", client.ip(), client.port(), target.ip(), target.port());
    match &response.proxied {
        Some(named) if *named == expected => {
            Ok(format!("nginx named both, {} MiB came, hash equal", response.length >> 20))
        }
        named => Err(format!("nginx was told {named:?} instead of {expected:?}")),
    }
}

/// HTTP; the pool says `source = "gateway"`, so that the origin sees the gateway.
pub(super) fn play_from_gateway(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    let mut stream = case.connect(stage, HTTP_PORT)?;
    let response = client::get(&mut stream, GATEWAY_NAME, "/whoami", &AtomicU64::new(0));
    let seen = response.map_err(|error| plainly(&error))?.text();
    let gateway: IpAddr = case.family.addresses().wan_gateway;
    match seen.parse::<SocketAddr>() {
        Ok(address) if address.ip() == gateway => {
            Ok(Seen { what: "the origin saw the gateway".into(), road: stage.road_of(&stream)? })
        }
        _ => Err(format!("the origin saw {seen} instead of {gateway}")),
    }
}

/// HTTP; the relay reads the name, and connects in the client's name.
pub(super) fn play_by_relay(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    let mut stream = case.connect(stage, RELAY_PORT)?;
    let client = own_address(&stream)?;
    let response = client::get(&mut stream, case.name(), "/whoami", &AtomicU64::new(0));
    let seen = response.map_err(|error| plainly(&error))?.text();
    if seen != client.to_string() {
        return Err(format!("the origin saw {seen} instead of {client}"));
    }
    case.check_server(stage, client, HTTP_PORT)?;
    Ok(Seen { what: "the pool's server saw the client".into(), road: stage.road_of(&stream)? })
}
