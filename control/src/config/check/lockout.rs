//! Settings that can cut the operator off from machines behind the box.

use weir_core::policy::InterceptSpec;

use crate::config::read::InterceptSpans;
use crate::config::section::Reader;

const SSH: u16 = 22;

/// Traffic to the gateway's own addresses is never intercepted; what goes through it to other machines can be.
pub fn check(reader: &mut Reader<'_>, spec: &InterceptSpec, spans: &InterceptSpans) {
    if spec.tcp.iter().any(|range| range.contains(&SSH)) {
        let message = format!(
            "intercept `{}` takes port {SSH}: in SSH the server speaks first, so sessions through the box get \
             `unidentified` ({}); the gateway's own addresses are never intercepted",
            spec.name,
            spec.unidentified.name()
        );
        reader.warn(&spans.tcp, message);
    }
}
