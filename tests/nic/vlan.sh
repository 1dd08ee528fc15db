# VLANs of real sub-interfaces, in a guest: make nic-shell ARGS="--nic igb" < tests/nic/vlan.sh
# A client in VLAN 10, and in VLAN 11 of the provider's VLAN 100, asks a server in VLAN 20, over IPv4 and IPv6.
modprobe 8021q
ip netns add c
ip netns add s
ip link set client netns c
ip link set server netns s
C="ip netns exec c"
S="ip netns exec s"
for device in lan wan; do ip link set $device up; done
for name in lo client; do $C ip link set $name up; done
for name in lo server; do $S ip link set $name up; done
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1

# Namespace, device, name, number, protocol; addresses.
vlan() {
    $1 ip link add link "$2" name "$3" type vlan proto "$5" id "$4"
    $1 ip link set "$3" up
    shift 5
    for address in "$@"; do echo "$address"; done
}
with() { # Namespace, name, and addresses on standard input
    while read -r address; do $1 ip addr add "$address" dev "$2" $(case $address in *:*) echo nodad ;; esac); done
}
vlan "" lan lan.10 10 802.1Q 10.1.10.1/24 fd01:10::1/64 | with "" lan.10
vlan "$C" client client.10 10 802.1Q 10.1.10.2/24 fd01:10::2/64 | with "$C" client.10
vlan "" lan lan.100 100 802.1ad
vlan "$C" client client.100 100 802.1ad
vlan "" lan.100 lan.q 11 802.1Q 10.1.11.1/24 fd01:11::1/64 | with "" lan.q
vlan "$C" client.100 client.q 11 802.1Q 10.1.11.2/24 fd01:11::2/64 | with "$C" client.q
vlan "" wan wan.20 20 802.1Q 10.2.20.1/24 fd02:20::1/64 | with "" wan.20
vlan "$S" server server.20 20 802.1Q 10.2.20.2/24 fd02:20::2/64 | with "$S" server.20
$S ip route add default via 10.2.20.1
$S ip -6 route add default via fd02:20::1

# The guest is emulated, and stands still now and then: the sign of life may be late.
cat >vlan.toml <<'T'
[gateway]
heartbeat = "10s"

[workers]
flows = 16384

[[port]]
name = "lan"
device = "lan"

[[port]]
name = "wan"
device = "wan"

[[intercept]]
name = "web"
from = "lan"
vlan = [10, "100.11"]
to = ["0.0.0.0/0", "::/0"]
tcp = [80]
rules = [{ host = ["denied.example"], action = "reset" }]
T
mkdir -p www
dd if=/dev/urandom of=www/big bs=1k count=3000 2>/dev/null
$S busybox httpd -p '[::]:80' -h /share/www
offload() { for device in lan wan; do ethtool -k $device | grep rx-vlan-offload; done; }
offload >before.txt
weir run -c vlan.toml >weir.log 2>&1 &
weir=$!
for _ in $(seq 100); do grep -q ' ready' weir.log && break; sleep 0.3; done

bad=0
expect() { if [ "$1" = "$2" ]; then echo "ok    $3"; else echo "BAD   $3: $1 instead of $2"; bad=1; fi; }
ask() { # server, name, path
    $C timeout 30 bash -c "exec 3<>/dev/tcp/$1/80 && printf 'GET $3 HTTP/1.0\r\nHost: $2\r\n\r\n' >&3 && cat <&3" 2>error.txt
}
road() { # client's and server's address: how many connections weir carries between them, and by what
    weir flows --json -c vlan.toml | tr -d ' \n' | sed 's/},{/}\n{/g' | grep -F "\"client\":\"$1" | grep -F "\"destination\":\"$2" |
        grep -F '"host":"www.example"' | grep -c '"road":"fast"'
}
whole=$(tail -c 3000000 www/big | md5sum)
for way in "10 10.1.10" "11 10.1.11"; do
    set -- $way
    $C ip route replace default via "$2.1" src "$2.2"
    $C ip -6 route replace default via "fd01:$1::1" src "fd01:$1::2"
    for pair in "$2.2 10.2.20.2 10.2.20.2" "[fd01:$1::2] fd02:20::2 [fd02:20::2]"; do
        set -- $pair "$1" "$2"
        expect "$(ask "$2" www.example /big | tail -c 3000000 | md5sum)" "$whole" "VLAN $4, $2: an answer, whole"
        expect "$(road "$1" "$3")" 1 "VLAN $4, $2: by the fast road"
        ask "$2" denied.example / >answer.txt
        expect "$(wc -c <answer.txt) $(grep -c 'reset by peer' error.txt)" "0 1" "VLAN $4, $2: a name that is refused"
        set -- "$4" "$5"
    done
done
vlan "" lan lan.12 12 802.1Q 10.1.12.1/24 | with "" lan.12
sleep 2
ip link del lan.12
kill -TERM $weir
wait $weir
expect $? 0 "weir ends as it should"
expect "$(offload)" "$(cat before.txt)" "the NICs take tags off as they did"
expect "$(nft list tables)" "" "nothing of weir's is left"
[ $bad = 0 ] || cat weir.log
exit $bad
