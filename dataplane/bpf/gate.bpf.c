// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * The gate of the relay's listeners: a program of their SO_REUSEPORT group. While the relay's threads live it leaves the choice
 * among the listeners to the kernel. Without a sign of life it drops the listener from the lookup, not the packet: nft's tproxy then
 * finds none and ends its rule, and the SYN is forwarded (or, on a box that fails closed, meets the rule that drops it). Else the
 * kernel would complete handshakes on behalf of a process that hangs.
 *
 * Loaded and fed by dataplane/sys/src/gate.rs, which names the same slots.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum weir_gate {
	WEIR_GATE_SIGN = 0,	/* ktime of the last sign of life, ns */
	WEIR_GATE_LIMIT,	/* a sign older than this many ns is none */
	WEIR_GATE_PASSED_BY,	/* lookups that found the gate closed */
	WEIR_GATE_SLOTS
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_GATE_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} gate SEC(".maps");

SEC("sk_reuseport")
int weir_gate(struct sk_reuseport_md *md)
{
	__u32 sign_slot = WEIR_GATE_SIGN, limit_slot = WEIR_GATE_LIMIT, passed_slot = WEIR_GATE_PASSED_BY;
	__u64 *sign = bpf_map_lookup_elem(&gate, &sign_slot);
	__u64 *limit = bpf_map_lookup_elem(&gate, &limit_slot);
	__u64 *passed_by = bpf_map_lookup_elem(&gate, &passed_slot);
	__u64 now = bpf_ktime_get_ns(), last;

	(void)md;
	if (!sign || !limit || !passed_by)
		return SK_PASS;
	last = *(volatile __u64 *)sign;
	/* A sign written after `now` was read is fresh. */
	if (now <= last || now - last <= *limit)
		return SK_PASS;
	__sync_fetch_and_add(passed_by, 1);
	return SK_DROP;
}

char weir_license[] SEC("license") = "Dual MIT/GPL";
