# VLANs of real sub-interfaces: make nic-shell ARGS="--nic igb --with tests/nic/bed.sh" < tests/nic/vlan.sh
# A client in VLAN 10, and in VLAN 11 of the provider's VLAN 100, asks a server in VLAN 20, over IPv4 and IPv6.
type report >/dev/null 2>&1 || . ./bed.sh
modprobe 8021q

# Namespace, device, name, number, protocol; addresses.
vlan() {
    $1 ip link add link "$2" name "$3" type vlan proto "$5" id "$4"
    local namespace=$1 name=$3
    shift 5
    address "$namespace" "$name" "$@"
}
vlan "" lan lan.10 10 802.1Q 10.1.10.1/24 fd01:10::1/64
vlan "$C" client client.10 10 802.1Q 10.1.10.2/24 fd01:10::2/64
vlan "" lan lan.100 100 802.1ad
vlan "$C" client client.100 100 802.1ad
vlan "" lan.100 lan.q 11 802.1Q 10.1.11.1/24 fd01:11::1/64
vlan "$C" client.100 client.q 11 802.1Q 10.1.11.2/24 fd01:11::2/64
vlan "" wan wan.20 20 802.1Q 10.2.20.1/24 fd02:20::1/64
vlan "$S" server server.20 20 802.1Q 10.2.20.2/24 fd02:20::2/64
$S ip route replace default via 10.2.20.1
$S ip -6 route replace default via fd02:20::1

sed -i 's/^from = "lan"/&\nvlan = [10, "100.11"]/' weir.toml
offload() { for device in lan wan; do ethtool -k $device | grep rx-vlan-offload; done; }
before=$(offload)
begin

ask() { # server, name, path
    $C timeout 30 bash -c "exec 3<>/dev/tcp/$1/80 && printf 'GET $3 HTTP/1.0\r\nHost: $2\r\n\r\n' >&3 && cat <&3" 2>error.txt
}
road() { # client's and server's address: how many connections weir carries between them by the fast road
    weir flows --json -c weir.toml | tr -d ' \n' | sed 's/},{/}\n{/g' | grep -F "\"client\":\"$1" | grep -F "\"destination\":\"$2" |
        grep -F '"host":"www.example"' | grep -c '"road":"fast"'
}
whole=$(tail -c 2000000 www/big | md5sum)
carried() { # VLANs, family, client and server in a URL, server
    expect "$(ask "$5" www.example /big | tail -c 2000000 | md5sum)" "$whole" "the octets"
    expect "$(road "$3" "$4")" 1 "connections on the fast road"
    ask "$5" denied.example / >answer.txt
    expect "$(wc -c <answer.txt) $(grep -c 'reset by peer' error.txt)" "0 1" "octets and resets of a name that is refused"
    local said=$(weir explain --json -c weir.toml --from "$3:40000" --to "$4:80" | tr -d '\n' | tr -s ' ')
    expect "$(echo "$said" | grep -c "VLAN $1 of port lan") $(echo "$said" | grep -c '"road": "fast"')" "1 1" "what weir explain says"
    told "VLAN $1 to 20" "$2" "an answer of 2 MB, whole, by the fast road, as weir explain says; a name that is refused is reset"
}
for way in "10 10" "100.11 11"; do
    set -- $way
    $C ip route replace default via "10.1.$2.1" src "10.1.$2.2"
    $C ip -6 route replace default via "fd01:$2::1" src "fd01:$2::2"
    carried "$1" IPv4 "10.1.$2.2" 10.2.20.2 10.2.20.2
    carried "$1" IPv6 "[fd01:$2::2]" "[fd02:20::2]" fd02:20::2
done
vlan "" lan lan.12 12 802.1Q 10.1.12.1/24
sleep 2
ip link del lan.12
finish
expect "$(offload)" "$before" "what the NICs take tags off"
expect "$(nft list tables)" "" "tables of nft"
told "left behind" both "NICs take tags off as before, and nothing of weir's is there"
report
