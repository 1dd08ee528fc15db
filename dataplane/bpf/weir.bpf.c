// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * The steering program: which road a packet takes. It runs on every port, before the kernel's stack, and answers PASS
 * (the kernel's road), REDIRECT (the AF_XDP worker of this port and queue) or, for a box that fails closed, DROP.
 *
 * The order is that of `weir_steer` at the end of this file. It reads headers and changes nothing in the packet.
 * Loaded and fed by dataplane/sys/src/steering; the table of packets in steering/tests is its specification.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

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
_Static_assert(sizeof(struct weir_prefix4) == 8, "prefix");
_Static_assert(sizeof(struct weir_prefix6) == 20, "prefix");
_Static_assert(sizeof(struct weir_bits) == 16, "bits");
_Static_assert(WEIR_CONFIG_RELAY_MASK_1 == WEIR_CONFIG_RELAY_MASK + 1, "relay masks");

/* IPv6 extension headers that are followed. A longer chain is judged by its addresses: it is no way around a policy. */
#define MAX_EXTENSION_HEADERS 8

#define IP_MF_OR_OFFSET 0x3fff
#define IP6_OFFSET 0xfff8
#define IP6_MF 0x0001

#define VLAN_ID 0x0fff
#define VLAN_TAG_LEN 4
#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AUTHENTICATION 51
#define NEXT_DESTINATION 60

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

/* Addresses of this box: never intercepted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weir_address);
	__type(value, __u32);
} own_addresses SEC(".maps");

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

/* TCP port -> intercepts. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct weir_bits);
} tcp_ports SEC(".maps");

/* Device index -> the Ethernet address of the port, in the low six bytes. Frames for others are not ours to forward. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, __u64);
} port_macs SEC(".maps");

/* Ingress port -> intercepts whose clients are there. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, struct weir_bits);
} from_ports SEC(".maps");

/* What steering needs to know of a packet. */
struct packet {
	struct weir_address src;
	struct weir_address dst;
	__u8 sport[2];			/* network order; not read of a fragment */
	__u8 dport[2];
	__u8 fin;
	__u8 rst;
	/* SYN without ACK. */
	__u8 opens;
	__u8 ipv6;
	__u8 addresses_only;		/* a fragment, or a chain too long to follow: ports are not known */
};

/* What a parser says when steering is to go on. */
#define GO_ON WEIR_OUTCOMES

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

static __always_inline __u32 parse_tcp(struct packet *packet, void *l4, void *ip_end, void *data_end)
{
	struct tcphdr *tcp = l4;

	if ((void *)(tcp + 1) > data_end || (void *)(tcp + 1) > ip_end)
		return WEIR_MALFORMED;
	__builtin_memcpy(packet->sport, &tcp->source, 2);
	__builtin_memcpy(packet->dport, &tcp->dest, 2);
	packet->fin = tcp->fin;
	packet->rst = tcp->rst;
	packet->opens = tcp->syn && !tcp->ack;
	return GO_ON;
}

static __always_inline void map_ipv4(struct weir_address *address, const __be32 *from)
{
	__builtin_memset(address->bytes, 0, 10);
	address->bytes[10] = 0xff;
	address->bytes[11] = 0xff;
	__builtin_memcpy(&address->bytes[12], from, 4);
}

static __always_inline __u32 parse_ipv4(struct packet *packet, void *data, void *data_end)
{
	struct iphdr *ip = data + ETH_HLEN;
	__u32 header;

	if ((void *)(ip + 1) > data_end || ip->version != 4 || ip->ihl < 5)
		return WEIR_MALFORMED;
	if (ip->protocol != IPPROTO_TCP)
		return WEIR_NOT_TCP;
	map_ipv4(&packet->src, &ip->saddr);
	map_ipv4(&packet->dst, &ip->daddr);
	if (ip->frag_off & bpf_htons(IP_MF_OR_OFFSET)) {
		packet->addresses_only = 1;
		return GO_ON;
	}
	header = ip->ihl * 4;
	return parse_tcp(packet, (void *)ip + header, (void *)ip + bpf_ntohs(ip->tot_len), data_end);
}

static __always_inline int is_extension(__u8 next)
{
	return next == NEXT_HOP_BY_HOP || next == NEXT_ROUTING || next == NEXT_FRAGMENT || next == NEXT_DESTINATION ||
	       next == NEXT_AUTHENTICATION;
}

/*
 * The header chain of RFC 8200 from `offset` on. A fragment whose chain cannot be followed to its end may be TCP, and
 * is treated as if it were.
 */
static __always_inline __u32 parse_ipv6_chain(struct packet *packet, __u8 next, void *data, void *data_end,
					      void *ip_end)
{
	__u32 offset = ETH_HLEN + sizeof(struct ipv6hdr);
	int i;

	for (i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		/* All extension headers start alike; the fragment header alone has no length and is 8 bytes. */
		__u8 *header = data + offset;

		if (!is_extension(next))
			break;
		if ((void *)header + 8 > data_end)
			return packet->addresses_only ? GO_ON : WEIR_MALFORMED;
		if (next == NEXT_FRAGMENT) {
			__u16 field = header[2] << 8 | header[3];

			next = header[0];
			offset += 8;
			if (field & (IP6_OFFSET | IP6_MF))
				packet->addresses_only = 1;
			if (field & IP6_OFFSET)
				return next == IPPROTO_TCP || is_extension(next) ? GO_ON : WEIR_NOT_TCP;
		} else if (next == NEXT_AUTHENTICATION) {
			/* RFC 4302 counts words of four, less two. */
			next = header[0];
			offset += ((__u32)header[1] + 2) * 4;
		} else {
			next = header[0];
			offset += ((__u32)header[1] + 1) * 8;
		}
	}
	if (is_extension(next)) {
		packet->addresses_only = 1;
		return GO_ON;
	}
	if (next != IPPROTO_TCP)
		return WEIR_NOT_TCP;
	if (packet->addresses_only)
		return GO_ON;
	return parse_tcp(packet, data + offset, ip_end, data_end);
}

static __always_inline __u32 parse_ipv6(struct packet *packet, void *data, void *data_end)
{
	struct ipv6hdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > data_end || ip->version != 6)
		return WEIR_MALFORMED;
	__builtin_memcpy(&packet->src, &ip->saddr, 16);
	__builtin_memcpy(&packet->dst, &ip->daddr, 16);
	packet->ipv6 = 1;
	return parse_ipv6_chain(packet, ip->nexthdr, data, data_end, (void *)(ip + 1) + bpf_ntohs(ip->payload_len));
}

static __always_inline int is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

static __always_inline __u32 parse_ip(struct packet *packet, __be16 proto, void *data, void *data_end)
{
	switch (proto) {
	case bpf_htons(ETH_P_IP):
		return parse_ipv4(packet, data, data_end);
	case bpf_htons(ETH_P_IPV6):
		return parse_ipv6(packet, data, data_end);
	default:
		return WEIR_NOT_IP;
	}
}

/*
 * A tag with VLAN 0 is a priority and no VLAN: the kernel takes it off, however many there are, and forwards what is
 * behind it on this very device. So do we, once; nobody sends two.
 */
static __always_inline __u32 parse(struct packet *packet, void *data, void *data_end)
{
	struct ethhdr *eth = data;
	__be16 *tag = data + ETH_HLEN;

	if ((void *)(eth + 1) > data_end)
		return WEIR_MALFORMED;
	if (!is_vlan(eth->h_proto))
		return parse_ip(packet, eth->h_proto, data, data_end);
	if ((void *)(tag + 4) > data_end)
		return WEIR_VLAN;
	if (tag[0] & bpf_htons(VLAN_ID))
		return WEIR_VLAN;
	if (!is_vlan(tag[1]))
		return parse_ip(packet, tag[1], data + VLAN_TAG_LEN, data_end);
	return tag[2] & bpf_htons(VLAN_ID) ? WEIR_VLAN : WEIR_NESTED_TAG_DROP;
}

/* Whether the frame is for this port: promiscuous devices see those of others too. */
static __always_inline int is_for_us(void *data, void *data_end, __u32 ifindex)
{
	__u16 *mac = bpf_map_lookup_elem(&port_macs, &ifindex);
	__u16 *dst = data;

	if (!mac || (void *)(dst + 3) > data_end)
		return 1;
	return dst[0] == mac[0] && dst[1] == mac[1] && dst[2] == mac[2];
}

/* Whether the endpoint (a, a_port) sorts before (b, b_port). */
static __always_inline int is_lower(const struct weir_address *a, const __u8 *a_port, const struct weir_address *b,
				    const __u8 *b_port)
{
	int i;

#pragma unroll
	for (i = 0; i < 16; i++) {
		if (a->bytes[i] != b->bytes[i])
			return a->bytes[i] < b->bytes[i];
	}
	if (a_port[0] != b_port[0])
		return a_port[0] < b_port[0];
	return a_port[1] < b_port[1];
}

/* Whether the packet's flow was given to the kernel. If so, notes that it lives. */
static __always_inline int is_kernel_flow(const struct packet *packet, __u64 now)
{
	struct weir_flow_key key;
	struct weir_flow *flow;
	int from_low;

	if (packet->addresses_only)
		return 0;
	from_low = is_lower(&packet->src, packet->sport, &packet->dst, packet->dport);
	if (from_low) {
		key.low = packet->src;
		key.high = packet->dst;
		__builtin_memcpy(key.low_port, packet->sport, 2);
		__builtin_memcpy(key.high_port, packet->dport, 2);
	} else {
		key.low = packet->dst;
		key.high = packet->src;
		__builtin_memcpy(key.low_port, packet->dport, 2);
		__builtin_memcpy(key.high_port, packet->sport, 2);
	}
	flow = bpf_map_lookup_elem(&kernel_flows, &key);
	if (!flow)
		return 0;
	flow->last_seen = now;
	if (packet->rst)
		flow->rst = 1;
	if (packet->fin && from_low)
		flow->fin_from_low = 1;
	if (packet->fin && !from_low)
		flow->fin_from_high = 1;
	return 1;
}

/* Intercepts among whose destinations this address is. */
static __always_inline __u64 bits_of_address(const struct packet *packet, const struct weir_address *address,
					     __u32 generation)
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
 * without ports nothing says which it is, so any that is not for the relay will do.
 */
static __always_inline int is_for_fast_road(__u64 bits, __u64 relay, int addresses_only)
{
	if (addresses_only)
		return (bits & ~relay) != 0;
	return (bits & -bits & ~relay) != 0;
}

/* Whether an intercept has this packet, as client->server (from the client's port) or as server->client. */
static __always_inline int is_intercepted(const struct packet *packet, __u32 port)
{
	__u32 generation = config_of(WEIR_CONFIG_GENERATION) & 1;
	__u64 relay = config_of(WEIR_CONFIG_RELAY_MASK + generation);
	__u64 to_server = bits_of_address(packet, &packet->dst, generation) & bits_from(port, generation);
	__u64 to_client = bits_of_address(packet, &packet->src, generation);

	if (!packet->addresses_only) {
		to_server &= bits_of_tcp_port(packet->dport, generation);
		to_client &= bits_of_tcp_port(packet->sport, generation);
	}
	return is_for_fast_road(to_server, relay, packet->addresses_only) ||
	       is_for_fast_road(to_client, relay, packet->addresses_only);
}

static __always_inline int is_alive(__u64 now)
{
	__u64 beat = config_of(WEIR_CONFIG_HEARTBEAT);

	/* A beat written after `now` was read is fresh. */
	return now <= beat || now - beat <= config_of(WEIR_CONFIG_LIMIT);
}

SEC("xdp")
int weir_steer(struct xdp_md *ctx)
{
	struct packet packet = {};
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 ifindex = ctx->ingress_ifindex;
	__u32 outcome = parse(&packet, data, data_end);
	__u64 closed, now;
	__u32 *port, slot;
	int action;

	/* Named here so that the program owns it: see xsks_map. */
	asm volatile("" : : "r"(&xsks_map));

	if (outcome != GO_ON)
		return count(outcome, outcome == WEIR_NESTED_TAG_DROP ? XDP_DROP : XDP_PASS);
	if (bpf_map_lookup_elem(&own_addresses, &packet.dst))
		return count(WEIR_OWN_ADDRESS, XDP_PASS);
	if (!config_of(WEIR_CONFIG_ENABLED))
		return count(WEIR_DISABLED, XDP_PASS);

	closed = config_of(WEIR_CONFIG_CLOSED);
	now = bpf_ktime_get_ns();
	port = bpf_map_lookup_elem(&port_ids, &ifindex);
	if (!is_alive(now)) {
		if (closed && port && (packet.opens || !is_kernel_flow(&packet, now)) && is_intercepted(&packet, *port))
			return count(WEIR_STALE_DROP, XDP_DROP);
		return count(WEIR_STALE_PASS, XDP_PASS);
	}
	/*
	 * A SYN begins a connection: the worker decides anew, and hands on those of the kernel road. Or else a tuple that
	 * was given to the kernel once would be a way around the rules.
	 */
	if (!packet.opens && is_kernel_flow(&packet, now))
		return count(WEIR_KERNEL_FLOW, XDP_PASS);
	if (!port)
		return count(WEIR_UNKNOWN_PORT, XDP_PASS);
	if (!is_for_us(data, data_end, ifindex))
		return count(WEIR_OTHER_HOST, XDP_PASS);
	if (!is_intercepted(&packet, *port))
		return count(WEIR_NO_INTERCEPT, XDP_PASS);

	/* A process that has just died has no sockets any more, but its last heartbeat is still fresh. */
	slot = *port * WEIR_MAX_QUEUES + ctx->rx_queue_index;
	if (*port >= WEIR_MAX_PORTS || ctx->rx_queue_index >= WEIR_MAX_QUEUES)
		action = closed ? XDP_DROP : XDP_PASS;
	else
		action = bpf_redirect_map(&port_socks, slot, closed ? XDP_DROP : XDP_PASS);
	if (action == XDP_REDIRECT)
		return count(packet.addresses_only ? WEIR_REDIRECT_FRAGMENT : WEIR_REDIRECT, action);
	return count(action == XDP_DROP ? WEIR_NO_SOCKET_DROP : WEIR_NO_SOCKET_PASS, action);
}

char weir_license[] SEC("license") = "Dual MIT/GPL";
