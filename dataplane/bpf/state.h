/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * What every part of the program reads: configuration, ports, whether there is a sign of life; and the counters.
 */
#ifndef WEIR_STATE_H
#define WEIR_STATE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_CONFIG_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WEIR_OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Interface index -> port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} port_ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, WEIR_MAX_PORTS * WEIR_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} port_socks SEC(".maps");

/*
 * Device index -> the Ethernet address of the port, or of the sub-interface, in the low six bytes. Frames for others are not ours
 * to forward.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WEIR_MAX_LINKS);
	__type(key, __u32);
	__type(value, __u64);
} port_macs SEC(".maps");

static __always_inline int count(__u32 outcome, int action)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &outcome);

	if (counter)
		*counter += 1;
	return action;
}

static __always_inline __u64 config_of(__u32 slot)
{
	__u64 *value = bpf_map_lookup_elem(&config, &slot);

	return value ? *(volatile __u64 *)value : 0;
}

/* Whether the frame is for this port: promiscuous devices see those of others too. */
static __always_inline int is_for_us(struct xdp_md *ctx, __u32 ifindex)
{
	__u16 *mac = bpf_map_lookup_elem(&port_macs, &ifindex);
	void *data_end = (void *)(long)ctx->data_end;
	__u16 *dst = (void *)(long)ctx->data;

	if (!mac || (void *)(dst + 3) > data_end)
		return 1;
	return dst[0] == mac[0] && dst[1] == mac[1] && dst[2] == mac[2];
}

static __always_inline int is_alive(__u64 now)
{
	__u64 beat = config_of(WEIR_CONFIG_HEARTBEAT);

	/* A beat written after `now` was read is fresh. */
	return now <= beat || now - beat <= config_of(WEIR_CONFIG_LIMIT);
}

/*
 * Whether the dataplane, late as it is, may just have been kept from running for a moment: then what it translates must not
 * come to the kernel, which would end it with a RST. Who writes a heartbeat of 0 knows that no worker reads the sockets any more.
 */
static __always_inline int is_in_doubt(__u64 now)
{
	__u64 beat = config_of(WEIR_CONFIG_HEARTBEAT);

	return beat && now - beat <= config_of(WEIR_CONFIG_LIMIT) + config_of(WEIR_CONFIG_DOUBT);
}

#endif
