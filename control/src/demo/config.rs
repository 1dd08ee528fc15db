//! The configuration that the demo runs: the built-in file, made to fit the number of workers.

use std::path::PathBuf;

use super::{DemoError, DemoOptions, gateway};
use crate::config::Mode;
use crate::lab::{LAN_DEVICE, Lab, WAN_DEVICE};

/// The file that the repository ships for the demo.
const BUILT_IN: &str = include_str!("../../../configs/demo.toml");

/// Returns the path of the configuration to run. The built-in one is written into the lab.
///
/// # Errors
/// [`DemoError::Config`] when there are fewer cores than workers, or the given file is not there.
pub(super) fn prepare(lab: &Lab, options: &DemoOptions) -> Result<PathBuf, DemoError> {
    if let Some(file) = &options.config {
        let unreadable = |error| DemoError::Config(format!("cannot read {}: {error}", file.display()));
        return file.canonicalize().map_err(unreadable);
    }
    let cores = std::thread::available_parallelism().map_or(1, |count| count.get());
    if options.workers == 0 || options.workers as usize > cores {
        let workers = options.workers;
        return Err(DemoError::Config(format!(
            "cannot run {workers} workers on {cores} cores: choose --workers from 1 to {cores}"
        )));
    }
    let mut text = with_workers(BUILT_IN, options.workers);
    if let Some(mode) = options.mode {
        text = with_mode(&text, mode);
    }
    if options.devices.is_some() {
        text = with_patience(&text);
    }
    gateway::install_config(lab, &text)
}

/// Gives both ports a `mode`, and takes as many of the lines of comment from the top: rules keep their lines.
fn with_mode(text: &str, mode: Mode) -> String {
    let mode = format!("mode = \"{}\"\n", mode.name());
    let text = [LAN_DEVICE, WAN_DEVICE].into_iter().fold(text.to_owned(), |text, device| {
        let line = format!("device = \"{device}\"\n");
        text.replacen(&line, &format!("{line}{mode}"), 1)
    });
    text.splitn(3, '\n').last().unwrap_or_default().to_owned()
}

/// A machine whose NICs are emulated stands still now and then, and what passes by meanwhile is not what a scenario is about.
fn with_patience(text: &str) -> String {
    let text = text.replacen("[gateway]\n", "[gateway]\nheartbeat = \"10s\"\n", 1);
    text.split_once('\n').map_or_else(String::new, |(_, rest)| rest.to_owned())
}

/// Puts `cores` into the section `[workers]`, in place of an empty line before it where there is one, so that
/// the lines of the rules, which reports show, stay those of the file in the repository.
fn with_workers(text: &str, workers: u32) -> String {
    let cores: Vec<String> = (0..workers).map(|core| core.to_string()).collect();
    let section = format!("[workers]\ncores = [{}]\n", cores.join(", "));
    match text.contains("\n\n[workers]\n") {
        true => text.replacen("\n\n[workers]\n", &format!("\n{section}"), 1),
        false => text.replacen("[workers]\n", &section, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_and_modes_are_put_in_without_moving_the_rules() {
        let text = with_workers(BUILT_IN, 2);
        let parsed: toml::Table = toml::from_str(&text).expect("still TOML");
        assert_eq!(parsed["workers"]["cores"].as_array().map(Vec::len), Some(2));
        let text = with_mode(&text, Mode::ZeroCopy);
        let text = with_patience(&text);
        let parsed: toml::Table = toml::from_str(&text).expect("still TOML");
        assert_eq!(parsed["gateway"]["heartbeat"].as_str(), Some("10s"));
        for port in 0..2 {
            assert_eq!(parsed["port"][port]["mode"].as_str(), Some("zero-copy"));
        }
        let rule = |text: &str| text.lines().position(|line| line.contains("denied.example"));
        assert_eq!(rule(&text), rule(BUILT_IN));
    }

    #[test]
    fn built_in_file_names_what_the_scenarios_ask_for() {
        use crate::demo::origin::{HTTP_PORT, HTTPS_PORTS, SERVER_FIRST_PORTS};
        use crate::demo::scenario::{
            ALLOWED_NAME, DENIED_NAME, GATEWAY_NAME, NGINX_NAME, NOBODY_NAME, SENT_NAME,
        };
        let relayed = [crate::lab::IPV4, crate::lab::IPV6].map(|family| family.other_client.to_string());
        let names = [DENIED_NAME, GATEWAY_NAME, NGINX_NAME, NOBODY_NAME, SENT_NAME];
        let devices = [crate::lab::LAN_DEVICE, crate::lab::WAN_DEVICE, &relayed[0], &relayed[1]];
        for needed in names.into_iter().chain(devices) {
            assert!(BUILT_IN.contains(needed), "{needed}");
        }
        assert!(!BUILT_IN.contains(ALLOWED_NAME));
        let parsed: toml::Table = toml::from_str(BUILT_IN).expect("TOML");
        for (intercept, handshake) in ["answer", "through"].into_iter().enumerate() {
            let intercept = &parsed["intercept"][intercept];
            assert_eq!(intercept["handshake"].as_str(), Some(handshake));
            let taken = intercept["tcp"].as_array().expect("ports");
            for port in [HTTPS_PORTS[0], HTTP_PORT, SERVER_FIRST_PORTS[0], SERVER_FIRST_PORTS[1]] {
                assert!(taken.contains(&i64::from(port).into()), "port {port}");
            }
        }
    }
}
