/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * From a frame to what steering needs to know of it. Reads headers, touches no map but that of VLANs (vlan.h).
 *
 * Each layer is a function of its own that is not static: the verifier looks at such a function once, whatever its
 * arguments, and not again for every way through the headers before it.
 */
#ifndef WEIR_PARSE_H
#define WEIR_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "vlan.h"

/* IPv6 extension headers that are followed. A longer chain is judged by its addresses: it is no way around a policy. */
#define MAX_EXTENSION_HEADERS 8

#define IP_MF_OR_OFFSET 0x3fff
#define IP_OFFSET 0x1fff
#define IP6_OFFSET 0xfff8
#define IP6_MF 0x0001

#define VLAN_ID 0x0fff
#define VLAN_TAG_LEN 4
#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AUTHENTICATION 51
#define NEXT_DESTINATION 60

/* ICMP error messages (RFC 792, RFC 4443), their header, and how much of the TCP packet they quote is asked for. */
#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMPV6_FIRST_ERROR 1
#define ICMPV6_LAST_ERROR 4
#define ICMP_HLEN 8
#define QUOTED_TCP 8

/* The longest Ethernet header: with two tags. */
#define MAX_ETH_HLEN (ETH_HLEN + 2 * VLAN_TAG_LEN)

/* Where headers end at the latest: Ethernet with tags, IPv6, and extension headers of 2048 bytes each. */
#define MAX_L4 (MAX_ETH_HLEN + sizeof(struct ipv6hdr) + MAX_EXTENSION_HEADERS * 2048)

/* Where TCP options end at the latest, behind plain headers: below 128. */
#define MAX_OPTIONS_AT (ETH_HLEN + sizeof(struct ipv6hdr) + 60)

/*
 * A number below 128 of which the verifier forgets all else: so that the ways through a loop look alike to it, and it follows one.
 */
#define FORGET(number) asm volatile("%0 &= 127" : "+r"(number))

/*
 * What steering needs to know of a packet: of TCP itself, or of the TCP packet that an ICMP error quotes. Such an error
 * is addressed to the quoted packet's source. No padding: it is handed to functions as memory.
 */
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
	__u8 quoted;			/* flags are not known */
	/* For the parser: what the IP packet carries, where that begins in the frame, and where the IP packet ends. */
	__u8 next;
	__u8 translated;		/* for steering: the kernel cannot go on with its connection */
	__u16 l4;
	__u16 link;			/* the VLAN that it came by; 0: none */
	__u32 end;
	__u32 ifindex;			/* the kernel's device that it came by */
	__u64 intercepts;		/* for steering: those that the packet is of, from their client */
};

_Static_assert(sizeof(struct packet) == 32 + 12 + 12 + 8, "packet");

/* What a parser says when steering is to go on. */
#define GO_ON WEIR_OUTCOMES

static __always_inline void map_ipv4(struct weir_address *address, const __be32 *from)
{
	__builtin_memset(address->bytes, 0, 10);
	address->bytes[10] = 0xff;
	address->bytes[11] = 0xff;
	__builtin_memcpy(&address->bytes[12], from, 4);
}

static __always_inline int is_address(const struct weir_address *address, const struct in6_addr *other)
{
	__u32 a[4], b[4];

	__builtin_memcpy(a, address, 16);
	__builtin_memcpy(b, other, 16);
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

static __always_inline __u32 parse_tcp(struct packet *packet, struct tcphdr *tcp, void *data_end)
{
	if ((void *)(tcp + 1) > data_end || packet->l4 + sizeof(*tcp) > packet->end)
		return WEIR_MALFORMED;
	__builtin_memcpy(packet->sport, &tcp->source, 2);
	__builtin_memcpy(packet->dport, &tcp->dest, 2);
	packet->fin = tcp->fin;
	packet->rst = tcp->rst;
	packet->opens = tcp->syn && !tcp->ack;
	return GO_ON;
}

/* The quoted IPv4 header and `packet`: its length, or 0 when it is none of a TCP packet of the one the error is for. */
static __always_inline __u32 parse_quoted_ipv4(struct packet *packet, struct iphdr *ip, __u8 type, void *data_end)
{
	if ((void *)(ip + 1) > data_end)
		return 0;
	if (type != ICMP_UNREACHABLE && type != ICMP_TIME_EXCEEDED && type != ICMP_PARAMETER_PROBLEM)
		return 0;
	if (ip->version != 4 || ip->ihl < 5 || ip->protocol != IPPROTO_TCP || ip->frag_off & bpf_htons(IP_OFFSET) ||
	    __builtin_memcmp(&packet->dst.bytes[12], &ip->saddr, 4))
		return 0;
	map_ipv4(&packet->src, &ip->saddr);
	map_ipv4(&packet->dst, &ip->daddr);
	return ip->ihl * 4;
}

/* As above. A quote with extension headers is not looked into. */
static __always_inline __u32 parse_quoted_ipv6(struct packet *packet, struct ipv6hdr *ip, __u8 type, void *data_end)
{
	if ((void *)(ip + 1) > data_end)
		return 0;
	if (type < ICMPV6_FIRST_ERROR || type > ICMPV6_LAST_ERROR)
		return 0;
	if (ip->version != 6 || ip->nexthdr != IPPROTO_TCP || !is_address(&packet->dst, &ip->saddr))
		return 0;
	__builtin_memcpy(&packet->src, &ip->saddr, 16);
	__builtin_memcpy(&packet->dst, &ip->daddr, 16);
	return sizeof(*ip);
}

/* Of the quoted TCP header the ports are read; RFC 792 promises eight octets. */
static __always_inline __u32 parse_icmp(struct packet *packet, __u8 *icmp, void *data_end)
{
	void *ip = icmp + ICMP_HLEN;
	__u32 header;
	__u8 *tcp;

	if (ip > data_end)
		return WEIR_NOT_TCP;
	header = packet->ipv6 ? parse_quoted_ipv6(packet, ip, *icmp, data_end)
			      : parse_quoted_ipv4(packet, ip, *icmp, data_end);
	tcp = ip + header;
	if (!header || (void *)(tcp + QUOTED_TCP) > data_end ||
	    packet->l4 + ICMP_HLEN + header + QUOTED_TCP > packet->end)
		return WEIR_NOT_TCP;
	__builtin_memcpy(packet->sport, tcp, 2);
	__builtin_memcpy(packet->dport, tcp + 2, 2);
	packet->quoted = 1;
	return GO_ON;
}

__noinline int parse_l4(struct xdp_md *ctx, struct packet *packet)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;

	if (!packet || packet->l4 > MAX_L4)
		return WEIR_MALFORMED;
	if (packet->next == IPPROTO_TCP)
		return parse_tcp(packet, data + packet->l4, data_end);
	return parse_icmp(packet, data + packet->l4, data_end);
}

static __always_inline __u32 parse_ipv4(struct packet *packet, struct iphdr *ip, __u32 start, void *data_end)
{
	if ((void *)(ip + 1) > data_end || ip->version != 4 || ip->ihl < 5)
		return WEIR_MALFORMED;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_ICMP)
		return WEIR_NOT_TCP;
	map_ipv4(&packet->src, &ip->saddr);
	map_ipv4(&packet->dst, &ip->daddr);
	packet->next = ip->protocol;
	packet->l4 = start + ip->ihl * 4;
	packet->end = start + bpf_ntohs(ip->tot_len);
	if (ip->frag_off & bpf_htons(IP_MF_OR_OFFSET)) {
		packet->addresses_only = 1;
		return ip->protocol == IPPROTO_TCP ? GO_ON : WEIR_NOT_TCP;
	}
	return GO_ON;
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
static __always_inline __u32 parse_ipv6_chain(struct packet *packet, __u8 next, __u32 offset, void *data, void *data_end)
{
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
	packet->next = next;
	packet->l4 = offset;
	if (is_extension(next)) {
		packet->addresses_only = 1;
		return GO_ON;
	}
	return next == IPPROTO_TCP || (next == IPPROTO_ICMPV6 && !packet->addresses_only) ? GO_ON : WEIR_NOT_TCP;
}

static __always_inline __u32 parse_ipv6(struct packet *packet, struct ipv6hdr *ip, __u32 start, void *data,
					void *data_end)
{
	if ((void *)(ip + 1) > data_end || ip->version != 6)
		return WEIR_MALFORMED;
	__builtin_memcpy(&packet->src, &ip->saddr, 16);
	__builtin_memcpy(&packet->dst, &ip->daddr, 16);
	packet->ipv6 = 1;
	packet->end = start + sizeof(*ip) + bpf_ntohs(ip->payload_len);
	return parse_ipv6_chain(packet, ip->nexthdr, start + sizeof(*ip), data, data_end);
}

/* The IP packet of type `proto` (as in the frame) that begins at `start`. */
__noinline int parse_ip(struct xdp_md *ctx, struct packet *packet, __u32 proto, __u32 start)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;

	if (!packet || start > MAX_ETH_HLEN)
		return WEIR_MALFORMED;
	switch (proto) {
	case bpf_htons(ETH_P_IP):
		return parse_ipv4(packet, data + start, start, data_end);
	case bpf_htons(ETH_P_IPV6):
		return parse_ipv6(packet, data + start, start, data, data_end);
	default:
		return WEIR_NOT_IP;
	}
}

/*
 * Reads the tags of a frame that has one: what becomes of it, or whose it is, and in `l4` and `end` where its IP packet begins and of
 * which type it is.
 *
 * A tag with VLAN 0 is a priority and no VLAN: the kernel takes it off, however many there are and wherever they stand, and
 * forwards what is behind it on the very device that it came to. So do we with one that stands alone. Nobody sends others, which
 * would be a way around the intercepts of the device that the kernel takes them for.
 */
__noinline int read_tags(struct xdp_md *ctx, struct packet *packet)
{
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	__be16 *tag = (void *)(eth + 1), outer, inner = 0, proto;
	__u32 ifindex = ctx->ingress_ifindex;
	const struct weir_vlan *vlan;
	__u16 id, inner_id = 0;

	if (!packet || (void *)(tag + 2) > data_end)
		return WEIR_VLAN;
	outer = eth->h_proto;
	id = bpf_ntohs(tag[0]) & VLAN_ID;
	proto = tag[1];
	packet->l4 = ETH_HLEN + VLAN_TAG_LEN;
	if (is_vlan(proto)) {
		if ((void *)(tag + 4) > data_end)
			return WEIR_VLAN;
		inner = proto;
		inner_id = bpf_ntohs(tag[2]) & VLAN_ID;
		proto = tag[3];
		packet->l4 = ETH_HLEN + 2 * VLAN_TAG_LEN;
	}
	packet->end = proto;
	if (!id && !inner)
		return GO_ON;
	if (!id && !inner_id)
		return WEIR_NESTED_TAG_DROP;
	if (!vlan_of(ifindex, 0, 0, 0, 0))
		return WEIR_VLAN;
	if (!id || (inner && !inner_id))
		return WEIR_NESTED_TAG_DROP;
	if (is_vlan(proto)) {
		if ((void *)(tag + 6) > data_end || bpf_ntohs(tag[4]) & VLAN_ID)
			return WEIR_VLAN;
		return WEIR_NESTED_TAG_DROP;
	}
	vlan = vlan_of(ifindex, outer, id, inner, inner_id);
	if (!vlan)
		return WEIR_VLAN;
	packet->link = vlan->link;
	packet->ifindex = vlan->ifindex;
	return GO_ON;
}

static __always_inline __u32 parse(struct xdp_md *ctx, struct packet *packet)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	struct ethhdr *eth = data;
	__u32 proto, outcome, start = ETH_HLEN;

	if ((void *)(eth + 1) > data_end)
		return WEIR_MALFORMED;
	packet->ifindex = ctx->ingress_ifindex;
	proto = eth->h_proto;
	if (is_vlan(proto)) {
		outcome = read_tags(ctx, packet);
		if (outcome != GO_ON)
			return outcome;
		proto = packet->end;
		start = packet->l4;
	}
	outcome = parse_ip(ctx, packet, proto, start);
	if (outcome != GO_ON || packet->addresses_only)
		return outcome;
	return parse_l4(ctx, packet);
}

#endif
