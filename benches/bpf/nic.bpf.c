// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * What `weir-bench nic` receives: packets from its own source networks or to its own destination networks go to AF_XDP, by the queue that
 * they came in on; everything else is the host's. Loaded and fed by src/nic/program.rs.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_QUEUES 64

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");

/* Test packets that came in, by queue: also those that found no room further on. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u64);
} arrived SEC(".maps");

/* 198.18.0.0/15 (RFC 2544) and 2001:2::/48 (RFC 5180), as destination. */
static __always_inline int is_test(const __u8 *data, const __u8 *end)
{
	__u16 kind;

	if (data + ETH_HLEN + 20 > end)
		return 0;
	kind = *(__u16 *)(data + 2 * ETH_ALEN);
	if (kind == bpf_htons(ETH_P_IP))
		return data[ETH_HLEN + 16] == 198 && (data[ETH_HLEN + 17] & 0xfe) == 18;
	if (kind != bpf_htons(ETH_P_IPV6) || data + ETH_HLEN + 40 > end)
		return 0;
	return *(__u32 *)(data + ETH_HLEN + 24) == bpf_htonl(0x20010002) && !*(__u16 *)(data + ETH_HLEN + 28);
}

SEC("xdp")
int nic(struct xdp_md *ctx)
{
	__u32 queue = ctx->rx_queue_index;
	__u64 *count;

	if (!is_test((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		return XDP_PASS;
	count = bpf_map_lookup_elem(&arrived, &queue);
	if (count)
		*count += 1;
	return bpf_redirect_map(&xsks_map, queue, XDP_PASS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
