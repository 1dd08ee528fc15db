/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The layout of the maps that the steering program and user space share. The only place where it is written in C;
 * dataplane/sys/src/steering/layout.rs mirrors it and asserts sizes and offsets. A change here is a change there, and
 * of WEIR_LAYOUT: pinned maps of another layout are not adopted.
 */
#ifndef WEIR_MAPS_H
#define WEIR_MAPS_H

#include <linux/types.h>

#define WEIR_LAYOUT 5

/* Ports of a box, queues of a port. port_socks is indexed port * WEIR_MAX_QUEUES + queue. */
#define WEIR_MAX_PORTS 32
#define WEIR_MAX_QUEUES 64

/* Two generations of the intercepts: one is read by the program, the other written by control. */
#define WEIR_GENERATIONS 2

/* Slots of the array `config`, one word each, so that every one of them changes in one store. */
enum weir_config {
	WEIR_CONFIG_ENABLED = 0,	/* 0: everything passes */
	WEIR_CONFIG_HEARTBEAT,		/* ktime of the last sign of life, ns */
	WEIR_CONFIG_LIMIT,		/* a heartbeat older than this many ns is no sign of life */
	WEIR_CONFIG_CLOSED,		/* 1: without a sign of life, packets of an intercept are dropped */
	WEIR_CONFIG_GENERATION,		/* which generation of the intercepts holds: 0 or 1 */
	WEIR_CONFIG_RELAY_MASK,		/* intercepts whose handshake is `relay`, generation 0; 1 follows */
	WEIR_CONFIG_RELAY_MASK_1,
	WEIR_CONFIG_COOKIES,		/* whose SYNs are answered here: enum weir_cookie_state */
	WEIR_CONFIG_COOKIES_ALWAYS,	/* intercepts that answer with cookies always, generation 0; 1 follows */
	WEIR_CONFIG_COOKIES_ALWAYS_1,
	WEIR_CONFIG_COOKIES_AUTO,	/* intercepts that answer with cookies under pressure, generation 0; 1 follows */
	WEIR_CONFIG_COOKIES_AUTO_1,
	WEIR_CONFIG_COOKIES_REDIRECTED,	/* ports whose answers go out as redirected frames, one bit each */
	WEIR_CONFIG_DOUBT,		/* for so many ns beyond the limit the dataplane may come back; not at a heartbeat of 0 */
	WEIR_CONFIG_TRANSLATED,		/* intercepts whose connections the kernel cannot go on with, generation 0; 1 follows */
	WEIR_CONFIG_TRANSLATED_1,
	WEIR_CONFIG_SLOTS
};

/* What became of a packet: the slots of the per-CPU array `counters`. Each packet moves exactly one. */
enum weir_outcome {
	WEIR_NOT_IP = 0,
	WEIR_VLAN,
	WEIR_MALFORMED,
	WEIR_NOT_TCP,
	WEIR_OWN_ADDRESS,
	WEIR_DISABLED,
	WEIR_STALE_PASS,
	WEIR_STALE_DROP,
	WEIR_KERNEL_FLOW,
	WEIR_NO_INTERCEPT,
	WEIR_UNKNOWN_PORT,
	WEIR_NO_SOCKET_PASS,
	WEIR_NO_SOCKET_DROP,
	WEIR_REDIRECT,
	WEIR_REDIRECT_FRAGMENT,
	WEIR_OTHER_HOST,
	WEIR_NESTED_TAG_DROP,
	WEIR_REDIRECT_POOL,
	WEIR_REDIRECT_GATEWAY,
	WEIR_REDIRECT_ICMP,
	WEIR_COOKIE,
	WEIR_COOKIE_FAILED,
	WEIR_DOUBT_DROP,
	WEIR_OUTCOMES
};

/* Whose SYNs the program answers with cookies: nobody's, those of `always`, those of `auto` too. */
enum weir_cookie_state {
	WEIR_COOKIES_OFF = 0,
	WEIR_COOKIES_FOR_ALWAYS,
	WEIR_COOKIES_FOR_ALL
};

/* Slots of the per-CPU array `syns`: those that could be answered here; then, by port, those that were. */
#define WEIR_SYNS_SEEN 0
#define WEIR_SYNS_ANSWERED 1
#define WEIR_SYNS_SLOTS (WEIR_SYNS_ANSWERED + WEIR_MAX_PORTS)

/* Keys of two periods. */
#define WEIR_COOKIE_KEYS 2

/* What cookies of one period are made with, and what is promised with them. Words as SipHash reads them. */
struct weir_cookies {
	__u64 period;
	__u64 key[2];
	__u64 clock[2];
	__u16 mss4;
	__u16 mss6;
	__u16 window;
	__u16 reserved;
};

/* Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. */
struct weir_address {
	__u8 bytes[16];
};

/* A flow: its two endpoints, the lower one (address, then port, as byte strings) first: both directions are one key. */
struct weir_flow_key {
	struct weir_address low;
	struct weir_address high;
	__u8 low_port[2];		/* network order */
	__u8 high_port[2];
};

/* Bytes, not bits: two CPUs may see the two directions at once, and plain stores do not undo one another. */
struct weir_flow {
	__u64 last_seen;		/* ktime, ns */
	__u8 fin_from_low;
	__u8 fin_from_high;
	__u8 rst;
	__u8 reserved[5];
};

/* The endpoint of a pool's server; with port 0 its address, for what has no ports. */
struct weir_pool_key {
	struct weir_address address;
	__u8 port[2];			/* network order */
};

#define WEIR_POOL_GATEWAY 1		/* the gateway is the source, from the ports `first` to `last` */
#define WEIR_POOL_ADDRESS 2		/* the entry is of the address */

struct weir_pool_server {
	__u32 flags;
	__u16 first;
	__u16 last;
};

/* Keys of the longest-prefix tries; the value is a __u64 with one bit per intercept, or 0: the prefix is the box's own. */
struct weir_prefix4 {
	__u32 length;
	__u8 bytes[4];
};

struct weir_prefix6 {
	__u32 length;
	__u8 bytes[16];
};

/* Per TCP port or per ingress port: one bit per intercept, both generations. */
struct weir_bits {
	__u64 of[WEIR_GENERATIONS];
};

#endif
