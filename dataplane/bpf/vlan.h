/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * VLANs of ports by their tags: each that the box has a sub-interface for is a link with a number of its own, like a port's.
 */
#ifndef WEIR_VLAN_H
#define WEIR_VLAN_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/* Made by user space alone. A device that has any has one without tags, too. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WEIR_MAX_LINKS + WEIR_MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weir_vlan_key);
	__type(value, struct weir_vlan);
} vlans SEC(".maps");

static __always_inline int is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

static __always_inline const struct weir_vlan *vlan_of(__u32 ifindex, __be16 outer, __u16 outer_id, __be16 inner,
						       __u16 inner_id)
{
	struct weir_vlan_key key = {
		.ifindex = ifindex,
		.outer = outer,
		.outer_id = outer_id,
		.inner = inner,
		.inner_id = inner_id,
	};

	return bpf_map_lookup_elem(&vlans, &key);
}

#endif
