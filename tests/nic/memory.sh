# A start that finds no memory leaves the box as it fails, by a control group of version 2, which a guest has whatever this machine has:
# make nic-shell ARGS="--nic igb --with tests/nic/bed.sh" < tests/nic/memory.sh
type report >/dev/null 2>&1 || . ./bed.sh

mkdir -p /groups
mount -t cgroup2 groups /groups
echo +memory >/groups/cgroup.subtree_control

# Starts weir in a group of so many MiB, and waits for its end.
limited() {
    : >weir.log
    mkdir /groups/weir
    echo $(($1 << 20)) >/groups/weir/memory.max
    sh -c 'echo $$ >/groups/weir/cgroup.procs && exec weir run -c weir.toml' >weir.log 2>&1
    code=$?
    killed=$(sed -n 's/^oom_kill //p' /groups/weir/memory.events)
    for tries in $(seq 50); do rmdir /groups/weir 2>/dev/null && break; sleep 0.1; done
}
# How many of the two families get through to the server.
passes() {
    local server count=0
    for server in 10.2.0.2 '[fd02::2]'; do fetch "$server" 8 && count=$((count + 1)); done
    echo $count
}
# What is expected of the box now, and after weir clean.
as_it_fails() { # open or closed
    expect "$(passes)" "$([ "$1" = open ] && echo 2 || echo 0)" "families that get through"
    weir clean >&2
    expect "$? $(passes)" "0 2" "exit code of weir clean, families that get through"
}

for fail in open closed; do
    sed -i "/^fail = /d; s/^\[gateway\]/&\nfail = \"$fail\"/" weir.toml

    mount -t cgroup2 groups /sys/fs/cgroup
    limited 32
    umount /sys/fs/cgroup
    said=$(grep -o "its control group leaves [0-9]* MiB (memory.max" weir.log)
    expect "$code" 3 "exit code"
    [ -n "$said" ] || wrong="$wrong; it does not say so"
    as_it_fails $fail
    told "memory.max that weir sees, $fail" both "weir ends with $code: $said)"

    # What it can ask says that there is memory.
    limited 24
    expect "$code $killed" "137 1" "exit code and processes killed"
    as_it_fails $fail
    told "memory.max that weir does not see, $fail" both "the kernel ended it ($code)"
done
report
