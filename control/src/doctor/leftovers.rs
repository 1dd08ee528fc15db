//! Who else is weir here: another one that runs, or what one left that does no more.

use std::fs;
use std::io;

use rtnetlink::packet_route::rule::RuleMessage;

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use crate::host::lock::is_stopped;
use crate::host::rule::{SeenRoute, SeenRule};
use crate::host::sockets::is_listened_at;
use crate::host::{Closed, Instance, PUNT_TUN, RELAY_TUN, is_pinned, nft, spec::Family};

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    match (&ground.running, ground.holder) {
        (Some(status), _) => running(status, found),
        (None, Some(pid)) => other(ground, pid, found),
        (None, None) => {
            found.push(Finding::good("instance", "@weir", "no other weir runs in this network namespace"));
            admin_of_another(ground, found);
            leftovers(ground, found);
        }
    }
}

fn running(status: &serde_json::Value, found: &mut Findings) {
    let pid = &status["pid"];
    let before = found.findings.len();
    for reason in status["unhealthy"].as_array().into_iter().flatten().filter_map(|r| r.as_str()) {
        let so = Finding::bad("gateway", format!("process {pid}"), reason, "the running weir says so itself");
        found.push(so.by_hand(NoCommand::Weir));
    }
    for warning in status["warnings"].as_array().into_iter().flatten().filter_map(|w| w.as_str()) {
        let so =
            Finding::note("gateway", format!("process {pid}"), warning, "the running weir says so itself");
        found.push(so.by_hand(NoCommand::Nothing));
    }
    found.good_unless_found(
        before,
        Finding::good("gateway", format!("process {pid}"), "runs, and is content"),
    );
}

fn other(ground: &Ground<'_>, pid: i32, found: &mut Findings) {
    let admin = ground.config.gateway.admin.display();
    let named = Instance::read(&ground.paths.instance);
    let here = named.filter(|of| of.admin == ground.config.gateway.admin);
    let is_denied = || {
        let listens = is_listened_at(&ground.config.gateway.admin);
        listens.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    match here.and_then(|of| i32::try_from(of.pid).ok()) {
        Some(weir) if (pid == 0 || pid == weir) && is_denied() => {
            return found.skip(
                "gateway",
                format!("process {weir}"),
                "how the weir that runs is, only root may ask",
            );
        }
        Some(weir) if pid == weir => return hangs(pid, found),
        _ => {}
    }
    let who = if pid == 0 { "a process of another user".to_owned() } else { format!("process {pid}") };
    let finding = Finding::bad(
        "instance",
        "@weir",
        format!("another weir runs in this network namespace as {who}, and does not answer at {admin}"),
        "one network namespace has room for one weir: this configuration cannot be started beside it",
    );
    found.push(finding.mend_or((pid != 0).then(|| format!("kill {pid}")), NoCommand::Unseen));
}

/// The weir of this configuration does not answer.
fn hangs(pid: i32, found: &mut Findings) {
    let (how, command) = match is_stopped(pid) {
        true => ("is stopped (SIGSTOP), and does not answer", format!("kill -CONT {pid}")),
        false => ("hangs: it does not answer", format!("kill -KILL {pid}")),
    };
    let finding = Finding::bad(
        "gateway",
        format!("process {pid}"),
        format!("the running weir {how}"),
        "what it does not look at meanwhile is forwarded, or dropped where `fail = \"closed\"`; killed, it is to be started again",
    );
    found.push(finding.mend(command));
}

/// Somebody listens at the admin socket, and it is not a weir of this namespace.
fn admin_of_another(ground: &Ground<'_>, found: &mut Findings) {
    let admin = &ground.config.gateway.admin;
    match is_listened_at(admin) {
        Ok(true) => found.push(
            Finding::bad(
                "admin-socket",
                admin.display().to_string(),
                "somebody listens there, and it is no weir of this network namespace",
                "a weir that starts here refuses to take the place: name another `admin` in [gateway]",
            )
            .by_hand(NoCommand::Configuration),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            found.skip("admin-socket", admin.display().to_string(), "only root may ask there");
        }
        _ => match fs::symlink_metadata(admin) {
            Ok(meta) if !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => found.push(
                Finding::bad(
                    "admin-socket",
                    admin.display().to_string(),
                    "there is a file that is no socket",
                    "weir does not overwrite it and does not start: name another `admin` in [gateway], or remove it",
                )
                .by_hand(NoCommand::Configuration),
            ),
            _ => found.push(Finding::good("admin-socket", admin.display().to_string(), "the place is free")),
        },
    }
}

fn leftovers(ground: &Ground<'_>, found: &mut Findings) {
    let mut left = Vec::new();
    let rule = |(family, rule): &(Family, RuleMessage)| SeenRule::of(*family, rule);
    left.extend(ground.rules.iter().map(rule).filter(SeenRule::is_ours).map(|rule| rule.command("add")));
    let route = |(family, route): &(Family, _)| SeenRoute::of(*family, route);
    left.extend(ground.routes.iter().map(route).filter(SeenRoute::is_ours).map(|route| route.command("add")));
    let tuns = ground.links.iter().filter(|link| link.name == RELAY_TUN || link.name == PUNT_TUN);
    left.extend(tuns.map(|link| format!("the device {}", link.name)));
    if ground.paths.journal.exists() {
        left.push(format!("old values of sysctls in {}", ground.paths.journal.display()));
    }
    let table = nft::read();
    if table.as_ref().is_ok_and(|table| table.as_ref().is_some_and(nft::SeenTable::is_ours)) {
        left.push(format!("the nft table {}", nft::TABLE));
    }
    let pins = is_pinned(&ground.paths.pins);
    if pins {
        left.push(format!("pins in {}", ground.paths.pins.display()));
    }
    let subject = "this network namespace";
    let closed = Closed::of(&ground.links);
    if let (Closed::Unknown, Err(why)) = (closed, &table) {
        let what = "whether an earlier weir has left the box closed";
        found.skip("leftovers", subject, format!("{what} cannot be seen: {why}"));
        if left.is_empty() {
            return;
        }
    }
    found.push(if left.is_empty() {
        Finding::good("leftovers", subject, "nothing of an earlier weir is left")
    } else if closed == Closed::Yes {
        Finding::bad(
            "leftovers",
            subject,
            format!("a weir with fail = \"closed\" ended without being asked, or could not start; it left {}", left.join(", ")),
            "what it intercepted is dropped until weir runs again, or is cleaned away, which opens the box",
        )
        .mend("weir clean")
    } else {
        Finding::note(
            "leftovers",
            subject,
            format!("an earlier weir left {}", left.join(", ")),
            if pins {
                "it ended without being asked; connections of the express lane go on, and the next start takes them over"
            } else {
                "it ended without being asked; the next start removes it"
            },
        )
        .mend("weir clean")
    });
}
