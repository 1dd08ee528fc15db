# What only a driver of a real NIC can show of `weir doctor`: make nic-shell ARGS="--nic igb --with tests/nic/bed.sh" < tests/nic/doctor.sh
# Each fault is made, found by its id, mended by the command that doctor says, and not found any more.
type report >/dev/null 2>&1 || . ./bed.sh
modprobe -a ipvlan 8021q

# Has doctor look; its findings, each on one line.
look() {
    found=$(weir doctor --json -c weir.toml | tr -d '\n' | sed 's/{ *"id"/\n&/g; s/} *, */}\n/g' | tr -s ' ')
}
finding() { # id, device, member
    echo "$found" | grep "\"id\": \"$1\"" | grep "\"subject\": \"$2\"" | sed -n "s/.*\"$3\": \"\([^\"]*\)\".*/\1/p"
}
broken() { # id, mend, then what breaks it
    local id=$1 mend=$2 what
    shift 2
    look
    expect "$(finding "$id" lan severity)" good "before"
    "$@" >&2 || wrong="$wrong; it cannot be tried"
    look
    expect "$(finding "$id" lan severity)" note "with it"
    expect "$(finding "$id" lan mend)" "$mend" "the command that mends it"
    what=$(finding "$id" lan what)
    if [ -n "$mend" ]; then
        sh -c "$mend" >&2
        look
        expect "$(finding "$id" lan severity)" good "after that command"
    fi
    told "$id: $*" both "$what; ${mend:-(no command mends it)}"
}
# Whether the device has a feature that can be switched: some say so and refuse.
has() { ethtool -K lan $1 on >&2 && ethtool -k lan | grep -qE "^\s*$1: on$"; }

weir doctor -v -c weir.toml >&2
look
for id in driver xdp-mode zero-copy coalescing irq-affinity; do
    what=$(finding $id lan what)
    [ -n "$what" ]
    row $id both $? "$(finding $id lan severity): $what"
done
case $(finding rings lan severity) in
    note)
        rings=$(ethtool -g lan | sed -n '/^Current/,$s/^\(RX\|TX\):\s*\([0-9]*\)$/\1 \2/p' | tr 'RTX\n' 'rtx ')
        what=$(finding rings lan what) mend=$(finding rings lan mend)
        sh -c "$mend" >&2
        look
        expect "$(finding rings lan severity)" good "after that command"
        told rings both "$what; $mend"
        ethtool -G lan $rings >&2
        ;;
    *)
        expect "$(finding rings lan severity)" good "its rings"
        told rings both "$(finding rings lan what)"
        ;;
esac
napi=/sys/class/net/lan/napi_defer_hard_irqs
broken napi "echo 0 > $napi && echo 0 > ${napi%/*}/gro_flush_timeout" sh -c "echo 2 > $napi"
# Where the driver lets interrupts be put off; mended it is by what the command's second half sets.
if ethtool -C lan rx-usecs 500 2>/dev/null; then
    look
    expect "$(finding coalescing lan severity)" note "with it"
    what=$(finding coalescing lan what) mend=$(finding coalescing lan mend)
    sh -c "$mend" >&2
    look
    expect "$(finding coalescing lan severity)" good "after that command"
    told "coalescing: ethtool -C lan rx-usecs 500" both "$what; $mend"
    ethtool -C lan rx-usecs 3 >&2
fi
# Tags that the NIC takes off, where a VLAN is on it.
if has rx-vlan-hw-parse || has rx-vlan-offload; then
    ip link add link lan name lan.10 type vlan id 10
    look
    expect "$(finding rx-vlan lan severity)" note "with it"
    what=$(finding rx-vlan lan what) mend=$(finding rx-vlan lan mend)
    sh -c "$mend" >&2
    look
    expect "$(finding rx-vlan lan severity)" good "after that command"
    told "rx-vlan: ip link add link lan name lan.10 type vlan id 10" both "$what; $mend"
    ip link del lan.10
    ethtool -K lan rx-vlan-offload on >&2
fi
broken shared "" ip link add link lan name iv type ipvlan mode l2
ip link del iv
look
expect "$(finding shared lan severity)" good "without it"
told "shared: ip link del iv" both "$(finding shared lan what)"
for pair in lro:large-receive-offload gro-hw:rx-gro-hw; do
    id=${pair%:*} name=${pair#*:}
    has $name || continue
    ethtool -K lan $name off >&2
    broken $id "ethtool -K lan rx-${id#rx-} off" ethtool -K lan $name on
    ethtool -K lan $name on >&2
    look
    expect "$(ethtool -k lan | grep -c "$name: on")" 1 "it is on yet"
    told "$id stays" both "$name is on yet, after doctor has looked"
done
if [ "$(ls -d /sys/class/net/lan/queues/rx-* | wc -l)" -gt 1 ] && ethtool -X lan equal 2 2>/dev/null; then
    broken rss-spread "ethtool -X lan equal 2" ethtool -X lan equal 1
    ethtool -X lan weight 3 1
    before=$(ethtool -x lan)
    look
    expect "$(ethtool -x lan)" "$before" "the table"
    told "rss-spread stays" both "the hash's table is as it was, after doctor has looked"
    ethtool -X lan equal 2
fi

# weir switches off what merges segments, and on again, however it ends.
merging() { for device in lan wan; do ethtool -k $device | grep -E "large-receive-offload|rx-gro-hw"; done; }
before=$(merging)
merges() {
    expect "$(merging | grep -c ': on')" 0 "what merges while weir runs"
    look
    expect "$(finding lro lan severity) $(finding gro-hw lan severity)" "good good" "what doctor says of it then"
}
begin
merges
finish
expect "$(merging)" "$before" "what merges"
told "merging, weir stopped" both "it is off while weir runs, and as before when it has ended"
begin
merges
kill -KILL $weir
wait $weir
weir clean >&2
expect "$? $(merging)" "0 $before" "what merges"
told "merging, weir killed" both "it is off while weir runs, and as before after weir clean"
report
