//! Lists of prefixes of both families: one prefix or address a line. `#` and `;` begin comments.

use std::io;

use weir_core::policy::{Prefixes, PrefixesBuilder};

use super::BadLines;
use super::file::Open;
use crate::config::values;

/// Reads all lines.
///
/// # Errors
/// As read(2).
pub fn read(file: &mut Open, bad: &mut BadLines) -> io::Result<Prefixes> {
    let mut prefixes = PrefixesBuilder::default();
    file.lines(|number, line| match line.content(&['#', ';']) {
        Ok("") => {}
        Ok(content) => match values::prefix(content) {
            Ok(prefix) => prefixes.push(prefix),
            Err(message) => bad.add(number, || message),
        },
        Err(message) => bad.add(number, || message.to_owned()),
    })?;
    Ok(prefixes.build())
}
