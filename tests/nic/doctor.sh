# What only a driver of a real NIC can show of `weir doctor`, in a guest: make nic-shell ARGS="--nic igb" < tests/nic/doctor.sh
# Each fault is made, found by its id, mended by the command that doctor says, and not found any more.
for device in lan wan; do ip link set $device up; done
ip addr add 10.1.0.1/24 dev lan
ip addr add fd01::1/64 dev lan nodad
ip addr add 10.2.0.1/24 dev wan
ip addr add fd02::1/64 dev wan nodad
for _ in $(seq 50); do grep -q 1 /sys/class/net/lan/carrier && grep -q 1 /sys/class/net/wan/carrier && break; sleep 0.2; done
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1

# The guest is emulated, and stands still now and then: the sign of life may be late.
cat >doctor.toml <<'T'
[gateway]
heartbeat = "10s"
[workers]
flows = 4096
[[port]]
name   = "lan"
device = "lan"
[[port]]
name   = "wan"
device = "wan"
[[intercept]]
name = "web"
from = "lan"
to   = ["0.0.0.0/0", "::/0"]
tcp  = [80]
rules = [{ host = ["denied.example"], action = "reset" }]
T

bad=0
expect() { if [ "$1" = "$2" ]; then echo "ok    $3"; else echo "BAD   $3: $1 instead of $2"; bad=1; fi; }
finding() { # id, device, member: what doctor says, each finding on one line
    weir doctor --json -c doctor.toml | tr -d '\n' | sed 's/{ *"id"/\n&/g; s/} *, */}\n/g' | tr -s ' ' |
        grep "\"id\": \"$1\"" | grep "\"subject\": \"$2\"" | sed -n "s/.*\"$3\": \"\([^\"]*\)\".*/\1/p"
}
broken() { # id, device, severity, mend; then what breaks it
    local id=$1 device=$2 severity=$3 mend=$4
    shift 4
    expect "$(finding "$id" "$device" severity)" good "$id of $device before"
    "$@" || { echo "BAD   cannot be tried: $*"; bad=1; return; }
    expect "$(finding "$id" "$device" severity)" "$severity" "$id of $device: $*"
    expect "$(finding "$id" "$device" mend)" "$mend" "$id of $device: the command that mends it"
    if [ -n "$mend" ]; then
        sh -c "$mend"
        expect "$(finding "$id" "$device" severity)" good "$id of $device after that command"
    fi
}
has() { ethtool -k "$1" | grep -qE "^\s*$2: (on|off)$"; }

weir doctor -v -c doctor.toml
for device in lan wan; do
    modprobe ipvlan
    broken shared $device note "" ip link add link $device name iv type ipvlan mode l2
    ip link del iv
    expect "$(finding shared $device severity)" good "shared of $device without it"
    for pair in lro:large-receive-offload gro-hw:rx-gro-hw; do
        id=${pair%:*} name=${pair#*:}
        has $device $name || continue
        ethtool -K $device $name off
        broken $id $device note "" ethtool -K $device $name on
        expect "$(ethtool -k $device | grep -c "$name: on")" 1 "$name of $device is on yet, after doctor has looked"
    done
    if [ "$(ls -d /sys/class/net/$device/queues/rx-* | wc -l)" -gt 1 ] && ethtool -x $device >/dev/null 2>&1; then
        broken rss-spread $device note "ethtool -X $device equal 2" ethtool -X $device equal 1
        ethtool -X $device weight 3 1
        before=$(ethtool -x $device)
        finding rss-spread $device severity >/dev/null
        expect "$(ethtool -x $device)" "$before" "the hash's table of $device is as it was, after doctor has looked"
        ethtool -X $device equal 2
    fi
done

# weir switches off what merges segments, and on again, however it ends.
merging() { for device in lan wan; do ethtool -k $device | grep -E "large-receive-offload|rx-gro-hw"; done; }
begin() {
    weir run -c doctor.toml >weir.log 2>&1 &
    weir=$!
    for _ in $(seq 100); do grep -q ' ready' weir.log && break; sleep 0.3; done
    expect "$(merging | grep -c ': on')" 0 "segments are not merged while weir runs"
    expect "$(finding lro lan severity) $(finding gro-hw lan severity)" "good good" "doctor finds nothing wrong then"
}
before=$(merging)
echo "$before"
begin
kill -TERM $weir
wait $weir
expect "$? $(merging)" "0 $before" "they are as they were after weir has ended"
begin
kill -KILL $weir
wait $weir
weir clean
expect "$? $(merging)" "0 $before" "and after a weir that was killed, and weir clean"
[ $bad = 0 ] || cat weir.log
exit $bad
