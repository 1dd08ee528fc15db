/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Answers a SYN with a SYN-ACK whose initial sequence number is a cookie, so that a flood of SYNs costs the box no more than
 * this: no state, no worker, no way through the stack. The cookie and the clock are those of dataplane/core/src/tcp/cookie.rs,
 * whose description is the specification; the worker checks what comes back.
 *
 * Whatever is not a plain SYN (IP options, extension headers, tags, a signed handshake, an impossible option, a wrong or
 * unfinished checksum) is left to the worker.
 */
#ifndef WEIR_COOKIE_H
#define WEIR_COOKIE_H

#include "maps.h"
#include "parse.h"
#include "sums.h"

/* One for the present period and one for the next or the last: index period & 1. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_COOKIE_KEYS);
	__type(key, __u32);
	__type(value, struct weir_cookies);
} cookies SEC(".maps");

/* SYNs that could be answered with a cookie, whether they are or not: how hard the box is pressed. And those that are. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WEIR_SYNS_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} syns SEC(".maps");

#define COOKIE_PERIOD 64000000000ULL	/* ns */
#define COOKIE_SHIFT 7			/* the window scale that is promised */
#define NO_SHIFT 15
#define MAX_SHIFT 14
#define ANSWER_TTL 64

/* Options of a SYN that are looked at, NOPs among them. */
#define MAX_OPTIONS 20
#define TCPOPT_END 0
#define TCPOPT_NOP 1
#define TCPOPT_MSS 2
#define TCPOPT_WINDOW_SCALE 3
#define TCPOPT_SACK_PERMITTED 4
#define TCPOPT_TIMESTAMPS 8
#define TCPOPT_MD5 19
#define TCPOPT_AO 29

#define DEFAULT_MSS_V4 536
#define DEFAULT_MSS_V6 1220

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LE64(x) (x)
#else
#define LE64(x) __builtin_bswap64(x)
#endif

/* What a SYN says. No padding. */
struct syn {
	__u32 isn;			/* host order */
	__u32 tsval;			/* as in the packet */
	__u16 mss;
	__u8 shift;			/* NO_SHIFT: none */
	__u8 sack;
	__u8 timestamps;
	__u8 reserved[3];
};

_Static_assert(sizeof(struct syn) == 16, "syn");

/* SipHash-2-4 (Aumasson, Bernstein). */
struct sip {
	__u64 a, b, c, d;
};

#define ROTATE(x, by) ((x) << (by) | (x) >> (64 - (by)))

static __always_inline void sip_round(struct sip *s)
{
	s->a += s->b;
	s->b = ROTATE(s->b, 13) ^ s->a;
	s->a = ROTATE(s->a, 32);
	s->c += s->d;
	s->d = ROTATE(s->d, 16) ^ s->c;
	s->a += s->d;
	s->d = ROTATE(s->d, 21) ^ s->a;
	s->c += s->b;
	s->b = ROTATE(s->b, 17) ^ s->c;
	s->c = ROTATE(s->c, 32);
}

static __always_inline void sip_start(struct sip *s, const __u64 *key)
{
	s->a = key[0] ^ 0x736f6d6570736575ULL;
	s->b = key[1] ^ 0x646f72616e646f6dULL;
	s->c = key[0] ^ 0x6c7967656e657261ULL;
	s->d = key[1] ^ 0x7465646279746573ULL;
}

static __always_inline void sip_word(struct sip *s, __u64 word)
{
	s->d ^= word;
	sip_round(s);
	sip_round(s);
	s->a ^= word;
}

/* `last`: what is left of the message, and its length in the highest octet. */
static __always_inline __u64 sip_end(struct sip *s, __u64 last)
{
	sip_word(s, last);
	s->c ^= 0xff;
	sip_round(s);
	sip_round(s);
	sip_round(s);
	sip_round(s);
	return s->a ^ s->b ^ s->c ^ s->d;
}

static __always_inline __u64 word_at(const void *bytes)
{
	__u64 word;

	__builtin_memcpy(&word, bytes, 8);
	return LE64(word);
}

static __always_inline void sip_addresses(struct sip *s, const struct packet *packet)
{
	sip_word(s, word_at(&packet->src.bytes[0]));
	sip_word(s, word_at(&packet->src.bytes[8]));
	sip_word(s, word_at(&packet->dst.bytes[0]));
	sip_word(s, word_at(&packet->dst.bytes[8]));
}

/* Source port, destination port, and four octets more. */
static __always_inline __u64 ports_and(const struct packet *packet, __u32 more)
{
	__u8 bytes[8];

	__builtin_memcpy(bytes, packet->sport, 2);
	__builtin_memcpy(bytes + 2, packet->dport, 2);
	__builtin_memcpy(bytes + 4, &more, 4);
	return word_at(bytes);
}

static __always_inline __u8 mss_index(__u16 mss)
{
	return mss >= 8940 ? 7 : mss >= 1460 ? 6 : mss >= 1440 ? 5 : mss >= 1380 ? 4 : mss >= 1300 ? 3 :
	       mss >= 1220 ? 2 : mss >= 536 ? 1 : 0;
}

/* The initial sequence number that carries what the SYN says. */
static __always_inline __u32 cookie_of(const struct packet *packet, const struct syn *syn,
				       const struct weir_cookies *with)
{
	__u8 bits = mss_index(syn->mss) << 5 | syn->shift << 1 | syn->sack;
	struct sip s;
	__u64 h;

	sip_start(&s, with->key);
	sip_addresses(&s, packet);
	sip_word(&s, ports_and(packet, bpf_htonl(syn->isn)));
	h = sip_end(&s, 40ULL << 56);
	sip_start(&s, with->key);
	sip_word(&s, h);
	return (__u32)(bits ^ (__u8)(h >> 56)) << 24 | ((__u32)sip_end(&s, 9ULL << 56 | bits) & 0xffffff);
}

/* TSval: milliseconds, and an offset by connection. */
static __always_inline __u32 clock_of(const struct packet *packet, const struct weir_cookies *with, __u64 now)
{
	struct sip s;

	sip_start(&s, with->clock);
	sip_addresses(&s, packet);
	return now / 1000000 + sip_end(&s, 36ULL << 56 | (ports_and(packet, 0) & 0xffffffff));
}

/* The sum of the pseudo-header. The octets that map IPv4 addresses add up to nothing: 0xffff, twice. */
static __always_inline __u64 pseudo_sum(const struct packet *packet, __u32 length)
{
	__u64 sum = bpf_htonl(length) + (__u64)bpf_htonl(IPPROTO_TCP);
	__u32 words[8];
	int i;

	__builtin_memcpy(words, &packet->src, 16);
	__builtin_memcpy(words + 4, &packet->dst, 16);
#pragma unroll
	for (i = 0; i < 8; i++)
		sum += words[i];
	return sum;
}

/* Whether no packet on a wire may have this address: weir-core's `Addr::is_martian`, whose packets the worker drops. */
static __always_inline int is_martian(const struct weir_address *address, int ipv6)
{
	const __u8 *a = address->bytes;
	__u64 high, low;

	if (!ipv6)
		return a[12] == 0 || a[12] == 127 || (a[12] & 0xf0) == 224 || (a[12] & a[13] & a[14] & a[15]) == 255;
	__builtin_memcpy(&high, a, 8);
	__builtin_memcpy(&low, a + 8, 8);
	if (!high && !(LE64(low) & 0xffffffffffffff) && a[15] < 2)
		return 1;
	/* IPv4 in disguise is dropped, too. */
	if (!high && (LE64(low) & 0xffffffff) == 0xffff0000)
		return 1;
	return a[0] == 0xff || (a[0] == 0xfe && (a[1] & 0xc0) == 0x80);
}

/* One option of `len` octets. 0: the worker is to look at it. */
static __always_inline int read_option(struct syn *syn, __u8 *option, __u32 len, void *data_end)
{
	switch (option[0]) {
	case TCPOPT_MSS:
		if (len != 4 || (void *)(option + 4) > data_end)
			return 0;
		if (option[2] | option[3])
			syn->mss = option[2] << 8 | option[3];
		return 1;
	case TCPOPT_WINDOW_SCALE:
		if (len != 3 || (void *)(option + 3) > data_end)
			return 0;
		syn->shift = option[2] < MAX_SHIFT ? option[2] : MAX_SHIFT;
		return 1;
	case TCPOPT_SACK_PERMITTED:
		syn->sack = len == 2;
		return syn->sack;
	case TCPOPT_TIMESTAMPS:
		if (len != 10 || (void *)(option + 10) > data_end)
			return 0;
		__builtin_memcpy(&syn->tsval, option + 2, 4);
		syn->timestamps = 1;
		return 1;
	case TCPOPT_MD5:
	case TCPOPT_AO:
		return 0;
	default:
		return 1;
	}
}

/* The options from `at` to `end`. 0: the worker is to look at them. */
__noinline int read_options(struct xdp_md *ctx, struct syn *syn, __u32 at, __u32 end)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	int i;

	if (!syn || at > MAX_OPTIONS_AT || end > MAX_OPTIONS_AT)
		return 0;
	for (i = 0; i < MAX_OPTIONS; i++) {
		__u8 *option;
		__u32 len = 1;

		FORGET(at);
		FORGET(end);
		if (at >= end)
			return 1;
		option = data + at;
		if ((void *)(option + 1) > data_end)
			return 0;
		if (option[0] == TCPOPT_END)
			return 1;
		if (option[0] != TCPOPT_NOP) {
			if ((void *)(option + 2) > data_end)
				return 0;
			len = option[1];
			if (len < 2 || at + len > end || !read_option(syn, option, len, data_end))
				return 0;
		}
		at += len;
	}
	return at >= end;
}

/* Whether the checksum of a segment of headers alone is right. */
__noinline int is_sound(struct xdp_md *ctx, struct packet *packet, __u32 words)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u32 at, i;
	__u64 sum;

	if (!packet || packet->l4 > MAX_L4)
		return 0;
	sum = pseudo_sum(packet, words * 4);
	at = packet->l4;
	for (i = 0; i < 15; i++, at += 4) {
		__u32 *word = (void *)(long)ctx->data + at;

		if (i >= words)
			break;
		if ((void *)(word + 1) > data_end)
			return 0;
		sum += *word;
	}
	return fold(sum) == 0xffff;
}

/* Reads the SYN. 0: the worker is to look at it. */
static __always_inline int read_syn(struct xdp_md *ctx, struct packet *packet, struct syn *syn)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u32 header, l4 = packet->l4;
	struct tcphdr *tcp;

	/* Plain headers before it, and so at a place that is known. */
	if (l4 != ETH_HLEN + (packet->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)))
		return 0;
	if (is_martian(&packet->src, packet->ipv6) || is_martian(&packet->dst, packet->ipv6))
		return 0;
	tcp = (void *)(long)ctx->data + l4;
	if ((void *)(tcp + 1) > data_end)
		return 0;
	header = tcp->doff * 4;
	if (header < sizeof(*tcp) || l4 + header > packet->end)
		return 0;
	/* A wrong sum may also be one that the device was to finish. What comes with data is not kept anyway. */
	if (l4 + header == packet->end && !is_sound(ctx, packet, header / 4))
		return 0;
	syn->isn = bpf_ntohl(tcp->seq);
	syn->mss = packet->ipv6 ? DEFAULT_MSS_V6 : DEFAULT_MSS_V4;
	syn->shift = NO_SHIFT;
	return read_options(ctx, syn, l4 + sizeof(*tcp), l4 + header);
}

/* The options of the SYN-ACK, in the order and with the padding of wire/build.rs: how many words they take. */
static __always_inline __u32 answer_options(__u32 *words, const struct syn *syn, __u16 mss, __u32 tsval)
{
	const __u32 scale = bpf_htonl(TCPOPT_NOP << 24 | TCPOPT_WINDOW_SCALE << 16 | 3 << 8 | COOKIE_SHIFT);
	const __u32 sack = TCPOPT_SACK_PERMITTED << 8 | 2, nops = TCPOPT_NOP << 8 | TCPOPT_NOP;
	int scaled = syn->shift != NO_SHIFT;

	words[0] = bpf_htonl((__u32)TCPOPT_MSS << 24 | 4 << 16 | mss);
	words[4] = scale;
	if (syn->timestamps) {
		words[1] = bpf_htonl((syn->sack ? sack : nops) << 16 | TCPOPT_TIMESTAMPS << 8 | 10);
		words[2] = bpf_htonl(tsval);
		words[3] = syn->tsval;
		return 4 + scaled;
	}
	words[2] = words[3] = 0;
	if (!syn->sack) {
		words[1] = scale;
		return 1 + scaled;
	}
	words[1] = bpf_htonl(nops << 16 | sack);
	words[2] = scale;
	return 2 + scaled;
}

static __always_inline void answer_ipv4(struct iphdr *ip, __u32 length)
{
	__be32 server = ip->daddr;
	__u32 words[5], i;
	__u64 sum = 0;

	ip->tos = 0;
	ip->tot_len = bpf_htons(sizeof(*ip) + length);
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = ANSWER_TTL;
	ip->check = 0;
	ip->daddr = ip->saddr;
	ip->saddr = server;
	__builtin_memcpy(words, ip, sizeof(words));
#pragma unroll
	for (i = 0; i < 5; i++)
		sum += words[i];
	ip->check = ~fold(sum);
}

static __always_inline void answer_ipv6(struct ipv6hdr *ip, __u32 length)
{
	struct in6_addr server;

	__builtin_memcpy(&server, &ip->daddr, sizeof(server));
	*(__be32 *)ip = bpf_htonl(6u << 28);
	ip->payload_len = bpf_htons(length);
	ip->hop_limit = ANSWER_TTL;
	__builtin_memcpy(&ip->daddr, &ip->saddr, sizeof(server));
	__builtin_memcpy(&ip->saddr, &server, sizeof(server));
}

static __always_inline void answer_ethernet(struct ethhdr *eth)
{
	__u8 client[ETH_ALEN];

	__builtin_memcpy(client, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, client, ETH_ALEN);
}

/* Headers of the SYN-ACK with `n` words of options over those of the SYN. The tuple in `packet` is that of the SYN. */
static __always_inline int write_answer(struct xdp_md *ctx, const struct packet *packet, const struct syn *syn,
					__u32 isn, __u16 window, const __u32 *words, __u32 n)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 header[5], *option, i, length = sizeof(struct tcphdr) + n * 4;
	struct tcphdr *tcp;
	__u64 sum;

	tcp = data + ETH_HLEN + (packet->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	if ((void *)(tcp + 1) > data_end)
		return 0;
	answer_ethernet(data);
	if (packet->ipv6)
		answer_ipv6(data + ETH_HLEN, length);
	else
		answer_ipv4(data + ETH_HLEN, length);
	__builtin_memcpy(&header[0], packet->dport, 2);
	__builtin_memcpy((__u8 *)header + 2, packet->sport, 2);
	header[1] = bpf_htonl(isn);
	header[2] = bpf_htonl(syn->isn + 1);
	header[3] = bpf_htonl((length / 4) << 28 | 0x12 << 16 | window);
	header[4] = 0;
	sum = pseudo_sum(packet, length);
#pragma unroll
	for (i = 0; i < 5; i++)
		sum += header[i];
	option = (void *)(tcp + 1);
#pragma unroll
	for (i = 0; i < 5; i++) {
		if (i < n) {
			if ((void *)(option + i + 1) > data_end)
				return 0;
			option[i] = words[i];
			sum += words[i];
		}
	}
	__builtin_memcpy(tcp, header, sizeof(header));
	tcp->check = ~fold(sum);
	return 1;
}

/* Answers the SYN with a cookie. XDP_TX; or XDP_PASS when the worker is to have it, as it came; or XDP_ABORTED. */
__noinline int answer_syn(struct xdp_md *ctx, struct packet *packet)
{
	__u64 now = bpf_ktime_get_ns(), period = now / COOKIE_PERIOD;
	__u32 index = period & 1, isn, n, end, words[5], tsval = 0;
	struct weir_cookies *with = bpf_map_lookup_elem(&cookies, &index);
	struct syn syn = {};
	void *first, *last;
	__u16 mss;
	long have;

	if (!packet || !with || with->period != period || !read_syn(ctx, packet, &syn))
		return XDP_PASS;
	mss = packet->ipv6 ? with->mss6 : with->mss4;
	isn = cookie_of(packet, &syn, with);
	if (syn.timestamps)
		tsval = clock_of(packet, with, now);
	n = answer_options(words, &syn, mss, tsval);
	end = packet->l4 + sizeof(struct tcphdr) + n * 4;
	/* Kept apart for the compiler: the verifier allows the difference of two pointers, in 64 bits. */
	first = (void *)(long)ctx->data;
	last = (void *)(long)ctx->data_end;
	asm volatile("" : "+r"(first), "+r"(last));
	have = last - first;
	asm volatile("" : "+r"(have));
	if (bpf_xdp_adjust_tail(ctx, (int)((long)end - have)))
		return XDP_PASS;
	return write_answer(ctx, packet, &syn, isn, with->window, words, n) ? XDP_TX : XDP_ABORTED;
}

#endif
