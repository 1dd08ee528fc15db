#!/bin/bash
# The first process of a guest: makes the machine usable, does the job that lies in the shared folder, and switches off.
export PATH=/bin:/busybox HOME=/root
/bin/busybox mkdir /busybox
/bin/busybox --install -s /busybox
for name in modprobe depmod insmod rmmod lsmod modinfo; do ln -s kmod /bin/$name; done
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /run/weir
mount -t devpts devpts /dev/pts
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
ln -s /proc/self/fd /dev/fd
echo 1 >/proc/sys/kernel/panic_on_oops

modprobe -a 9pnet_virtio 9p virtio_net e1000e igb vmxnet3 tun
mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 share /share || echo "no shared folder"

# Of what comes up as it is needed, the settings would be told as left behind.
modprobe -a nf_conntrack nf_defrag_ipv6 nft_ct nft_tproxy nft_socket

# QEMU gave the NICs these addresses.
for device in /sys/class/net/*; do
    case $(cat "$device/address") in
        02:77:00:00:00:01) name=client ;;
        02:77:00:00:00:02) name=lan ;;
        02:77:00:00:00:03) name=wan ;;
        02:77:00:00:00:04) name=server ;;
        *) continue ;;
    esac
    ip link set "$(basename "$device")" name "$name"
done
ip link set lo up

cd /share
nic guest </dev/null
sync
poweroff -f
