/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The layout of the maps that the steering program and user space share. The only place where it is written in C;
 * dataplane/sys/src/steering/layout.rs mirrors it and asserts sizes and offsets. A change here is a change there, and
 * of WEIR_LAYOUT: pinned maps of another layout are not adopted.
 */
#ifndef WEIR_MAPS_H
#define WEIR_MAPS_H

#include <linux/types.h>

#define WEIR_LAYOUT 10

/* The layout since which express_hops, express_links and express_ports are as they are: programs of several layouts share them. */
#define WEIR_WAYS_LAYOUT 8

/* Ports of a box, queues of a port. port_socks is indexed port * WEIR_MAX_QUEUES + queue. */
#define WEIR_MAX_PORTS 32
#define WEIR_MAX_QUEUES 64

/* Ports and VLANs of them, which are numbered from WEIR_MAX_PORTS on. */
#define WEIR_MAX_LINKS 255

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
	WEIR_CONFIG_EXPRESS,		/* 1: flows in the express map take the express lane */
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
	WEIR_EXPRESS,
	WEIR_EXPRESS_ALONE,
	WEIR_EXPRESS_FLAGS,
	WEIR_EXPRESS_OPTIONS,
	WEIR_EXPRESS_HEADER,
	WEIR_EXPRESS_UNFINISHED,
	WEIR_EXPRESS_TTL,
	WEIR_EXPRESS_MTU,
	WEIR_EXPRESS_INGRESS,
	WEIR_EXPRESS_HOP,
	WEIR_EXPRESS_DROP,
	WEIR_EXPRESS_REPLACED,
	WEIR_EXPRESS_CHANGING,
	WEIR_EXPRESS_OVERTAKING,
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
	__u8 went_on;			/* something came behind the SYN */
	__u8 reserved[4];
};

/*
 * The express lane: flows that the program rewrites and sends on by itself. One entry per direction, by source and destination
 * as the packet has them when it comes in. Entries are made by user space only, and stay when it is gone.
 */
struct weir_express_key {
	struct weir_address src;
	struct weir_address dst;
	__u8 sport[2];			/* network order */
	__u8 dport[2];
};

/* What is done to a packet of the direction: `flags`. */
#define WEIR_EXPRESS_TO_CLIENT 1	/* `delta` is added to seq and `clock` to TSval; else to ack, SACK edges and TSecr */
#define WEIR_EXPRESS_READDRESS 2	/* addresses and ports are replaced */
#define WEIR_EXPRESS_TIMESTAMPS 4	/* there is a `clock` to add */
#define WEIR_EXPRESS_SACK_MAP 8		/* SACK blocks are moved by `delta` (to the server), those not beyond `floor` go */
#define WEIR_EXPRESS_SACK_REMOVE 16	/* SACK options become NOPs */
#define WEIR_EXPRESS_CLEAR_ECN 32	/* the receiver sees nothing of ECN */
#define WEIR_EXPRESS_TRANSLATED 64	/* the kernel cannot go on with the flow */
#define WEIR_EXPRESS_VOID 128		/* a connection that is over: the entry counts no more */

/*
 * A direction of a flow. Written whole by user space; the program writes `packets`, `bytes`, `last_seen`, `tick`, `ended`, `given`,
 * WEIR_EXPRESS_VOID and WEIR_EXPRESS_CHANGES. Numbers are in host order and are added modulo 2^32.
 *
 * What stands before `check`, the key, and the numbers of TO_CLIENT, TRANSLATED and VOID stay as they are from layout 8 on, whatever
 * else changes: so a version of weir with another layout can tell when the last flow of this one has ended
 * (dataplane/sys/src/steering/former.rs).
 */
struct weir_express {
	struct weir_address src;	/* of the packet when it goes out */
	struct weir_address dst;
	__u8 sport[2];			/* network order */
	__u8 dport[2];
	__u32 last_seen;		/* ktime, units of 2^30 ns */
	__u16 hop;			/* index in express_hops */
	__u8 flags;
	__u8 ended;			/* TCP's FIN and RST: sent on without the worker; FINs that this says it has had; WEIR_EXPRESS_SAID */
	__u32 check;			/* weir_express_check of the key: an entry may be reused while it is read */
	__u32 given;			/* while the flow changes over: when a packet was given to its worker last, ktime in units of 2^10 ns; 0: none was */
	__u8 worker;			/* and which worker that is */
	__u8 reserved[3];
	__u64 packets;
	__u64 bytes;			/* of payload */
	__u32 delta;
	__u32 clock;
	__u32 floor;			/* the first octet of the stream that is acknowledged */
	__u32 behind;			/* SACK edges so far before `floor`, and not further, are before it */
	__u16 tcp_change;		/* what new addresses and ports add to TCP's checksum, as in the packet */
	__u16 ip_change;		/* and new addresses to IPv4's */
	__u8 link;			/* where the packet has to come in: index in express_links; WEIR_EXPRESS_STANDBY, _STRAY, _CHANGES */
	__s8 shift;			/* of the window field: to the left, saturating; negative: to the right */
	__u16 tick;			/* when last_seen was last written: jiffies / 256; before the lane has it, packets that its worker got */
};

/* A way out. One word each, so that none is seen in halves. */
struct weir_express_hop {
	__u8 dst_mac[6];
	__u8 src_mac[6];
	__u16 mtu;			/* the largest IP packet, in octets */
	__u8 link;			/* index in express_links and in the device map express_ports */
	__u8 up;			/* 0: not known now: to the worker */
};

/*
 * What user space knows of a flow in the lane, for a process that takes it over: by the key of the direction to the server. The
 * program does not look at it.
 */
struct weir_express_note {
	__u64 created;			/* ktime, ns */
	__u64 bytes[2];			/* of payload, before the lane: to the server, to the client */
	__u32 packets[2];
	__u8 codes[8];			/* user space's own: verdict, cause and so on */
	__u8 lengths[4];		/* of the texts, which follow one another: name, ALPN names, rule; reserved */
	__u8 text[116];
};

#define WEIR_EXPRESS_HOPS 65536
#define WEIR_EXPRESS_LINKS 32
#define WEIR_EXPRESS_STANDBY 128	/* in `link`: the flow is its worker's, as long as there is one */
#define WEIR_EXPRESS_STRAY 64		/* in `link`: no worker knows the flow */
#define WEIR_EXPRESS_SAID 2		/* in `ended`: the worker has had a FIN that nobody had acknowledged yet; the program does not look at it */
#define WEIR_EXPRESS_CHANGES 32		/* in `link`: its worker may have packets in hand that came before */
#define WEIR_EXPRESS_UNFINISHED_SUMS 1	/* frames may come with checksums that a device was to finish */

/* A device of the lane. */
struct weir_express_link {
	__u32 ifindex;			/* 0: none */
	__u8 mac[6];			/* frames for other stations are not ours */
	__u8 flags;
	__u8 reserved;
};

/* The tags of a VLAN of a device: their EtherTypes as in the frame, 0: there is no inner one; and their numbers. */
struct weir_vlan_key {
	__u32 ifindex;
	__u16 outer;
	__u16 outer_id;
	__u16 inner;
	__u16 inner_id;
};

struct weir_vlan {
	__u32 link;			/* its number */
	__u32 ifindex;			/* of the kernel's sub-interface */
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
