/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The express lane: packets of flows whose verdict has fallen are rewritten here and sent on, without the worker.
 */
#ifndef WEIR_EXPRESS_H
#define WEIR_EXPRESS_H

#include "maps.h"
#include "parse.h"

/* By direction; sized when it is loaded. Memory is used as far as there are entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weir_express_key);
	__type(value, struct weir_express);
} express_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_EXPRESS_HOPS);
	__type(key, __u32);
	__type(value, struct weir_express_hop);
} express_hops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_EXPRESS_LINKS);
	__type(key, __u32);
	__type(value, struct weir_express_link);
} express_links SEC(".maps");

/* The same devices, as the way out: interface index, and no program. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, WEIR_EXPRESS_LINKS);
	__type(key, __u32);
	__type(value, __u64);
} express_ports SEC(".maps");

#endif
