// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * Both ends of the measurement of small packets. `small`, run over and over by BPF_PROG_RUN with live frames, writes one and the same
 * segment into its frame each time (frames are used again, and what received one may have written to it) and sends it by a device.
 * `sink` counts TCP at the other end and drops it. Loaded and fed by src/small.rs.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TCP 6
/* A segment without options and payload: over IPv4, padded to Ethernet's least; over IPv6. */
#define LEN4 60
#define LEN6 74

struct template {
	__u8 octets[LEN6];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct template);
} templates SEC(".maps");

/*
 * No more are under way than this: less than an AF_XDP socket's ring holds. A sender that knows no bounds shows how a gateway
 * behaves under too much, not what it can carry: on one CPU, receiving what is thrown away leaves no time to send.
 */
#define WINDOW 1024
/* Without an arrival for so long in ns, what is under way is lost. */
#define LOST 1000000

/*
 * Slots of `state`: the device to send by, what was sent and not given up, what has arrived, and the last of these that the sender
 * has seen, and when. Only one thread at a time runs each program.
 */
enum { STATE_DEVICE, STATE_SENT, STATE_ARRIVED, STATE_SEEN, STATE_SEEN_NS, STATE_SLOTS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STATE_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} state SEC(".maps");

static __always_inline __u64 *slot(__u32 index)
{
	return bpf_map_lookup_elem(&state, &index);
}

/* Whether there is room in the window. */
static __always_inline int may_send(void)
{
	__u64 *sent = slot(STATE_SENT), *arrived = slot(STATE_ARRIVED), *seen = slot(STATE_SEEN), *since = slot(STATE_SEEN_NS);
	__u64 now, here;

	if (!sent || !arrived || !seen || !since)
		return 0;
	here = *(volatile __u64 *)arrived;
	if (*sent - here < WINDOW) {
		*sent += 1;
		return 1;
	}
	now = bpf_ktime_get_ns();
	if (here != *seen) {
		*seen = here;
		*since = now;
	} else if (now - *since > LOST) {
		*sent = here;
	}
	return 0;
}

SEC("xdp")
int small(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 *device = slot(STATE_DEVICE);
	struct template *from;
	__u32 first = 0;

	if (!may_send())
		return XDP_DROP;
	from = bpf_map_lookup_elem(&templates, &first);
	if (!from || !device)
		return XDP_ABORTED;
	if (data + LEN6 <= end)
		__builtin_memcpy(data, from->octets, LEN6);
	else if (data + LEN4 <= end)
		__builtin_memcpy(data, from->octets, LEN4);
	else
		return XDP_ABORTED;
	return bpf_redirect(*device, 0);
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 *arrived = slot(STATE_ARRIVED);
	__u16 kind;

	if (!arrived || data + ETH_HLEN + 20 > end)
		return XDP_PASS;
	kind = *(__u16 *)(data + 2 * ETH_ALEN);
	if (!(kind == bpf_htons(ETH_P_IP) && data[ETH_HLEN + 9] == TCP) &&
	    !(kind == bpf_htons(ETH_P_IPV6) && data[ETH_HLEN + 6] == TCP))
		return XDP_PASS;
	*arrived += 1;
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
