// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * The generator of the SYN flood benchmark: run over and over by BPF_PROG_RUN with live frames, it writes a whole SYN into its frame
 * each time (frames are used again, and what received one may have written to it) and sends it by a device.
 * IPv4 and IPv6 take turns. Sources are random: nobody answers for them. Loaded and fed by src/bin/syn_flood/generator.rs.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ETH 14
#define IP4 20
#define IP6 40
#define TCP 40
#define LEN4 (ETH + IP4 + TCP)
#define LEN6 (ETH + IP6 + TCP)

/* Slots of `config` and `state`. */
enum { CONFIG_DEVICE, CONFIG_INTERVAL_NS, CONFIG_BURST, CONFIG_SLOTS };
/* An interval: send nothing. 0 is: as many as possible. */
#define PAUSED (~0ULL)
enum { STATE_NEXT_NS, STATE_SENT, STATE_SLOTS };

struct template {
	__u8 octets[LEN6];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CONFIG_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} config SEC(".maps");

/* Only one thread at a time runs the program. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STATE_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} state SEC(".maps");

/*
 * A SYN of each family with source address, source port, sequence number and checksums zero; where the checksums belong, there are
 * the sums of the rest instead, in network order.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct template);
} templates SEC(".maps");

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum >> 16) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	return ~sum;
}

static __always_inline __u32 halves(__u32 word)
{
	return (word >> 16) + (word & 0xffff);
}

static __always_inline __u64 *slot(void *map, __u32 index)
{
	return bpf_map_lookup_elem(map, &index);
}

/* Whether a SYN is due. At most a burst is made up for. */
static __always_inline int is_due(__u64 interval, __u64 burst)
{
	__u64 *next = slot(&state, STATE_NEXT_NS);
	__u64 now, behind;

	if (!next || interval == PAUSED)
		return 0;
	if (!interval)
		return 1;
	now = bpf_ktime_get_ns();
	if (now < *next)
		return 0;
	behind = interval * burst;
	if (now - *next > behind)
		*next = now - behind;
	*next += interval;
	return 1;
}

/* Writes source port and sequence number and completes the TCP checksum; `sum` is that of the source address. */
static __always_inline void finish(__u8 *tcp, __u32 sum)
{
	__u32 seq = bpf_get_prandom_u32();
	__u16 port = (bpf_get_prandom_u32() & 0x7fff) | 0x8000;
	__u16 *check = (__u16 *)(tcp + 16);

	*(__u16 *)tcp = port;
	*(__u32 *)(tcp + 4) = seq;
	*check = fold(*check + port + halves(seq) + sum);
}

SEC("xdp")
int syn_flood(struct xdp_md *ctx)
{
	__u64 *device = slot(&config, CONFIG_DEVICE), *interval = slot(&config, CONFIG_INTERVAL_NS);
	__u64 *burst = slot(&config, CONFIG_BURST), *sent = slot(&state, STATE_SENT);
	struct template *from;
	__u32 family, source;
	__u8 *data, *end;

	if (!device || !interval || !burst || !sent || !is_due(*interval, *burst))
		return XDP_DROP;
	family = *sent & 1;
	from = bpf_map_lookup_elem(&templates, &family);
	if (!from)
		return XDP_ABORTED;
	if (!family && bpf_xdp_adjust_tail(ctx, LEN4 - LEN6))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	source = bpf_get_prandom_u32();
	if (family) {
		__u32 low = bpf_get_prandom_u32();

		if (data + LEN6 > end)
			return XDP_ABORTED;
		__builtin_memcpy(data, from->octets, LEN6);
		/* Within 2a00::/16: the /64 and the host are random. The template has the first 16 bits. */
		*(__u16 *)(data + ETH + 8 + 2) = source >> 16;
		*(__u16 *)(data + ETH + 8 + 4) = source;
		*(__u16 *)(data + ETH + 8 + 12) = low >> 16;
		*(__u16 *)(data + ETH + 8 + 14) = low;
		finish(data + ETH + IP6, halves(source) + halves(low));
	} else {
		__u16 *check;

		if (data + LEN4 > end)
			return XDP_ABORTED;
		__builtin_memcpy(data, from->octets, LEN4);
		/* Within 32.0.0.0/3. */
		source = (source & bpf_htonl(0x1fffffff)) | bpf_htonl(0x20000000);
		*(__u16 *)(data + ETH + 12) = source;
		*(__u16 *)(data + ETH + 14) = source >> 16;
		check = (__u16 *)(data + ETH + 10);
		*check = fold(*check + halves(source));
		finish(data + ETH + IP4, halves(source));
	}
	*sent += 1;
	return bpf_redirect(*device, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
