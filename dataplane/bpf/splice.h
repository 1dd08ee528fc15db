/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A segment of the express lane, rewritten from one leg to the other. dataplane/core/src/tcp/translate.rs is the specification: what
 * is accepted here comes out as it does there, octet by octet (tests/tests/lane).
 *
 * Nothing is written before it is clear that all can be.
 */
#ifndef WEIR_SPLICE_H
#define WEIR_SPLICE_H

#include "cookie.h"
#include "maps.h"
#include "parse.h"
#include "sums.h"

#define TCPOPT_SACK 5
#define TIMESTAMPS_LEN 10
#define BLOCK_LEN 8
#define MAX_BLOCKS 4

/* Two NOPs, timestamps, and nothing else: nearly all options there are (RFC 7323, appendix A). */
#define ALIGNED_TIMESTAMPS bpf_htonl(TCPOPT_NOP << 24 | TCPOPT_NOP << 16 | TCPOPT_TIMESTAMPS << 8 | TIMESTAMPS_LEN)

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_URG 0x20
#define TCP_ECN 0xc0

/* Words of options. */
#define MAX_OPTION_WORDS 10

/* Octets that are summed at once, and the end of the largest frame that is: of a jumbo link. */
#define SUM_STEP 256
#define MAX_FRAME 10240

static __always_inline __u32 get32(const __u8 *at)
{
	__u32 word;

	__builtin_memcpy(&word, at, 4);
	return bpf_ntohl(word);
}

static __always_inline void put32(__u8 *at, __u32 value)
{
	__u32 word = bpf_htonl(value);

	__builtin_memcpy(at, &word, 4);
}

/* A window field at another scale, rounded down and saturating: never more than was offered. */
static __always_inline __u16 shifted(__u16 window, __s8 by)
{
	__u32 wide;

	if (by < 0)
		return window >> (-by & 15);
	wide = (__u32)window << (by & 15);
	return wide > 0xffff ? 0xffff : wide;
}

/*
 * Where the options that are rewritten stand in the frame, between `at` and `end`: timestamps in the lowest octet, SACK in the next and
 * its length in the third; 0: nowhere. -1: they are too many, or of one kind there are several.
 *
 * Each loop is a function of its own, like the parsers, and for the same reason.
 */
__noinline int find_options(struct xdp_md *ctx, __u32 at, __u32 end)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 timestamps = 0, sack = 0, sack_len = 0;
	int i;

	if (at > MAX_OPTIONS_AT || end > MAX_OPTIONS_AT)
		return -1;
	for (i = 0; i < MAX_OPTIONS; i++) {
		__u8 *option;
		__u32 len = 1;

		FORGET(at);
		FORGET(end);
		FORGET(timestamps);
		FORGET(sack);
		FORGET(sack_len);
		if (at >= end)
			break;
		option = data + at;
		if ((void *)(option + 1) > data_end)
			return -1;
		if (option[0] == TCPOPT_END)
			break;
		if (option[0] != TCPOPT_NOP) {
			/* From an impossible length on, nothing is an option. */
			if (at + 2 > end)
				break;
			if ((void *)(option + 2) > data_end)
				return -1;
			len = option[1];
			if (len < 2 || at + len > end)
				break;
		}
		if (option[0] == TCPOPT_SACK) {
			if (sack)
				return -1;
			sack = at;
			sack_len = len;
		}
		if (option[0] == TCPOPT_TIMESTAMPS && len == TIMESTAMPS_LEN) {
			if (timestamps)
				return -1;
			timestamps = at;
		}
		at += len;
	}
	return i < MAX_OPTIONS || at >= end ? (int)(timestamps | sack << 8 | sack_len << 16) : -1;
}

/* Ten words at most, from an even offset of the segment on, folded. */
__noinline int sum_options(struct xdp_md *ctx, __u32 at, __u32 words)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u64 sum = 0;
	__u32 i;

	if (at > MAX_OPTIONS_AT)
		return 0;
	for (i = 0; i < MAX_OPTION_WORDS; i++) {
		__u32 *word = data + at + i * 4;

		if (i >= words || (void *)(word + 1) > data_end)
			break;
		sum += *word;
	}
	return fold(sum);
}

/* Each edit says what it changed: 0 is nothing. */
__noinline int fill_nops(struct xdp_md *ctx, __u32 at, __u32 end)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 differs = 0, i;

	if (at > MAX_OPTIONS_AT)
		return 0;
	for (i = 0; i < MAX_OPTION_WORDS * 4; i++) {
		__u8 *octet = data + at + i;

		if (at + i >= end || (void *)(octet + 1) > data_end)
			break;
		differs |= *octet ^ TCPOPT_NOP;
		*octet = TCPOPT_NOP;
	}
	return differs;
}

static __always_inline __u32 edit32(__u8 *at, __u32 value)
{
	__u32 differs = get32(at) ^ value;

	put32(at, value);
	return differs;
}

/* Whether a SACK edge lies before the stream: at its first octet, or not far below. */
static __always_inline int is_below(__u32 edge, const struct weir_express *entry)
{
	return entry->floor - edge <= entry->behind;
}

/* The blocks of the option at `at`, of a right length, are moved; those that the receiver could not understand go. */
__noinline int edit_blocks(struct xdp_md *ctx, struct weir_express *entry, __u32 at, __u32 len)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 kept = 2, differs = 0, move, i;
	__u8 *option;

	if (!entry || at > MAX_OPTIONS_AT)
		return 0;
	option = data + at;
	move = entry->flags & WEIR_EXPRESS_TO_CLIENT ? 0 : entry->delta;
	for (i = 0; i < MAX_BLOCKS; i++) {
		__u8 *block = option + 2 + i * BLOCK_LEN, *to = option + kept;
		__u32 left, right;

		if (2 + (i + 1) * BLOCK_LEN > len || (void *)(block + BLOCK_LEN) > data_end)
			break;
		left = get32(block) + move;
		right = get32(block + 4) + move;
		if (is_below(right, entry) || (void *)(to + BLOCK_LEN) > data_end)
			continue;
		differs |= edit32(to, is_below(left, entry) ? entry->floor : left);
		differs |= edit32(to + 4, right);
		kept += BLOCK_LEN;
	}
	if (kept == 2 || (void *)(option + 2) > data_end)
		return fill_nops(ctx, at, at + len);
	differs |= option[1] ^ kept;
	option[1] = kept;
	return differs | fill_nops(ctx, at + kept, at + len);
}

/* TSval to the client, TSecr to the server; without ACK that says nothing (RFC 7323, section 3.2). */
static __always_inline __u32 edit_timestamps(__u8 *option, const struct weir_express *entry, __u8 flags)
{
	if (entry->flags & WEIR_EXPRESS_TO_CLIENT)
		return edit32(option + 2, get32(option + 2) + entry->clock);
	return flags & TCP_ACK ? edit32(option + 6, get32(option + 6) + entry->clock) : 0;
}

/*
 * Options in any layout, `words` words of them, of a segment with these `flags` whose options begin at `at`. What that does to
 * TCP's checksum, or -1: they are the worker's, and nothing is changed.
 */
__noinline int splice_options(struct xdp_md *ctx, struct weir_express *entry, __u32 at, __u32 words, __u32 flags)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 before, differs = 0, timestamps, sack, len;
	int found = find_options(ctx, at, at + words * 4);

	if (!entry || found < 0)
		return -1;
	timestamps = found & 0xff;
	sack = found >> 8 & 0xff;
	len = found >> 16 & 0xff;
	before = sum_options(ctx, at, words);
	if (timestamps && entry->flags & WEIR_EXPRESS_TIMESTAMPS) {
		__u8 *option = data + timestamps;

		if ((void *)(option + TIMESTAMPS_LEN) <= data_end)
			differs |= edit_timestamps(option, entry, flags);
	}
	if (sack && entry->flags & (WEIR_EXPRESS_SACK_MAP | WEIR_EXPRESS_SACK_REMOVE)) {
		if (entry->flags & WEIR_EXPRESS_SACK_REMOVE || len < 2 + BLOCK_LEN || len % BLOCK_LEN != 2)
			differs |= fill_nops(ctx, sack, sack + len);
		else
			differs |= edit_blocks(ctx, entry, sack, len);
	}
	return differs ? (int)((__u16)~before + sum_options(ctx, at, words)) : 0;
}

/* What is left of a segment after whole steps, from `at` to `end`, added to `sum`, folded. */
__noinline int sum_rest(struct xdp_md *ctx, __u32 at, __u32 end, __u32 sum)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u64 wide = sum;
	__u32 i, words, left;

	if (at > MAX_FRAME || at > end)
		return 0;
	words = (end - at) / 4;
	left = (end - at) % 4;
	for (i = 0; i < SUM_STEP / 4; i++) {
		__u32 *word = data + at + i * 4;

		if (i >= words || (void *)(word + 1) > data_end)
			break;
		wide += *word;
	}
	at += (words & (SUM_STEP / 4 - 1)) * 4;
	for (i = 0; i < 3; i++) {
		__u8 *octet = data + at + i;

		if (i >= left || (void *)(octet + 1) > data_end)
			break;
		/* The first octet of a word is its higher half. */
		wide += bpf_htons(i & 1 ? *octet : *octet << 8);
	}
	return fold(wide);
}

/*
 * Sums the segment from `l4` to `end`, both in the frame, and writes its checksum, of which the field now is the part of the
 * pseudo header: what a device was to do, and there is none. 0: it is larger than any that comes here.
 */
__noinline int finish_sum(struct xdp_md *ctx, __u32 l4, __u32 end)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 at = l4, sum = 0, i;
	struct tcphdr *tcp;

	if (l4 > ETH_HLEN + sizeof(struct ipv6hdr) || end > MAX_FRAME)
		return 0;
	for (i = 0; i < MAX_FRAME / SUM_STEP; i++) {
		__be32 *from;

		if (at + SUM_STEP > end || at > MAX_FRAME)
			break;
		from = data + at;
		if ((void *)from + SUM_STEP > data_end)
			break;
		sum = bpf_csum_diff(0, 0, from, SUM_STEP, sum);
		at += SUM_STEP;
	}
	sum = sum_rest(ctx, at, end, sum);
	tcp = data + l4;
	if ((void *)(tcp + 1) > data_end)
		return 0;
	tcp->check = ~sum;
	return 1;
}

#endif
