//! What is wrong with a configuration though each part of it can be read: rules that never match, pools that cannot take
//! what is sent to them, and settings that can cut the operator off.

mod idle;
mod lockout;
mod pools;

use weir_core::policy::InterceptSpec;

use super::model::Config;
use super::read::InterceptSpans;
use super::section::Reader;
use super::source::Span;

/// Checks one intercept that was read without an error.
pub fn intercept(reader: &mut Reader<'_>, spec: &InterceptSpec, spans: &InterceptSpans) {
    idle::rules(reader, spec, spans);
    lockout::check(reader, spec, spans);
}

/// Checks how the parts of a file fit together that was read without an error.
pub fn whole(reader: &mut Reader<'_>, config: &Config, spans: &[InterceptSpans], pool_spans: &[Span]) {
    if config.intercepts.is_empty() {
        reader.warn(&(0..0), "there is no [[intercept]], so the kernel forwards everything");
    }
    idle::intercepts(reader, config, spans);
    idle::pools(reader, config, pool_spans);
    pools::families(reader, config, spans);
    pools::ports(reader, config, pool_spans);
}
