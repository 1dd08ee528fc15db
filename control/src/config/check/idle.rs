//! What is written and can never take effect.

use weir_core::policy::{Action, InterceptSpec, Prefixes, Rule, TcpPorts};

use crate::config::model::Config;
use crate::config::read::InterceptSpans;
use crate::config::section::Reader;
use crate::config::source::Span;

/// Rules that an earlier one shadows, or whose destinations the intercept does not take.
pub fn rules(reader: &mut Reader<'_>, spec: &InterceptSpec, spans: &InterceptSpans) {
    let rules: Vec<Rule> = spec.rules.iter().cloned().map(Rule::new).collect();
    for (n, (rule, span)) in rules.iter().zip(&spans.rules).enumerate() {
        if let Some(earlier) = rules[..n].iter().find(|earlier| earlier.shadows(rule)) {
            reader.warn(
                span,
                format!("the rule never matches: the one at {} takes all that it would", earlier.origin),
            );
        }
    }
    let to: Prefixes = spec.to.iter().copied().collect();
    let tcp: TcpPorts = spec.tcp.iter().cloned().collect();
    for (rule, span) in spec.rules.iter().zip(&spans.rules) {
        let inside = || {
            to.overlaps(&rule.to.iter().copied().collect())
                || rule.to_lists.iter().any(|list| to.overlaps(list))
        };
        let takes_any = rule.to.is_empty() && rule.to_lists.is_empty();
        if !takes_any && !rule.has_empty_list() && !inside() {
            reader
                .warn(span, format!("the rule never matches: its `to` lies outside that of `{}`", spec.name));
        }
        if !rule.tcp.is_empty() && !tcp.overlaps(&rule.tcp.iter().cloned().collect()) {
            reader.warn(
                span,
                format!("the rule never matches: its `tcp` lies outside that of `{}`", spec.name),
            );
        }
    }
}

/// Intercepts that an earlier one shadows.
pub fn intercepts(reader: &mut Reader<'_>, config: &Config, spans: &[InterceptSpans]) {
    let compiled = config.compile(0);
    let intercepts = compiled.intercepts();
    for (n, (later, spans)) in intercepts.iter().zip(spans).enumerate() {
        let earlier = intercepts[..n].iter().find(|earlier| {
            later.from.iter().all(|port| earlier.from.contains(port))
                && earlier.vlan.covers(&later.vlan)
                && earlier.to().covers(later.to())
                && earlier.tcp().covers(later.tcp())
        });
        if let Some(earlier) = earlier {
            let message =
                format!("takes nothing: `{}` at {} takes all that it would", earlier.name, earlier.origin);
            reader.warn(&spans.section, format!("intercept `{}` {message}", later.name));
        }
    }
}

/// Pools that no rule sends to.
pub fn pools(reader: &mut Reader<'_>, config: &Config, spans: &[Span]) {
    let rules = || config.intercepts.iter().flat_map(|intercept| &intercept.rules);
    for (id, (pool, span)) in (0..).zip(config.pools.iter().zip(spans)) {
        let sends = |action: Action| matches!(action, Action::Send(to) if to.0 == id);
        if !rules().any(|rule| sends(rule.action)) {
            reader.warn(span, format!("no rule sends to pool `{}`", pool.spec.name));
        }
    }
}
