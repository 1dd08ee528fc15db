/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Addresses that the box has got this moment: the kernel knows them before user space has heard of them and has written them
 * into own_addresses. So a SYN of an intercept is looked up in the kernel's routes before it goes to a worker.
 */
#ifndef WEIR_LOCAL_H
#define WEIR_LOCAL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"

#define AF_INET 2
#define AF_INET6 10
#define RT_TABLE_MAIN 254
/* Headers before those of Linux 6.6 have neither this flag nor the member `tbid`, which is where the VLAN's two are. */
#define FIB_LOOKUP_TBID (1U << 3)

static __always_inline int route_of(struct xdp_md *ctx, const struct packet *packet, __u32 table)
{
	struct bpf_fib_lookup route = {
		.family = packet->ipv6 ? AF_INET6 : AF_INET,
		.l4_protocol = 6,
		.ifindex = packet->ifindex,
	};

	__builtin_memcpy(&route.sport, packet->sport, 2);
	__builtin_memcpy(&route.dport, packet->dport, 2);
	if (packet->ipv6) {
		__builtin_memcpy(route.ipv6_src, packet->src.bytes, 16);
		__builtin_memcpy(route.ipv6_dst, packet->dst.bytes, 16);
	} else {
		__builtin_memcpy(&route.ipv4_src, &packet->src.bytes[12], 4);
		__builtin_memcpy(&route.ipv4_dst, &packet->dst.bytes[12], 4);
	}
	if (!table)
		return bpf_fib_lookup(ctx, &route, sizeof(route), 0);
	__builtin_memcpy(&route.h_vlan_proto, &table, 4);
	return bpf_fib_lookup(ctx, &route, sizeof(route), BPF_FIB_LOOKUP_DIRECT | FIB_LOOKUP_TBID);
}

/*
 * Whether the kernel delivers the packet to the box. It says NOT_FWDED of that (net/core/filter.c, bpf_ipv4_fib_lookup), but of
 * a destination without a route too, which an intercept may well have. So the table of all that is elsewhere is asked as
 * well: what it has a way to, and is not forwarded all the same, is in the table `local`. An older kernel does not know
 * of tables: there user space has to be first, as it nearly always is.
 */
static __noinline int is_delivered(struct xdp_md *ctx, const struct packet *packet)
{
	int found;

	if (!packet || route_of(ctx, packet, 0) != BPF_FIB_LKUP_RET_NOT_FWDED)
		return 0;
	found = route_of(ctx, packet, RT_TABLE_MAIN);
	return found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH ||
	       found == BPF_FIB_LKUP_RET_UNSUPP_LWT;
}

#endif
