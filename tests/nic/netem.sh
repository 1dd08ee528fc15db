# Downloads over bad links, which the kernel's netem makes at both ends: make nic-shell ARGS="--nic igb --with tests/nic/bed.sh" < tests/nic/netem.sh
type report >/dev/null 2>&1 || . ./bed.sh
modprobe sch_netem
begin
# How bad, in netem's own words.
over() {
    local name="$*" server took
    $C tc qdisc replace dev client root netem limit 4000 "$@" || return
    $S tc qdisc replace dev server root netem limit 4000 "$@" || return
    for server in 10.2.0.2 '[fd02::2]'; do
        local since=$SECONDS good=0 tries
        for tries in 1 2 3; do fetch "$server" 90 && good=$((good + 1)); done
        took=$((SECONDS - since))
        [ $good = 3 ]
        row "$name" "$([ "$server" = 10.2.0.2 ] && echo IPv4 || echo IPv6)" $? "$good of 3 files whole, in $took s"
    done
}
over loss 2%
over delay 20ms 10ms reorder 25% 50%
over duplicate 5% corrupt 0.5%
over delay 10ms 5ms loss 1% duplicate 1% reorder 10%
$C tc qdisc del dev client root
$S tc qdisc del dev server root
sleep 1
fast=$(weir flows --json -c weir.toml | tr -d ' \n' | grep -o '"road":"[a-z]*"' | grep -vc fast)
[ "$fast" = 0 ]
row road both $? "$fast connections on another road than the fast one"
finish
report
