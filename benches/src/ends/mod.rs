//! Both ends of the connections that are measured: what they say is the same whoever is between them.

pub mod client;
pub mod origin;

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::Failure;

/// Every answer but that to [`BULK`].
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 62\r\n\r\n\
    a page of some sixty octets, as a health check or an API gives";
/// The connection ends after the answer.
pub const CLOSE: &[u8] = b"GET /close HTTP/1.1\r\nHost: www.example\r\nConnection: close\r\n\r\n";
/// It stays.
pub const KEEP: &[u8] = b"GET /keep HTTP/1.1\r\nHost: www.example\r\n\r\n";
/// Octets without end.
pub const BULK: &[u8] = b"GET /bulk HTTP/1.1\r\nHost: www.example\r\n\r\n";

/// The first octet of a TLS record with a handshake in it (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// The ClientHello of a current client, with a post-quantum key share: more than one segment of the usual size. A server answers
/// it with [`ANSWER`] and ends the connection: what TLS costs both ends afterwards is nothing of a gateway's.
///
/// # Errors
/// rustls has no provider of cryptography.
pub fn client_hello() -> Result<Vec<u8>, Failure> {
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("www.example")?)?;
    let mut hello = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut hello)?;
    }
    Ok(hello)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_hello_is_one_record_of_more_than_a_segment() {
        let hello = client_hello().unwrap();
        assert_eq!(hello[0], HANDSHAKE);
        assert_eq!(usize::from(u16::from_be_bytes([hello[3], hello[4]])) + 5, hello.len());
        assert!(hello.len() > 1460, "{}", hello.len());
    }
}
