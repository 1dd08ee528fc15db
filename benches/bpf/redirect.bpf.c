// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * The least that forwarding in XDP can be, as a ceiling for what is measured: TCP over IPv4 or IPv6 gets the link-layer addresses of
 * the other side and leaves by it. Nothing is looked up but the device, nothing is checked. Loaded and fed by src/contender/redirect.rs.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TCP 6

/* Link-layer addresses as the frame has them: destination, source. */
struct macs {
	__u8 octets[2 * ETH_ALEN];
};

/* Both by the index of the device that a frame came in by: what it gets, and by which device it leaves. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct macs);
} macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} devices SEC(".maps");

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 from = ctx->ingress_ifindex;
	struct macs *to;
	__u16 kind;

	if (data + ETH_HLEN + 20 > end)
		return XDP_PASS;
	kind = *(__u16 *)(data + 2 * ETH_ALEN);
	/* The protocol of IPv4, the next header of IPv6. */
	if (!(kind == bpf_htons(ETH_P_IP) && data[ETH_HLEN + 9] == TCP) &&
	    !(kind == bpf_htons(ETH_P_IPV6) && data[ETH_HLEN + 6] == TCP))
		return XDP_PASS;
	to = bpf_map_lookup_elem(&macs, &from);
	if (!to)
		return XDP_PASS;
	__builtin_memcpy(data, to->octets, sizeof(*to));
	return bpf_redirect_map(&devices, from, XDP_PASS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
