//! First bytes of clients: ClientHellos (RFC 8446 section 4.1.2) and HTTP requests (RFC 9112).

/// A ClientHello that asks for `host`, in one record. `pad` octets of padding extension (RFC 7685) make it longer.
pub fn client_hello(host: &str, pad: usize) -> Vec<u8> {
    records(&handshake(host, pad), usize::MAX)
}

/// The same over records of at most `cut` octets each (RFC 8446 section 5.1).
pub fn client_hello_in_records(host: &str, pad: usize, cut: usize) -> Vec<u8> {
    records(&handshake(host, pad), cut)
}

/// What a server says that wants another key share: a ServerHello with the random of RFC 8446 section 4.1.3.
pub fn hello_retry_request() -> Vec<u8> {
    let random = [
        0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
        0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
    ];
    answer(random)
}

/// What any other server says.
pub fn server_hello() -> Vec<u8> {
    answer([9; 32])
}

fn answer(random: [u8; 32]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend(random);
    body.extend([0, 0x13, 0x01, 0]);
    let mut extensions = Vec::new();
    extension(&mut extensions, 43, &[3, 4]);
    extension(&mut extensions, 51, &[0, 24]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut out = vec![2];
    out.extend(&(body.len() as u32).to_be_bytes()[1..]);
    out.extend(body);
    records(&out, usize::MAX)
}

/// A record that is no handshake, of `len` octets: early data, say.
pub fn record(kind: u8, len: usize) -> Vec<u8> {
    let mut out = vec![kind, 3, 3];
    out.extend((len as u16).to_be_bytes());
    out.resize(5 + len, 0x16);
    out
}

/// A request for `host`.
pub fn http_request(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n").into_bytes()
}

fn records(handshake: &[u8], cut: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in handshake.chunks(cut.min(16_384)) {
        out.extend([22, 3, 1]);
        out.extend((part.len() as u16).to_be_bytes());
        out.extend(part);
    }
    out
}

fn handshake(host: &str, pad: usize) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 2, 0x13, 0x01, 1, 0]);
    let mut extensions = Vec::new();
    let mut names = vec![0];
    names.extend((host.len() as u16).to_be_bytes());
    names.extend(host.as_bytes());
    let mut list = (names.len() as u16).to_be_bytes().to_vec();
    list.extend(names);
    extension(&mut extensions, 0, &list);
    extension(&mut extensions, 43, &[2, 3, 4]);
    if pad > 0 {
        extension(&mut extensions, 21, &vec![0; pad]);
    }
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut out = vec![1];
    out.extend(&(body.len() as u32).to_be_bytes()[1..]);
    out.extend(body);
    out
}

fn extension(out: &mut Vec<u8>, kind: u16, data: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
}
