//! International names as they are on the wire: A-labels (RFC 5890, section 2.3.2.1; mapped by UTS 46).

use std::borrow::Cow;

/// A name or wildcard in ASCII. ASCII stays as it is.
///
/// # Errors
/// A sentence that says that it is no name.
pub fn to_ascii(pattern: &str) -> Result<Cow<'_, str>, String> {
    if pattern.is_ascii() {
        return Ok(Cow::Borrowed(pattern));
    }
    let name = pattern.trim_start_matches("*.").trim_start_matches('.');
    let (wildcard, name) = pattern.split_at(pattern.len() - name.len());
    match idna::domain_to_ascii(name) {
        Ok(ascii) => Ok(Cow::Owned(format!("{wildcard}{ascii}"))),
        Err(_) => Err(format!("`{pattern}` is no international name (UTS 46)")),
    }
}
