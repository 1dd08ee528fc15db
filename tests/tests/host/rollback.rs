//! A step that fails takes everything back: what was not there, and what was there of an earlier configuration.

use weir_control::host::{Host, HostError, HostSpec, Step};

use crate::space::{assert_same, dump, gateway, host, isolated, sh, spec};

/// Other numbers than [`spec`]'s, and other intercepts.
pub fn other() -> HostSpec {
    let mut other = spec();
    (other.mark, other.mask, other.table, other.priority, other.listen) = (0x1000, 0xf000, 1000, 999, 4000);
    other.intercepts.remove(0);
    other.gateway_source = true;
    other
}

/// Applies, and lets the step with this number fail. None when there are not so many.
fn fail_at(spec: &HostSpec, number: usize) -> Option<String> {
    let mut asked = 0;
    let mut chosen = |step: &Step| {
        asked += 1;
        if asked > number {
            return Err(HostError::Kernel(format!("injected at {}", step.action.title())));
        }
        Ok(true)
    };
    host(async |h: &Host| h.apply_chosen(spec, &mut chosen).await).err().map(|error| error.to_string())
}

/// Lets every step fail in turn; how many there were. Afterwards `spec` is applied.
fn every_step(spec: &HostSpec) -> usize {
    let before = dump();
    for number in 0.. {
        match fail_at(spec, number) {
            Some(error) => {
                assert!(error.starts_with("injected at "), "more than the injection: {error}");
                assert_same(&before, &dump());
            }
            None => return number,
        }
    }
    unreachable!("the steps end")
}

isolated! {
    fn any_step_failing_on_a_bare_host_leaves_it_as_it_was() {
        gateway();
        sh("sysctl -qw net.ipv4.conf.all.src_valid_mark=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.wan.forwarding=1 net.ipv6.conf.wan.forwarding=1");
        let steps = every_step(&spec());
        assert!(steps >= 12, "{steps}");
        host(async |h| h.remove().await).unwrap();
    }
}

isolated! {
    fn any_step_failing_between_two_configurations_leaves_the_first() {
        gateway();
        let bare = dump();
        host(async |h| h.apply(&spec()).await).unwrap();
        let first = dump();
        // Among them the replacement of the table, and the removal of the first one's rules and routes.
        let steps = every_step(&other());
        assert!(steps >= 9, "{steps}");
        host(async |h| h.apply(&spec()).await).unwrap();
        let text = |dump: &str| dump.split("# find /run").next().unwrap().replace("counter packets 0 bytes 0", "counter");
        assert_same(&text(&first), &text(&dump()));
        host(async |h| h.remove().await).unwrap();
        assert_same(&bare, &dump());
    }
}

isolated! {
    fn step_refused_by_the_kernel_itself_leaves_the_first_configuration() {
        gateway();
        host(async |h| h.apply(&spec()).await).unwrap();
        let before = dump();
        // The folder of the journal cannot be written: the step after the address fails in earnest.
        sh("ip link set lo down && ip -6 rule del priority 1077 && ip -6 route flush table 177");
        let broken = dump();
        let error = host(async |h| h.apply(&other()).await).unwrap_err().to_string();
        assert!(error.contains("run `ip link set lo up`"), "{error}");
        assert_same(&broken, &dump());
        assert_ne!(before, broken);
    }
}

/// Applies; the error. The host is as it was.
fn refused() -> String {
    let before = dump();
    let error = host(async |h| h.apply(&spec()).await).unwrap_err().to_string();
    assert_same(&before, &dump());
    error
}

isolated! {
    fn sysctl_that_cannot_be_written_leaves_neither_a_value_nor_a_journal() {
        gateway();
        sh("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
        let error = refused();
        assert!(error.starts_with("`sysctl -w net.") && error.contains("Read-only"), "{error}");
    }
}

isolated! {
    fn journal_that_cannot_be_completed_takes_the_value_back() {
        gateway();
        // Room for the first draft, which is before the value, and not for the second, which tells what the kernel made of it.
        sh("mkdir -p /run/weir && mount -t tmpfs -o size=4k tmpfs /run/weir");
        // The first of the steps with something to tell is that of IPv4, and then that of IPv6.
        for (forwarding, first) in [("ipv4/ip_forward", "true"), ("ipv6/conf/all/forwarding", "sysctl -qw net.ipv4.ip_forward=1")] {
            sh(first);
            let error = refused();
            assert!(error.contains("No space left on device"), "{error}");
            assert_eq!(sh(&format!("cat /proc/sys/net/{forwarding}; ls /run/weir")), "0\n");
        }
        sh("umount /run/weir");
        host(async |h| h.apply(&spec()).await).unwrap();
        host(async |h| h.remove().await).unwrap();
    }
}
