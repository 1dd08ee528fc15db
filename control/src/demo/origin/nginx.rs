//! nginx as an origin that wants a PROXY header first: a server that is not ours says whom the header names.
//!
//! It runs in the servers' namespace, with files of its own under that namespace's `/run`, and is gone with it.

use std::fs;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Pem;
use crate::demo::content;
use crate::lab::{Namespace, NamespaceChild};

/// Port of HTTP behind a PROXY header.
pub const NGINX_HTTP_PORT: u16 = 8080;
/// Port of HTTPS behind a PROXY header.
pub const NGINX_HTTPS_PORT: u16 = 8444;
/// Bytes that it serves under `/body`.
pub const NGINX_BODY_BYTES: u64 = 1 << 20;
/// Where its files are.
const PLACE: &str = "/run/weir";
/// How long it may take to listen.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Where it is looked for besides the PATH, which often lacks the directories of system programs.
const PLACES: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin"];

/// A running nginx. Dropping it ends it.
#[derive(Debug)]
pub struct Nginx {
    _child: NamespaceChild,
}

impl Nginx {
    /// Starts it in `namespace`, with the certificate `pem` on its HTTPS port.
    ///
    /// # Errors
    /// A sentence for the report: there is no nginx, or it does not start.
    pub fn start(namespace: &Namespace, pem: &Pem) -> Result<Self, String> {
        let program = find().ok_or("there is no nginx on this machine (`make demo` fetches it)")?;
        namespace.run(|| write_files(pem)).map_err(|error| format!("cannot write nginx's files: {error}"))?;
        let mut command = Command::new(program);
        command.args(["-p", PLACE, "-c", "nginx.conf", "-e", "stderr"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = namespace.spawn_command(command).map_err(|error| error.to_string())?;
        let deadline = Instant::now() + START_LIMIT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, NGINX_HTTP_PORT));
        while namespace.run(|| TcpStream::connect(address)).is_err() {
            let ended = child.inner().try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > deadline {
                return Err(format!("nginx does not start: {}", last_words(&mut child)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { _child: child })
    }
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    directories.map(|directory| directory.join("nginx")).find(|program| program.is_file())
}

fn last_words(child: &mut NamespaceChild) -> String {
    let mut text = String::new();
    let _ = child.kill();
    if let Some(pipe) = &mut child.inner().stderr {
        let _ = pipe.read_to_string(&mut text);
    }
    text.lines().next_back().unwrap_or("it says nothing").to_owned()
}

fn write_files(pem: &Pem) -> io::Result<()> {
    let place = Path::new(PLACE);
    let mut body = vec![0; NGINX_BODY_BYTES as usize];
    content::fill(0, &mut body);
    fs::write(place.join("body"), body)?;
    fs::write(place.join("nginx.pem"), &pem.certificate)?;
    fs::write(place.join("nginx.key"), &pem.key)?;
    fs::write(place.join("nginx.conf"), config())
}

/// One process, all files in [`PLACE`], and a header that repeats the PROXY header.
fn config() -> String {
    let hash = content::hash(NGINX_BODY_BYTES);
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = kinds.map(|kind| format!("  {kind}_temp_path {PLACE}/nginx-{kind};\n")).concat();
    format!(
        "daemon off;\nmaster_process off;\npid {PLACE}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\n  access_log off;\n{temporary}\
         \x20 server {{\n\
         \x20   listen [::]:{NGINX_HTTP_PORT} ipv6only=off proxy_protocol;\n\
         \x20   listen [::]:{NGINX_HTTPS_PORT} ipv6only=off ssl proxy_protocol;\n\
         \x20   ssl_certificate {PLACE}/nginx.pem;\n    ssl_certificate_key {PLACE}/nginx.key;\n\
         \x20   location = /body {{\n\
         \x20     root {PLACE};\n\
         \x20     add_header x-sha256 {hash};\n\
         \x20     add_header x-proxied \"$proxy_protocol_addr $proxy_protocol_port \
         $proxy_protocol_server_addr $proxy_protocol_server_port\";\n    }}\n  }}\n}}\n"
    )
}
