// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * The steering program: which road a packet takes. It runs on every port, before the kernel's stack, and answers PASS
 * (the kernel's road), REDIRECT (the AF_XDP worker of this port and queue) or, for a box that fails closed, DROP.
 *
 * It reads headers and changes nothing in the packet, but for the express lane, and for SYNs that it answers itself under a
 * flood (TX; cookie.h).
 * The order is that of `weir_steer` at the end of this file:
 *
 *  - a plain segment of a flow in the express lane: rewritten and redirected, without a sign of life too (express.h);
 *  - of a flow for which the lane stands by: to its worker; without one as above;
 *  - of a flow in a lane that a weir of another layout has left: to the program of that one (express_next);
 *  - neither TCP nor an ICMP error that quotes TCP: PASS;
 *  - to the box itself, but for answers of a pool's server to the ports that connections to it are made from: PASS;
 *  - not enabled, or without a sign of life: PASS, or DROP on a box that fails closed; while it is not clear that the
 *    process is gone, DROP for what it translates, which will be sent again;
 *  - of a flow that was given to the kernel: PASS;
 *  - a SYN of an intercept to an address that the box has got this moment: PASS (local.h);
 *  - a SYN of an intercept that answers with cookies, while there are too many for the worker: TX;
 *  - of an intercept, from a pool's server, or an error about such a packet: to the worker. All others: PASS.
 *
 * Loaded and fed by dataplane/sys/src/steering; the table of packets in steering/tests is its specification.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "state.h"
#include "parse.h"
#include "cookie.h"
#include "express.h"
#include "local.h"

/* The layout that dataplane/sys/src/steering/layout.rs asserts as well. */
_Static_assert(sizeof(struct weir_address) == 16, "address");
_Static_assert(sizeof(struct weir_flow_key) == 36, "flow key");
_Static_assert(__builtin_offsetof(struct weir_flow_key, high) == 16, "flow key");
_Static_assert(__builtin_offsetof(struct weir_flow_key, low_port) == 32, "flow key");
_Static_assert(__builtin_offsetof(struct weir_flow_key, high_port) == 34, "flow key");
_Static_assert(sizeof(struct weir_flow) == 16, "flow");
_Static_assert(__builtin_offsetof(struct weir_flow, fin_from_low) == 8, "flow");
_Static_assert(__builtin_offsetof(struct weir_flow, fin_from_high) == 9, "flow");
_Static_assert(__builtin_offsetof(struct weir_flow, rst) == 10, "flow");
_Static_assert(__builtin_offsetof(struct weir_flow, went_on) == 11, "flow");
_Static_assert(sizeof(struct weir_pool_key) == 18, "pool key");
_Static_assert(__builtin_offsetof(struct weir_pool_key, port) == 16, "pool key");
_Static_assert(sizeof(struct weir_pool_server) == 8, "pool server");
_Static_assert(__builtin_offsetof(struct weir_pool_server, first) == 4, "pool server");
_Static_assert(__builtin_offsetof(struct weir_pool_server, last) == 6, "pool server");
_Static_assert(sizeof(struct weir_cookies) == 48, "cookies");
_Static_assert(__builtin_offsetof(struct weir_cookies, clock) == 24, "cookies");
_Static_assert(__builtin_offsetof(struct weir_cookies, window) == 44, "cookies");
_Static_assert(sizeof(struct weir_express_key) == 36, "express key");
_Static_assert(sizeof(struct weir_express) == 96, "express");
_Static_assert(__builtin_offsetof(struct weir_express, src) == 0, "express: for good");
_Static_assert(__builtin_offsetof(struct weir_express, sport) == 32, "express: for good");
_Static_assert(__builtin_offsetof(struct weir_express, last_seen) == 36, "express: for good");
_Static_assert(__builtin_offsetof(struct weir_express, hop) == 40, "express: for good");
_Static_assert(__builtin_offsetof(struct weir_express, flags) == 42, "express: for good");
_Static_assert(__builtin_offsetof(struct weir_express, ended) == 43, "express: for good");
_Static_assert(__builtin_offsetof(struct weir_express, check) == 44, "express");
_Static_assert(__builtin_offsetof(struct weir_express, packets) == 56, "express");
_Static_assert(__builtin_offsetof(struct weir_express, tick) == 94, "express");
_Static_assert(sizeof(struct weir_express_note) == 160, "express note");
_Static_assert(__builtin_offsetof(struct weir_express_note, codes) == 32, "express note");
_Static_assert(__builtin_offsetof(struct weir_express_note, text) == 44, "express note");
_Static_assert(sizeof(struct weir_express_hop) == 16, "express hop");
_Static_assert(sizeof(struct weir_express_link) == 12, "express link");
_Static_assert(sizeof(struct weir_prefix4) == 8, "prefix");
_Static_assert(sizeof(struct weir_prefix6) == 20, "prefix");
_Static_assert(sizeof(struct weir_vlan_key) == 12, "vlan key");
_Static_assert(__builtin_offsetof(struct weir_vlan_key, inner) == 8, "vlan key");
_Static_assert(sizeof(struct weir_vlan) == 8, "vlan");
_Static_assert(sizeof(struct weir_bits) == 16, "bits");
_Static_assert(WEIR_CONFIG_RELAY_MASK_1 == WEIR_CONFIG_RELAY_MASK + 1, "relay masks");
_Static_assert(WEIR_CONFIG_COOKIES_ALWAYS_1 == WEIR_CONFIG_COOKIES_ALWAYS + 1, "cookie masks");
_Static_assert(WEIR_CONFIG_COOKIES_AUTO_1 == WEIR_CONFIG_COOKIES_AUTO + 1, "cookie masks");

/* Addresses of this box: never intercepted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weir_address);
	__type(value, __u32);
} own_addresses SEC(".maps");

/*
 * libbpf, inside the afxdp crate, looks among the attached program's maps for this name and writes the new socket at
 * index `queue`. With one program on several ports those entries collide, so nothing reads this map: see port_socks.
 */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, WEIR_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");

/* Flows that were given to the kernel. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct weir_flow_key);
	__type(value, struct weir_flow);
} kernel_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weir_prefix4);
	__type(value, __u64);
} prefixes4_0 SEC(".maps"), prefixes4_1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weir_prefix6);
	__type(value, __u64);
} prefixes6_0 SEC(".maps"), prefixes6_1 SEC(".maps");

/* Servers that connections are given to. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weir_pool_key);
	__type(value, struct weir_pool_server);
} pool_servers SEC(".maps");

/* TCP port -> intercepts. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct weir_bits);
} tcp_ports SEC(".maps");

/* Ingress port, or VLAN of one -> intercepts whose clients are there. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_MAX_LINKS);
	__type(key, __u32);
	__type(value, struct weir_bits);
} from_ports SEC(".maps");

/* Eight octets as a number: the first is the highest. */
static __always_inline __u64 be_word(const __u8 *bytes)
{
	__u64 word;

	__builtin_memcpy(&word, bytes, 8);
	return bpf_be64_to_cpu(word);
}

/* Whether the endpoint (a, a_port) sorts before (b, b_port). */
static __always_inline int is_lower(const struct weir_address *a, const __u8 *a_port, const struct weir_address *b,
				    const __u8 *b_port)
{
	__u64 x = be_word(a->bytes), y = be_word(b->bytes);

	if (x == y) {
		x = be_word(a->bytes + 8);
		y = be_word(b->bytes + 8);
	}
	if (x == y) {
		x = a_port[0] << 8 | a_port[1];
		y = b_port[0] << 8 | b_port[1];
	}
	return x < y;
}

/* The packet's flow in that map. Returns whether the packet comes from the lower end. */
static __always_inline int key_of(const struct packet *packet, struct weir_flow_key *key)
{
	int from_low = is_lower(&packet->src, packet->sport, &packet->dst, packet->dport);

	if (from_low) {
		key->low = packet->src;
		key->high = packet->dst;
		__builtin_memcpy(key->low_port, packet->sport, 2);
		__builtin_memcpy(key->high_port, packet->dport, 2);
	} else {
		key->low = packet->dst;
		key->high = packet->src;
		__builtin_memcpy(key->low_port, packet->dport, 2);
		__builtin_memcpy(key->high_port, packet->sport, 2);
	}
	return from_low;
}

/* What is known of the packet's flow when it was given to the kernel. `from_low`: which end sent the packet. */
static __always_inline struct weir_flow *kernel_flow_of(const struct packet *packet, int *from_low)
{
	struct weir_flow_key key;

	*from_low = key_of(packet, &key);
	return bpf_map_lookup_elem(&kernel_flows, &key);
}

/* Whether the packet's flow was given to the kernel. If so, notes that it lives; an error about it is no sign of that. */
static __always_inline int is_kernel_flow(const struct packet *packet, __u64 now)
{
	struct weir_flow *flow;
	int from_low;

	if (packet->addresses_only)
		return 0;
	flow = kernel_flow_of(packet, &from_low);
	if (!flow)
		return 0;
	if (packet->quoted)
		return 1;
	flow->last_seen = now;
	if (packet->rst)
		flow->rst = 1;
	else
		flow->went_on = 1;
	if (packet->fin && from_low)
		flow->fin_from_low = 1;
	if (packet->fin && !from_low)
		flow->fin_from_high = 1;
	return 1;
}

/* A connection that begins while the dataplane is late is the kernel's, and so is what follows. */
static __always_inline void note_kernel_flow(const struct packet *packet, __u64 now)
{
	struct weir_flow flow = { .last_seen = now };
	struct weir_flow_key key;

	key_of(packet, &key);
	bpf_map_update_elem(&kernel_flows, &key, &flow, BPF_ANY);
}

/* Intercepts among whose destinations this address is. `own`: whether it is in a prefix of the box. */
static __always_inline __u64 bits_of_address(const struct packet *packet, const struct weir_address *address,
					     __u32 generation, int *own)
{
	__u64 *bits;

	if (packet->ipv6) {
		struct weir_prefix6 key = { .length = 128 };

		__builtin_memcpy(key.bytes, address->bytes, 16);
		bits = generation ? bpf_map_lookup_elem(&prefixes6_1, &key)
				  : bpf_map_lookup_elem(&prefixes6_0, &key);
	} else {
		struct weir_prefix4 key = { .length = 32 };

		__builtin_memcpy(key.bytes, &address->bytes[12], 4);
		bits = generation ? bpf_map_lookup_elem(&prefixes4_1, &key)
				  : bpf_map_lookup_elem(&prefixes4_0, &key);
	}
	*own = bits && !*bits;
	return bits ? *bits : 0;
}

static __always_inline __u64 bits_of_tcp_port(const __u8 *port, __u32 generation)
{
	__u32 index = port[0] << 8 | port[1];
	struct weir_bits *bits = bpf_map_lookup_elem(&tcp_ports, &index);

	return bits ? bits->of[generation] : 0;
}

static __always_inline __u64 bits_from(__u32 port, __u32 generation)
{
	struct weir_bits *bits = bpf_map_lookup_elem(&from_ports, &port);

	return bits ? bits->of[generation] : 0;
}

/*
 * Whether the fast road takes packets with these intercept bits. The first intercept (lowest bit) that matches decides;
 * where not all that it is chosen by is known, any that is not for the relay will do.
 */
static __always_inline int is_for_fast_road(__u64 bits, __u64 relay, int any)
{
	if (any)
		return (bits & ~relay) != 0;
	return (bits & -bits & ~relay) != 0;
}

/* The pool's server at this endpoint or, of a packet without ports, at this address. */
static __always_inline struct weir_pool_server *server_at(const struct packet *packet,
							  const struct weir_address *address, const __u8 *port)
{
	struct weir_pool_key key = { .address = *address };
	struct weir_pool_server *server;

	if (!packet->addresses_only)
		__builtin_memcpy(key.port, port, 2);
	server = bpf_map_lookup_elem(&pool_servers, &key);
	/* Port 0 in a packet is no endpoint of a server. */
	if (!server || !(server->flags & WEIR_POOL_ADDRESS) != !packet->addresses_only)
		return 0;
	return server;
}

/*
 * Whether a packet to the box is of a connection that the fast road makes in the gateway's name: from the server of a
 * pool that is reached so, to one of the ports kept for that. Or an error about a packet of such a connection.
 */
static __always_inline int is_for_gateway(const struct packet *packet)
{
	const struct weir_address *address = packet->quoted ? &packet->dst : &packet->src;
	const __u8 *server_port = packet->quoted ? packet->dport : packet->sport;
	const __u8 *own_port = packet->quoted ? packet->sport : packet->dport;
	struct weir_pool_server *server;
	__u32 port = own_port[0] << 8 | own_port[1];

	if (packet->addresses_only || packet->opens)
		return 0;
	server = server_at(packet, address, server_port);
	return server && server->flags & WEIR_POOL_GATEWAY && port >= server->first && port <= server->last;
}

/*
 * What becomes of the packet: client->server (from the client's port) or server->client of an intercept, from the server
 * of a pool, for the gateway's own connections. `own`: it is to the box and for the gateway. An error comes in by another
 * port than the packet that it quotes, so that it may be of any intercept.
 */
static __always_inline __u32 outcome_of(struct packet *packet, __u32 port, int own)
{
	__u32 generation = config_of(WEIR_CONFIG_GENERATION) & 1;
	__u64 relay = config_of(WEIR_CONFIG_RELAY_MASK + generation);
	int own_src, own_dst, any = packet->addresses_only || packet->quoted;
	__u64 to_server = bits_of_address(packet, &packet->dst, generation, &own_dst);
	__u64 to_client = bits_of_address(packet, &packet->src, generation, &own_src);

	if (!own && (packet->quoted ? own_src : own_dst)) {
		if (!is_for_gateway(packet))
			return packet->quoted ? WEIR_NOT_TCP : WEIR_OWN_ADDRESS;
		own = 1;
	}
	packet->translated = 1;
	if (own)
		return packet->quoted ? WEIR_REDIRECT_ICMP : WEIR_REDIRECT_GATEWAY;
	if (!packet->quoted)
		to_server &= bits_from(port, generation);
	if (!packet->addresses_only) {
		to_server &= bits_of_tcp_port(packet->dport, generation);
		to_client &= bits_of_tcp_port(packet->sport, generation);
	}
	packet->intercepts = to_server;
	packet->translated = (((to_server & -to_server) | to_client) & config_of(WEIR_CONFIG_TRANSLATED + generation)) != 0;
	if (is_for_fast_road(to_server, relay, any) || is_for_fast_road(to_client, relay, any))
		return packet->quoted ? WEIR_REDIRECT_ICMP :
		       packet->addresses_only ? WEIR_REDIRECT_FRAGMENT : WEIR_REDIRECT;
	packet->translated = 1;
	/* A server opens no connections: its SYN is of something else. */
	if (!packet->opens && server_at(packet, &packet->src, packet->sport))
		return packet->quoted ? WEIR_REDIRECT_ICMP :
		       packet->addresses_only ? WEIR_REDIRECT_FRAGMENT : WEIR_REDIRECT_POOL;
	if (!packet->quoted)
		return WEIR_NO_INTERCEPT;
	return server_at(packet, &packet->dst, packet->dport) ? WEIR_REDIRECT_ICMP : WEIR_NOT_TCP;
}

static __always_inline int is_redirect(__u32 outcome)
{
	return outcome == WEIR_REDIRECT || outcome == WEIR_REDIRECT_FRAGMENT || outcome == WEIR_REDIRECT_POOL ||
	       outcome == WEIR_REDIRECT_GATEWAY || outcome == WEIR_REDIRECT_ICMP;
}

static __always_inline void count_syn(__u32 slot)
{
	__u64 *counter = bpf_map_lookup_elem(&syns, &slot);

	if (counter)
		*counter += 1;
}

/*
 * Whether the SYN is one that is answered here now: of an intercept that answers so, and of no flow that the kernel map
 * knows, whose entry the worker has to remove. Counts those that could be.
 */
static __always_inline int is_for_cookie(const struct packet *packet)
{
	__u32 generation = config_of(WEIR_CONFIG_GENERATION) & 1;
	__u64 always = config_of(WEIR_CONFIG_COOKIES_ALWAYS + generation);
	__u64 automatic = config_of(WEIR_CONFIG_COOKIES_AUTO + generation);
	__u64 state, first;
	int from_low;

	if (!packet->opens || packet->addresses_only || packet->quoted)
		return 0;
	first = packet->intercepts & -packet->intercepts;
	if (!(first & (always | automatic)))
		return 0;
	count_syn(WEIR_SYNS_SEEN);
	state = config_of(WEIR_CONFIG_COOKIES);
	if (state == WEIR_COOKIES_OFF || (state == WEIR_COOKIES_FOR_ALWAYS && !(first & always)))
		return 0;
	return !kernel_flow_of(packet, &from_low);
}

/*
 * The way out for an answer. A veth device wakes its peer for what is redirected to it, but for XDP_TX only if the peer has an
 * XDP program (drivers/net/veth.c, veth_xdp_flush).
 */
static __always_inline int send_back(__u32 ifindex, __u32 port)
{
	__u64 redirected = config_of(WEIR_CONFIG_COOKIES_REDIRECTED);

	return redirected >> (port & 63) & 1 ? bpf_redirect(ifindex, 0) : XDP_TX;
}

/* What becomes of a packet that has been read. Not static, as the parsers are not, and for the same reason. */
__noinline int steer(struct xdp_md *ctx, struct packet *packet)
{
	__u32 ifindex = ctx->ingress_ifindex, outcome;
	__u64 closed, now;
	__u32 *port, slot;
	int action, alive, doubt, own;

	if (!packet)
		return XDP_PASS;
	own = bpf_map_lookup_elem(&own_addresses, packet->quoted ? &packet->src : &packet->dst) != 0;
	if (own && !is_for_gateway(packet))
		return count(packet->quoted ? WEIR_NOT_TCP : WEIR_OWN_ADDRESS, XDP_PASS);
	if (!config_of(WEIR_CONFIG_ENABLED))
		return count(WEIR_DISABLED, XDP_PASS);

	/* What fails closed is traffic. Errors are none, and those about the kernel's flows must not be missed. */
	closed = config_of(WEIR_CONFIG_CLOSED) && !packet->quoted;
	now = bpf_ktime_get_ns();
	alive = is_alive(now);
	port = bpf_map_lookup_elem(&port_ids, &ifindex);
	doubt = !alive && !packet->quoted && is_in_doubt(now);
	if (!alive && ((!closed && !doubt) || !port))
		return count(WEIR_STALE_PASS, XDP_PASS);
	/*
	 * A SYN begins a connection: the worker decides anew, and hands on those of the kernel road. Or else a tuple that
	 * was given to the kernel once would be a way around the rules.
	 */
	if (!packet->opens && is_kernel_flow(packet, now))
		return count(alive ? WEIR_KERNEL_FLOW : WEIR_STALE_PASS, XDP_PASS);
	if (!port)
		return count(WEIR_UNKNOWN_PORT, XDP_PASS);
	if ((alive || doubt) && !is_for_us(ctx, packet->ifindex))
		return count(WEIR_OTHER_HOST, XDP_PASS);
	outcome = outcome_of(packet, packet->link ? packet->link : *port, own);
	if (!is_redirect(outcome))
		return count(alive ? outcome : WEIR_STALE_PASS, XDP_PASS);
	if (outcome == WEIR_REDIRECT && packet->opens && is_delivered(ctx, packet)) {
		note_kernel_flow(packet, now);
		return count(WEIR_OWN_ADDRESS, XDP_PASS);
	}
	if (outcome == WEIR_REDIRECT && (alive || doubt) && is_for_cookie(packet)) {
		action = answer_syn(ctx, packet);
		if (action == XDP_TX) {
			count_syn(WEIR_SYNS_ANSWERED + *port);
			return count(WEIR_COOKIE, send_back(ifindex, *port));
		}
		if (action != XDP_PASS)
			return count(WEIR_COOKIE_FAILED, action);
	}
	if (!alive && closed)
		return count(WEIR_STALE_DROP, XDP_DROP);
	if (!alive && packet->translated && !packet->opens)
		return count(WEIR_DOUBT_DROP, XDP_DROP);
	if (!alive) {
		if (packet->translated)
			note_kernel_flow(packet, now);
		return count(WEIR_STALE_PASS, XDP_PASS);
	}

	/* A process that has just died has no sockets any more, but its last heartbeat is still fresh. */
	slot = *port * WEIR_MAX_QUEUES + ctx->rx_queue_index;
	if (*port >= WEIR_MAX_PORTS || ctx->rx_queue_index >= WEIR_MAX_QUEUES)
		action = closed ? XDP_DROP : XDP_PASS;
	else
		action = bpf_redirect_map(&port_socks, slot, closed ? XDP_DROP : XDP_PASS);
	if (action == XDP_REDIRECT)
		return count(outcome, action);
	return count(action == XDP_DROP ? WEIR_NO_SOCKET_DROP : WEIR_NO_SOCKET_PASS, action);
}

static __always_inline int judge(struct xdp_md *ctx)
{
	struct packet packet = {};
	__u32 outcome;

	/* Named here so that the programs own it: see xsks_map. */
	asm volatile("" : : "r"(&xsks_map));

	outcome = parse(ctx, &packet);
	if (outcome != GO_ON)
		return count(outcome, outcome == WEIR_NESTED_TAG_DROP ? XDP_DROP : XDP_PASS);
	return steer(ctx, &packet);
}

/* What is not of this program's lane may be of one that a weir of another layout has left: see express_next. */
SEC("xdp")
int weir_steer(struct xdp_md *ctx)
{
	int action = express(ctx);

	if (action != NOT_EXPRESS && action != OPENS)
		return action;
	/* While there is a worker it judges all SYNs, and knows what the others have (`Elsewhere` in dataplane/core/src/pipeline.rs). */
	if (action == NOT_EXPRESS || !is_alive(bpf_ktime_get_ns()))
		bpf_tail_call(ctx, &express_next, 0);
	return judge(ctx);
}

/* What is of no lane: steered, by the program of the weir that runs. */
SEC("xdp")
int weir_rest(struct xdp_md *ctx)
{
	return judge(ctx);
}

/* On no device. */
SEC("xdp")
int weir_mark(struct xdp_md *ctx)
{
	return mark_entry(ctx);
}

char weir_license[] SEC("license") = "Dual MIT/GPL";
