# What the scripts of this folder that play in a guest share: a client and a server in namespaces of their own beside weir's ports, rows of a
# report, and what they came to, which is printed as JSON in the end (as of `weir demo --json`).

# Whoever comes next finds the NICs as they were.
leave() {
    local left
    for left in c s; do
        kill $(ip netns pids $left) 2>/dev/null
        ip netns del $left
    done
    for left in /sys/class/net/lan.* /sys/class/net/wan.*; do [ -e "$left" ] && ip link del "$(basename "$left")"; done
    for left in lan wan; do ip addr flush dev $left scope global; done
} 2>/dev/null
trap leave EXIT
# Whoever was here before may have left them another.
for device in lan wan client server; do ip link set $device mtu 1500; done
ip netns add c
ip netns add s
ip link set client netns c
ip link set server netns s
C="ip netns exec c"
S="ip netns exec s"
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.keep_addr_on_down=1 net.ipv6.conf.default.keep_addr_on_down=1
sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
$C sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.client.accept_dad=0
$S sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.server.accept_dad=0

address() { # Namespace, device, its addresses
    local namespace=$1 device=$2
    shift 2
    $namespace ip link set "$device" up
    for address in "$@"; do $namespace ip addr replace "$address" dev "$device"; done
}
lan() { address "" lan 10.1.0.1/24 fd01::1/64; }
lan
address "" wan 10.2.0.1/24 fd02::1/64
address "$C" client 10.1.0.2/24 fd01::2/64
address "$S" server 10.2.0.2/24 fd02::2/64
for name in "$C" "$S"; do $name ip link set lo up; done
$C ip route add default via 10.1.0.1
$C ip -6 route add default via fd01::1
$S ip route add default via 10.2.0.1
$S ip -6 route add default via fd02::1

# The guest is emulated, and stands still now and then: the sign of life may be late.
cat >weir.toml <<'T'
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
to = ["0.0.0.0/0", "::/0"]
tcp = [80]
rules = [{ host = ["denied.example"], action = "reset" }]
T
mkdir -p www
dd if=/dev/urandom of=www/big bs=1k count=2000 2>/dev/null
whole=$(md5sum <www/big)
$S busybox httpd -p '[::]:80' -h /share/www

rows=
# What was tried, with which family, whether it went as it should (0 or 1), and what was seen.
row() {
    local ok=false
    [ "$3" = 0 ] && ok=true
    echo "nic: $1 $2: $([ $ok = true ] && echo good || echo BAD): $4" >&2
    local text=${4//\\/}
    rows="$rows${rows:+,}{\"scenario\":\"$1\",\"family\":\"$2\",\"variant\":\"\",\"ok\":$ok,\"happened\":\"${text//\"/\'}\"}"
}
# What one row is about: what came, what should have come, and what it is. Whatever differs is told in the row.
wrong=
expect() { [ "$1" = "$2" ] || wrong="$wrong; $3: $1 instead of $2"; }
told() { # Name, family, what was seen
    [ -z "$wrong" ]
    row "$1" "$2" $? "$3$wrong"
    wrong=
}
begin() {
    # What the one before wrote is not to be taken for this one's word.
    : >weir.log
    weir run -c weir.toml >>weir.log 2>&1 &
    weir=$!
    local tries
    for tries in $(seq 100); do grep -q ' ready' weir.log && break; sleep 0.3; done
    grep -q ' ready' weir.log || { cat weir.log >&2; exit 3; }
}
status() { weir status --json -c weir.toml 2>/dev/null | tr -d ' \n'; }
# A number of the status by its key, and a count by its name.
number() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }
count() { grep -o "\"count\":[0-9]*,\"meaning\":\"[^\"]*\",\"name\":\"$1\"" | number count; }
# The file from a server, whole or not.
fetch() { [ "$($C timeout "${2:-60}" busybox wget -q -O - "http://$1/big" 2>/dev/null | md5sum)" = "$whole" ]; }
# Ends weir. Every frame must be free by then.
finish() {
    local frames total free tries
    for tries in $(seq 60); do
        now=$(status)
        frames=$(echo "$now" | sed -n 's/.*"frames":\({[^}]*}\).*/\1/p')
        total=$(echo "$frames" | number total) free=$(echo "$frames" | number free)
        [ -n "$total" ] && [ "$total" = "$free" ] && break
        sleep 1
    done
    local lost=$(echo "$frames" | number lost)
    local said="$free of $total frames are free, $lost lost; from port to port by descriptor: $(echo "$now" | count crossed), of these \
$(echo "$now" | count crossed-zero-copy) copied by nobody"
    [ -n "$total" ] && [ "$total" = "$free" ] && [ "$lost" = 0 ]
    row frames both $? "$said"
    kill -TERM $weir
    wait $weir
    local code=$?
    grep -i panic weir.log >&2
    [ $code = 0 ] && ! grep -qi panic weir.log
    row end both $? "weir ends with $code"
}
# Prints the report. Exit code 1: something was not as it should be.
report() {
    [[ $rows == *'"ok":false'* ]] && cat weir.log >&2
    echo "{\"rows\":[$rows],\"status\":${now:-null}}"
    [[ $rows != *'"ok":false'* ]]
}
