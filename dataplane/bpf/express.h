/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The express lane: packets of flows whose verdict has fallen are rewritten here and sent on, without the worker, and also when it
 * is gone.
 *
 * Some flows only stand by here: while there is a worker it gets their packets, and what it would do is done here when there is none.
 * Strays are those that no worker knows: a process before has left them, and this one has no room. They go on as if there were no worker.
 *
 * A packet costs one look into a hash map, two into arrays, and the writes. It is a plain segment: an IP header without options or
 * extensions, ACK, no SYN, FIN, RST or URG. All else of the flow is the worker's; but FIN, RST and the like are sent on as well
 * when there is no sign of life, and noted, so that connections end and the next process knows.
 */
#ifndef WEIR_EXPRESS_H
#define WEIR_EXPRESS_H

#include "maps.h"
#include "parse.h"
#include "splice.h"
#include "state.h"
#include "sums.h"

/* By direction; sized when it is loaded. Memory is used as far as there are entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weir_express_key);
	__type(value, struct weir_express);
} express_flows SEC(".maps");

/* Of user space alone: what is known of flows, by the direction to the server. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weir_express_key);
	__type(value, struct weir_express_note);
} express_notes SEC(".maps");

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

/*
 * Who is asked about a packet that is none of the lane's, instead of steering here: the program of a weir of another layout, which may
 * carry it in its own lane; and from the last of these the way leads to `weir_rest` of the weir that runs. User space ties this chain.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} express_next SEC(".maps");

/* When each worker last had nothing in hand, ns: written by the workers. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u64);
} express_idle SEC(".maps");

/* The packet is none of the lane's: steering goes on. No action has this number. */
#define NOT_EXPRESS 255
/* The same of a SYN: it would open a connection. */
#define OPENS 253
/* The lane has the packet, and with it the flow, though a worker may have packets in hand. */
#define OVERTAKING 254

/* From here to a worker's ring a packet takes less: it is put there when the NAPI poll ends that it came in by. Units of 2^10 ns. */
#define ON_ITS_WAY 128
/* Packets that a flow which never pauses for so long gives its worker. */
#define PATIENCE 2048
/* And one whose worker has not said for so long that it had nothing in hand: it may be that it never has. Units of 2^10 ns. */
#define PRESSED 20000
#define PATIENCE_PRESSED 64

/* A frame on a wire has at least so many octets, whatever is in it. */
#define SHORTEST_FRAME 60

/* What TTL less one adds to the checksum of an IPv4 header. */
#define TTL_CHANGE bpf_htons(0xfeff)

/*
 * What other CPUs, and user space by `mark_entry`, may change at the same moment: bits of an octet, by an atomic operation on the word
 * around it, since there is none on octets. `at`: which octet of the word it is.
 */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BITS_IN_WORD(at, bits) ((__u32)(__u8)(bits) << 8 * (at))
#else
#define BITS_IN_WORD(at, bits) ((__u32)(__u8)(bits) << 8 * (3 - (at)))
#endif

_Static_assert(__builtin_offsetof(struct weir_express, link) % 4 == 0, "link begins a word");
_Static_assert(__builtin_offsetof(struct weir_express, hop) % 4 == 0, "hop begins a word");
_Static_assert(__builtin_offsetof(struct weir_express, ended) == __builtin_offsetof(struct weir_express, hop) + 3, "ended ends it");

static __always_inline void add_to_link(struct weir_express *entry, __u8 bits)
{
	__sync_fetch_and_or((__u32 *)&entry->link, BITS_IN_WORD(0, bits));
}

static __always_inline void take_from_link(struct weir_express *entry, __u8 bits)
{
	__sync_fetch_and_and((__u32 *)&entry->link, ~BITS_IN_WORD(0, bits));
}

static __always_inline void add_to_ended(struct weir_express *entry, __u8 bits)
{
	__sync_fetch_and_or((__u32 *)&entry->hop, BITS_IN_WORD(3, bits));
}

/* `Key::check` in dataplane/sys/src/steering/express/layout.rs: a number that few other keys have. */
static __always_inline __u32 weir_express_check(const struct weir_express_key *key)
{
	__u64 words[4];
	__u32 ports;

	__builtin_memcpy(words, key, 32);
	__builtin_memcpy(&ports, key->sport, 4);
	return (words[0] * 0x9e3779b97f4a7c15ULL + words[1] * 0xbf58476d1ce4e5b9ULL + words[2] * 0x94d049bb133111ebULL +
		words[3] * 0xd6e8feb86659fd93ULL + ports * 0xa0761d6478bd642fULL) >> 32;
}

/*
 * A packet of the lane that only the worker can send on: to it, counted as `outcome`. Where there is none, it passes like any other,
 * unless the kernel could not go on with its flow.
 */
__noinline int to_worker(struct xdp_md *ctx, __u32 outcome, __u32 translated)
{
	__u32 ifindex = ctx->ingress_ifindex, queue = ctx->rx_queue_index;
	__u32 *port = bpf_map_lookup_elem(&port_ids, &ifindex);

	if (!is_for_us(ctx, ifindex))
		return NOT_EXPRESS;
	if (port && *port < WEIR_MAX_PORTS && queue < WEIR_MAX_QUEUES && is_alive(bpf_ktime_get_ns()) &&
	    bpf_redirect_map(&port_socks, *port * WEIR_MAX_QUEUES + queue, XDP_ABORTED) == XDP_REDIRECT)
		return count(outcome, XDP_REDIRECT);
	return translated ? count(WEIR_EXPRESS_DROP, XDP_DROP) : NOT_EXPRESS;
}

/*
 * A packet of the lane that cannot go on here: to the worker of its flow. A stray has none, and one that got it would reset the flow, so that
 * it goes where it would if there were no worker: it is not to be steered, which finds one.
 */
__noinline int cannot_go(struct xdp_md *ctx, __u32 outcome, struct weir_express *entry)
{
	__u32 translated;

	if (!entry)
		return NOT_EXPRESS;
	translated = entry->flags & WEIR_EXPRESS_TRANSLATED;
	if (!(entry->link & WEIR_EXPRESS_STRAY))
		return to_worker(ctx, outcome, translated);
	if (!is_for_us(ctx, ctx->ingress_ifindex))
		return NOT_EXPRESS;
	if (translated || config_of(WEIR_CONFIG_CLOSED))
		return count(WEIR_EXPRESS_DROP, XDP_DROP);
	return count(WEIR_KERNEL_FLOW, XDP_PASS);
}

/*
 * A flow that changes over from its worker, so that nothing of it is overtaken: its packets go on to the worker until that has been seen
 * with nothing in hand since the last of them. Each direction by itself, at a pause of its own; one without pauses in the end all the
 * same. NOT_EXPRESS: the lane has it from this packet on.
 */
__noinline int change_over(struct xdp_md *ctx, struct weir_express *entry)
{
	__u64 now = bpf_ktime_get_ns() >> 10, told = 0, *idle;
	__s64 since = -1;
	__u32 index;
	__s32 ago;
	int action;

	if (!entry)
		return NOT_EXPRESS;
	index = entry->worker;
	idle = bpf_map_lookup_elem(&express_idle, &index);
	if (idle)
		told = *(volatile __u64 *)idle >> 10;
	if (entry->tick >= (now > told + PRESSED ? PATIENCE_PRESSED : PATIENCE)) {
		take_from_link(entry, WEIR_EXPRESS_CHANGES);
		return OVERTAKING;
	}
	/* How long after the last packet that it was given it had nothing in hand. */
	if (entry->given) {
		ago = ((__u32)now | 1) - entry->given;
		/* Another CPU may have read its clock later. */
		if (ago < 0)
			ago = 0;
		since = (__s64)told - ((__s64)now - ago);
	}
	if (since <= ON_ITS_WAY) {
		entry->given = (__u32)now | 1;
		entry->tick += 1;
		action = to_worker(ctx, WEIR_EXPRESS_CHANGING, 0);
		if (action != NOT_EXPRESS)
			return action;
	}
	take_from_link(entry, WEIR_EXPRESS_CHANGES);
	return NOT_EXPRESS;
}

/*
 * A SYN. A worker judges it as it does every other. Without one, it is of a new connection, and if the one before is over, that one
 * has no lane any more; else it would end in a flow that it does not belong to. So it is with a flow that no worker knows: what
 * follows would take the lane past the worker that has let the SYN in.
 */
__noinline int meet_syn(struct weir_express *entry)
{
	struct weir_express_key key;
	struct weir_express *other;
	__u32 is_stray;

	if (!entry)
		return NOT_EXPRESS;
	is_stray = entry->link & WEIR_EXPRESS_STRAY;
	if (!is_stray && is_alive(bpf_ktime_get_ns()))
		return NOT_EXPRESS;
	key.src = entry->dst;
	key.dst = entry->src;
	__builtin_memcpy(key.sport, entry->dport, 2);
	__builtin_memcpy(key.dport, entry->sport, 2);
	other = bpf_map_lookup_elem(&express_flows, &key);
	if (other && !((other->ended | entry->ended) & TCP_RST) && !(other->ended & entry->ended & TCP_FIN))
		return is_stray || entry->flags & WEIR_EXPRESS_TRANSLATED ? count(WEIR_EXPRESS_DROP, XDP_DROP) : NOT_EXPRESS;
	entry->flags |= WEIR_EXPRESS_VOID;
	if (other)
		other->flags |= WEIR_EXPRESS_VOID;
	return NOT_EXPRESS;
}

static __always_inline int is_for_link(const struct weir_express_link *link, const struct ethhdr *eth)
{
	const __u16 *mac = (const __u16 *)link->mac, *dst = (const __u16 *)eth->h_dest;

	return !((mac[0] ^ dst[0]) | (mac[1] ^ dst[1]) | (mac[2] ^ dst[2]));
}

/* The IPv4 header's sum; 0xffff is right. */
static __always_inline __u32 ipv4_sum(const struct iphdr *ip)
{
	__u32 words[5];

	__builtin_memcpy(words, ip, sizeof(words));
	return fold((__u64)words[0] + words[1] + words[2] + words[3] + words[4]);
}

/* Whether the checksum is only begun: it is that of the pseudo header, for a device to go on from. */
static __always_inline int is_unfinished(const struct weir_express_key *key, const struct tcphdr *tcp, __u32 length)
{
	__u64 sum = bpf_htons(length) + (__u64)bpf_htons(IPPROTO_TCP);
	__u32 words[8];
	int i;

	__builtin_memcpy(words, key, 32);
#pragma unroll
	for (i = 0; i < 8; i++)
		sum += words[i];
	return fold(sum) == tcp->check;
}

/* Addresses, TTL and ECN of the IP header. What that does to TCP's checksum is known but for ECN, which is none of it. */
static __always_inline void cross_ip(void *header, const struct weir_express *entry, const int ipv6)
{
	__u16 *class = header;

	if (ipv6) {
		struct ipv6hdr *ip = header;

		if (entry->flags & WEIR_EXPRESS_CLEAR_ECN)
			*class &= bpf_htons(~0x0030);
		if (entry->flags & WEIR_EXPRESS_READDRESS)
			__builtin_memcpy(&ip->saddr, &entry->src, 32);
		ip->hop_limit -= 1;
	} else {
		struct iphdr *ip = header;
		__u64 change = (__u64)entry->ip_change + TTL_CHANGE;
		__u16 old = *class;

		if (entry->flags & WEIR_EXPRESS_CLEAR_ECN) {
			*class = old & bpf_htons(~0x0003);
			change += change16(old, *class);
		}
		if (entry->flags & WEIR_EXPRESS_READDRESS) {
			__builtin_memcpy(&ip->saddr, &entry->src.bytes[12], 4);
			__builtin_memcpy(&ip->daddr, &entry->dst.bytes[12], 4);
		}
		ip->ttl -= 1;
		ip->check = mended(ip->check, change);
	}
}

/* Ports, numbers and window of the TCP header, which gets its checksum; `change` is what other edits do to that. */
static __always_inline void cross_tcp(struct tcphdr *tcp, const struct weir_express *entry, __u8 flags, __u64 change)
{
	__u16 *word = (__u16 *)tcp + 6;
	__u32 old, new;

	if (entry->flags & WEIR_EXPRESS_READDRESS) {
		__builtin_memcpy(&tcp->source, entry->sport, 4);
		change += entry->tcp_change;
	}
	if (entry->flags & WEIR_EXPRESS_TO_CLIENT) {
		old = tcp->seq;
		new = bpf_htonl(bpf_ntohl(old) + entry->delta);
		change += change32(old, new);
		tcp->seq = new;
	} else if (flags & TCP_ACK) {
		old = tcp->ack_seq;
		new = bpf_htonl(bpf_ntohl(old) + entry->delta);
		change += change32(old, new);
		tcp->ack_seq = new;
	}
	if (entry->shift) {
		old = tcp->window;
		new = bpf_htons(shifted(bpf_ntohs(old), entry->shift));
		change += change16(old, new);
		tcp->window = new;
	}
	if (entry->flags & WEIR_EXPRESS_CLEAR_ECN) {
		old = *word;
		*word = old & bpf_htons(~TCP_ECN);
		change += change16(old, *word);
	}
	tcp->check = mended(tcp->check, change);
}

/* What the timestamps do that stand alone in the options. As there, a change is never none. */
static __always_inline __u64 cross_timestamps(__u32 *words, const struct weir_express *entry, __u8 flags)
{
	__u32 *word = entry->flags & WEIR_EXPRESS_TO_CLIENT ? words + 1 : words + 2, old = *word;

	if (!(flags & TCP_ACK) && !(entry->flags & WEIR_EXPRESS_TO_CLIENT))
		return 0;
	*word = bpf_htonl(bpf_ntohl(old) + entry->clock);
	return old == *word ? 0 : 0xffff + change32(old, *word);
}

/*
 * What has gone through. 0: the entry is another flow's by now. The clock costs as much as all the rest here, and is read when jiffies
 * say that it has moved.
 */
static __always_inline int note(struct weir_express *entry, __u32 check, __u32 octets, __u8 ended)
{
	__u16 tick = bpf_jiffies64() >> 8;

	if (*(volatile __u32 *)&entry->check != check)
		return 0;
	entry->packets += 1;
	entry->bytes += octets;
	if (entry->tick != tick) {
		entry->tick = tick;
		entry->last_seen = bpf_ktime_get_coarse_ns() >> 30;
	}
	if (ended)
		add_to_ended(entry, ended);
	return 1;
}

/* The next hop as it is: its two words, the one that says whether it is up first. */
static __always_inline int find_hop(const struct weir_express *entry, struct weir_express_hop *hop)
{
	__u32 index = entry->hop;
	const volatile __u64 *place = bpf_map_lookup_elem(&express_hops, &index);
	__u64 words[2];

	if (!place)
		return 0;
	words[1] = place[1];
	words[0] = place[0];
	__builtin_memcpy(hop, words, sizeof(*hop));
	return hop->up;
}

/* Octets of the frame. Kept apart for the compiler: the verifier allows the difference of two pointers, in 64 bits. */
static __always_inline __u64 frame_len(struct xdp_md *ctx)
{
	void *first = (void *)(long)ctx->data, *last = (void *)(long)ctx->data_end;

	asm volatile("" : "+r"(first), "+r"(last));
	return last - first;
}

/*
 * Why the packet cannot go as it is, of `octets` in its IP packet and `len` in its frame; WEIR_EXPRESS: it can. What is longer
 * than its packet would carry octets that nobody has looked at from one network to the other.
 */
static __always_inline __u32 obstacle(void *header, const struct tcphdr *tcp, __u32 octets, __u64 len,
				      const struct weir_express_hop *hop, const int ipv6)
{
	__u32 least = (ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + tcp->doff * 4, end = ETH_HLEN + octets;

	if (tcp->doff < 5 || octets < least || end > len || (end < len && len > SHORTEST_FRAME))
		return WEIR_EXPRESS_HEADER;
	if (!ipv6 && ipv4_sum(header) != 0xffff)
		return WEIR_EXPRESS_HEADER;
	if ((ipv6 ? ((struct ipv6hdr *)header)->hop_limit : ((struct iphdr *)header)->ttl) <= 1)
		return WEIR_EXPRESS_TTL;
	return octets > hop->mtu ? WEIR_EXPRESS_MTU : WEIR_EXPRESS;
}

/* What the options, where they are to be edited, do to TCP's checksum; -1: they are the worker's. */
static __always_inline __s64 cross_options(struct xdp_md *ctx, struct weir_express *entry, struct tcphdr *tcp, __u8 flags,
					   const __u32 l4)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u32 *words = (__u32 *)(tcp + 1);

	if (tcp->doff == 5)
		return 0;
	if (tcp->doff == 8 && (void *)(words + 3) <= data_end && words[0] == ALIGNED_TIMESTAMPS)
		return entry->flags & WEIR_EXPRESS_TIMESTAMPS ? cross_timestamps(words, entry, flags) : 0;
	return splice_options(ctx, entry, l4 + sizeof(*tcp), tcp->doff - 5, flags);
}

/* A packet of the lane, with plain headers. */
static __always_inline int cross(struct xdp_md *ctx, struct weir_express *entry, const struct weir_express_key *key,
				 const int ipv6)
{
	const __u32 l4 = ETH_HLEN + (ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	void *header = data + ETH_HLEN;
	struct tcphdr *tcp = data + l4;
	__u32 outcome = WEIR_EXPRESS, why, octets;
	__u32 index = entry->link & (WEIR_EXPRESS_LINKS - 1);
	struct weir_express_link *link = bpf_map_lookup_elem(&express_links, &index);
	struct weir_express_hop hop;
	__s64 change = 0;
	__u8 flags;
	int action;

	if (!link || (void *)(tcp + 1) > data_end)
		return NOT_EXPRESS;
	if (link->ifindex != ctx->ingress_ifindex)
		return cannot_go(ctx, WEIR_EXPRESS_INGRESS, entry);
	if (!is_for_link(link, data))
		return NOT_EXPRESS;
	flags = ((__u8 *)tcp)[13];
	/* But for a SYN, which may be one of a flood: steering counts and answers those. */
	if (entry->link & WEIR_EXPRESS_STANDBY && !(flags & TCP_SYN)) {
		action = to_worker(ctx, WEIR_REDIRECT, 0);
		if (action != NOT_EXPRESS)
			return action;
	}
	if (entry->link & WEIR_EXPRESS_CHANGES && !(flags & TCP_SYN)) {
		action = change_over(ctx, entry);
		if (action == OVERTAKING)
			outcome = WEIR_EXPRESS_OVERTAKING;
		else if (action != NOT_EXPRESS)
			return action;
	}
	if ((flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK | TCP_URG)) != TCP_ACK) {
		if (flags & TCP_SYN)
			return meet_syn(entry);
		action = entry->link & WEIR_EXPRESS_STRAY ? NOT_EXPRESS : to_worker(ctx, WEIR_EXPRESS_FLAGS, 0);
		if (action != NOT_EXPRESS)
			return action;
		/* Nobody sends the others. */
		if (!(flags & TCP_ACK) && (flags & (TCP_RST | TCP_FIN)) != TCP_RST)
			return cannot_go(ctx, WEIR_EXPRESS_HEADER, entry);
		outcome = WEIR_EXPRESS_ALONE;
	}
	if (!find_hop(entry, &hop))
		return cannot_go(ctx, WEIR_EXPRESS_HOP, entry);
	octets = ipv6 ? sizeof(struct ipv6hdr) + bpf_ntohs(((struct ipv6hdr *)header)->payload_len)
		      : bpf_ntohs(((struct iphdr *)header)->tot_len);
	why = obstacle(header, tcp, octets, frame_len(ctx), &hop, ipv6);
	if (why != WEIR_EXPRESS)
		return cannot_go(ctx, why, entry);
	if (link->flags & WEIR_EXPRESS_UNFINISHED_SUMS && is_unfinished(key, tcp, ETH_HLEN + octets - l4) &&
	    !finish_sum(ctx, l4, ETH_HLEN + octets))
		return cannot_go(ctx, WEIR_EXPRESS_UNFINISHED, entry);
	if (bpf_redirect_map(&express_ports, hop.link, XDP_ABORTED) != XDP_REDIRECT)
		return cannot_go(ctx, WEIR_EXPRESS_HOP, entry);
	if (entry->flags & (WEIR_EXPRESS_TIMESTAMPS | WEIR_EXPRESS_SACK_MAP | WEIR_EXPRESS_SACK_REMOVE))
		change = cross_options(ctx, entry, tcp, flags, l4);
	if (change < 0)
		return cannot_go(ctx, WEIR_EXPRESS_OPTIONS, entry);
	octets -= l4 - ETH_HLEN + tcp->doff * 4;
	cross_tcp(tcp, entry, flags, change);
	cross_ip(header, entry, ipv6);
	__builtin_memcpy(data, &hop, 2 * ETH_ALEN);
	if (!note(entry, weir_express_check(key), octets, flags & (TCP_FIN | TCP_RST)))
		return count(WEIR_EXPRESS_REPLACED, XDP_DROP);
	return count(outcome, XDP_REDIRECT);
}

/*
 * Of user space alone, which has it run on the octets of a key, of what `link` of the entry is to say beside the device, and of what `ended`
 * is to say besides. In place: one that is stored anew loses what other CPUs note in it at that moment, of which the flow's end would be
 * the worst.
 */
static __always_inline int mark_entry(struct xdp_md *ctx)
{
	struct weir_express_key key, *place = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct weir_express *entry;
	__u8 mark, ended;

	if ((void *)(place + 1) + 2 > data_end)
		return XDP_ABORTED;
	key = *place;
	mark = ((__u8 *)(place + 1))[0] & ~(WEIR_EXPRESS_LINKS - 1);
	ended = ((__u8 *)(place + 1))[1] & (TCP_FIN | TCP_RST | WEIR_EXPRESS_SAID);
	entry = bpf_map_lookup_elem(&express_flows, &key);
	if (!entry)
		return XDP_PASS;
	/* At no moment is it the lane's alone in between. */
	add_to_link(entry, mark);
	take_from_link(entry, (__u8)~(mark | (WEIR_EXPRESS_LINKS - 1)));
	if (ended)
		add_to_ended(entry, ended);
	entry->last_seen = bpf_ktime_get_ns() >> 30;
	return XDP_TX;
}

/* A packet without an entry. */
static __always_inline int no_entry(const struct tcphdr *tcp)
{
	return (((const __u8 *)tcp)[13] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN ? OPENS : NOT_EXPRESS;
}

static __always_inline int express4(struct xdp_md *ctx, struct iphdr *ip, void *data_end)
{
	struct tcphdr *tcp = (void *)(ip + 1);
	struct weir_express_key key;
	struct weir_express *entry;

	if ((void *)(tcp + 1) > data_end || *(__u8 *)ip != 0x45 || ip->protocol != IPPROTO_TCP ||
	    ip->frag_off & bpf_htons(IP_MF_OR_OFFSET))
		return NOT_EXPRESS;
	map_ipv4(&key.src, &ip->saddr);
	map_ipv4(&key.dst, &ip->daddr);
	__builtin_memcpy(key.sport, &tcp->source, 4);
	entry = bpf_map_lookup_elem(&express_flows, &key);
	if (!entry || entry->flags & WEIR_EXPRESS_VOID)
		return no_entry(tcp);
	return cross(ctx, entry, &key, 0);
}

static __always_inline int express6(struct xdp_md *ctx, struct ipv6hdr *ip, void *data_end)
{
	struct tcphdr *tcp = (void *)(ip + 1);
	struct weir_express_key key;
	struct weir_express *entry;

	if ((void *)(tcp + 1) > data_end || ip->version != 6 || ip->nexthdr != IPPROTO_TCP)
		return NOT_EXPRESS;
	__builtin_memcpy(&key, &ip->saddr, 32);
	__builtin_memcpy(key.sport, &tcp->source, 4);
	entry = bpf_map_lookup_elem(&express_flows, &key);
	if (!entry || entry->flags & WEIR_EXPRESS_VOID)
		return no_entry(tcp);
	return cross(ctx, entry, &key, 1);
}

/* The lane. What is not for it has not been touched. */
__noinline int express(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;

	if (!config_of(WEIR_CONFIG_EXPRESS) || (void *)(eth + 1) > data_end)
		return NOT_EXPRESS;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return express4(ctx, (void *)(eth + 1), data_end);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return express6(ctx, (void *)(eth + 1), data_end);
	return NOT_EXPRESS;
}

#endif
