/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * One's complement sums (RFC 1071) and what an edit does to them (RFC 1624, equation 3): weir-core's wire/checksum.rs. Words are
 * taken as they stand in memory, and so is what is written back.
 */
#ifndef WEIR_SUMS_H
#define WEIR_SUMS_H

#include <linux/types.h>

static __always_inline __u32 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* What becomes of a sum when a word becomes another. 0: nothing. */
static __always_inline __u64 change16(__u16 old, __u16 new)
{
	return old == new ? 0 : (__u64)(__u16)~old + new;
}

static __always_inline __u64 change32(__u32 old, __u32 new)
{
	return old == new ? 0 : (__u64)(__u32)~old + new;
}

/* The checksum field after that. */
static __always_inline __u16 mended(__u16 field, __u64 change)
{
	return change ? ~fold((__u16)~field + change) : field;
}

#endif
