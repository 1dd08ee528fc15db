# What can happen to a port while traffic passes: make nic-shell ARGS="--nic igb --with tests/nic/bed.sh" < tests/nic/faults.sh
type report >/dev/null 2>&1 || . ./bed.sh
begin

# Downloads over both families, one after the other, until the file `stop` is there.
traffic() {
    rm -f stop traffic.*
    loops=
    for server in 10.2.0.2 '[fd02::2]'; do
        (
            good=0 cut=0
            until [ -e stop ]; do
                if fetch "$server" 20; then good=$((good + 1)); else cut=$((cut + 1)); fi
            done
            echo "$good whole, $cut cut short" >"traffic.${#server}"
        ) &
        loops="$loops $!"
    done
}
quiet() {
    touch stop
    wait $loops
    seen="IPv4 $(cat traffic.8), IPv6 $(cat traffic.9)"
}
drops() { status | sed 's/.*"drops":\[//; s/\].*//' | sed 's/},{/\n/g' | sed -n 's/.*"count":\([1-9][0-9]*\),.*"name":"\([a-z-]*\)".*/\2 \1/p'; }

# What happens, in words, and the commands. Afterwards weir is well by itself, and new connections take the fast road.
fault() {
    local name=$1 said="" seen="" dropped tries
    shift
    drops >before.txt
    local logged=$(wc -l <weir.log)
    traffic
    sleep 1
    "$@" >fault.log 2>&1
    local made=$?
    if [ $made != 0 ]; then
        quiet
        said="not done: $(tail -n 1 fault.log)"
        row "$name" both "$([ "${refused_is_fine:-}" = "$name" ]; echo $?)" "$said"
        return
    fi
    local well=1 since=$SECONDS
    for tries in $(seq 60); do
        status | grep -q '"healthy":true' && { well=0; break; }
        sleep 0.5
    done
    local took=$((SECONDS - since))
    sleep 1
    quiet
    for server in 10.2.0.2 '[fd02::2]'; do
        fetch "$server" || { well=1; seen="$seen; a new connection to $server fails"; }
    done
    local fast=$(weir flows --json -c weir.toml | tr -d ' \n' | grep -o '"road":"[a-z]*"' | tail -n 2 | grep -c fast)
    [ "$fast" = 2 ] || { well=1; seen="$seen; new connections are not on the fast road"; }
    kill -0 $weir || { well=1; seen="$seen; weir is dead"; }
    said=$(tail -n +$((logged + 1)) weir.log | sed 's/\x1b\[[0-9;]*m//g' | grep -E 'WARN|ERROR|back|link|fast road|changed|queue' | sed 's/^[^ ]* *//' | sort -u | head -n 4 | tr '\n' ';')
    dropped=$(drops | diff before.txt - | sed -n 's/^> //p' | tr '\n' ',')
    row "$name" both $well "well after $took s; downloads: $seen; dropped: ${dropped:-nothing}; weir said: ${said:-nothing}"
}

down_up() { ip link set lan down && sleep 3 && ip link set lan up; }
rebind() {
    local driver=$(readlink -f /sys/class/net/lan/device/driver) id=$(basename "$(readlink -f /sys/class/net/lan/device)") tries device
    local queues=$(ls -d /sys/class/net/lan/queues/rx-* | wc -l)
    echo "$id" >"$driver/unbind"
    sleep 3
    echo "$id" >"$driver/bind"
    for tries in $(seq 50); do
        for device in /sys/class/net/*; do
            [ "$(cat "$device/address")" = 02:77:00:00:00:02 ] || continue
            device=$(basename "$device")
            [ "$device" = lan ] || ip link set "$device" name lan
            ethtool -L lan combined "$queues"
            lan
            return 0
        done
        sleep 0.2
    done
    return 1
}
fewer() { ethtool -L lan combined 1 && sleep 3; local made=$?; ethtool -L lan combined 2; return $made; }
more() { ethtool -L lan combined 2 && sleep 3 && ethtool -L lan combined 1; }
mtu() { ip link set lan mtu 1400 && sleep 3 && ip link set lan mtu 1500; }
too_large() { ip link set lan mtu 3900 && sleep 3; local made=$?; ip link set lan mtu 1500; return $made; }
rings() { ethtool -G lan rx 128 tx 128 && sleep 3 && ethtool -G lan rx 256 tx 256; }
stopped() { kill -STOP $weir && sleep 3 && kill -CONT $weir; }

fault "link down and up" down_up
fault "driver unbound and bound" rebind
refused_is_fine="queues 2, 1, 2"
fault "queues 2, 1, 2" fewer
fault "MTU 1400 and 1500" mtu
refused_is_fine="MTU 3900 and 1500"
fault "MTU 3900 and 1500" too_large
refused_is_fine="rings of 128 and 256"
fault "rings of 128 and 256" rings
fault "weir stopped for 3 s" stopped
finish
# Of a queue that comes later weir has no worker: what comes by it takes the kernel road.
if ethtool -L lan combined 1 2>/dev/null; then
    begin
    refused_is_fine="queues 1, 2, 1"
    fault "queues 1, 2, 1" more
    finish
    ethtool -L lan combined 2
fi

# Connections that weir answered itself outlive it where the XDP program carries them, or stands by: in zero-copy.
sed -i 's/^tcp = .*/&\nhandshake = "answer"/' weir.toml
begin
modprobe sch_netem
$S tc qdisc add dev server root netem rate 4mbit
loops=
for server in 10.2.0.2 '[fd02::2]'; do
    { fetch "$server" 90 && echo whole || echo "cut short"; } >"traffic.${#server}" &
    loops="$loops $!"
done
for tries in $(seq 20); do
    now=$(status) express=$(echo "$now" | number flows_express) standby=$(echo "$now" | number flows_standby)
    [ $((express + standby)) = 2 ] && break
    sleep 0.2
done
kill -KILL $weir
wait $weir
sleep 2
begin
wait $loops
$S tc qdisc del dev server root
seen="IPv4 $(cat traffic.8), IPv6 $(cat traffic.9)"
# Where the driver sends no frames for the program nobody can.
can=$([ $((express + standby)) = 2 ]; echo $?)
[ "$seen" = "IPv4 whole, IPv6 whole" ] || [ "$can:$(ethtool -i lan | sed -n 's/^driver: //p')" = 1:e1000e ]
row "weir killed and started again" both $? "of 2 answered connections $express in the express lane, $standby stood by for; $seen"
finish
report
