//! Octets that a script names.

use crate::hello::{client_hello, hello_retry_request, http_request, server_hello};
use crate::random::{Random, bytes};

use super::syntax::Words;

/// Reads a payload if the next words are one.
pub(super) fn read(words: &mut Words<'_>) -> Result<Option<Vec<u8>>, String> {
    let mut octets = match words.peek() {
        Some("hello") => {
            words.skip();
            let name = words.word("a name behind `hello`")?;
            let pad = if words.take("pad") { words.number("octets behind `pad`")? } else { 0 };
            client_hello(name, pad as usize)
        }
        Some("retry-request") => {
            words.skip();
            hello_retry_request()
        }
        Some("server-hello") => {
            words.skip();
            server_hello()
        }
        Some("http") => {
            words.skip();
            http_request(words.word("a name behind `http`")?)
        }
        Some("bytes") => {
            words.skip();
            bytes(&mut Random::new(9), words.number("octets behind `bytes`")? as usize)
        }
        Some("text") => {
            words.skip();
            let text = words.word("words in quotes behind `text`")?;
            let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            text.ok_or("`text` wants quotes")?.replace("\\r", "\r").replace("\\n", "\n").into_bytes()
        }
        _ => return Ok(None),
    };
    if let Some((from, to)) = words.peek().and_then(part) {
        words.skip();
        let to = to.unwrap_or(octets.len());
        octets = octets.get(from..to).ok_or(format!("there are {} octets", octets.len()))?.to_vec();
    }
    Ok(Some(octets))
}

/// `[from..to]`, `[from..]`.
fn part(word: &str) -> Option<(usize, Option<usize>)> {
    let (from, to) = word.strip_prefix('[')?.strip_suffix(']')?.split_once("..")?;
    let to = if to.is_empty() { None } else { Some(to.parse().ok()?) };
    Some((if from.is_empty() { 0 } else { from.parse().ok()? }, to))
}
