# What make_hostfile.sh writes, and when it does not. tests/scripts/cabling/test_make_hostfile.py has the cases.

setup() {
  load helper
  make_checkout
  MAKE_HOSTFILE=$CHECKOUT/scripts/make_hostfile.sh
  PYTHON=$(real_python)
  MACS=$BATS_TEST_TMPDIR/macs
  export PYTHON MACS
  PATH=$MACS/bin:$PATH
}

cable() {
  "$PYTHON" "$REPO/tests/support/wiring.py" "$MACS" "$@"
}

@test "--help prints the header; what it does not know is a usage error" {
  run "$MAKE_HOSTFILE" --help
  [ "$status" -eq 0 ]
  says "Usage: make_hostfile.sh"
  for arguments in "--all" "--output" "--topology" ""; do
    # shellcheck disable=SC2086  # split on purpose
    run "$MAKE_HOSTFILE" $arguments
    [ "$status" -eq 2 ] || { echo "$arguments: $status"; return 1; }
  done
}

@test "the default file is the one that the other scripts use, and they take it" {
  cable mesh studio-1 studio-2 studio-3
  run "$MAKE_HOSTFILE" studio-1 studio-2 studio-3
  [ "$status" -eq 0 ]
  says "next: HOSTFILE=$CHECKOUT/hostfiles/m3-ultra-jaccl.local.json scripts/verify_cluster.sh"
  "$PYTHON" "$CHECKOUT/scripts/lib/module.py" lib.hosts.hostfile check \
    "$CHECKOUT/hostfiles/m3-ultra-jaccl.local.json" --backend jaccl
}

@test "it draws the cabling, for people and for Graphviz" {
  cable ring studio-1 studio-2 studio-3 studio-4
  run "$MAKE_HOSTFILE" --dry-run studio-1 studio-2 studio-3 studio-4
  [ "$status" -eq 0 ]
  says "ring: studio-1 -- studio-2 -- studio-3 -- studio-4 -- studio-1"
  says "note: no cable between studio-1 and studio-3"
  run "$MAKE_HOSTFILE" --dot studio-1 studio-2 studio-3 studio-4
  says 'n0 -- n1 [taillabel="en3", headlabel="en3", label="80 Gb/s"];'
  [ ! -e "$CHECKOUT/hostfiles/m3-ultra-jaccl.local.json" ]
}

@test "a file that is there stays, unless --force is given" {
  cable mesh studio-1 studio-2
  cd "$BATS_TEST_TMPDIR"
  echo mine >hosts.json
  run "$MAKE_HOSTFILE" --output hosts.json studio-1 studio-2
  [ "$status" -eq 1 ]
  says "overwrite it with --force"
  [ "$(cat hosts.json)" = mine ]
  run "$MAKE_HOSTFILE" --output hosts.json --force studio-1 studio-2
  [ "$status" -eq 0 ]
  grep -q '"rdma": \[null, "rdma_en3"\]' hosts.json
}

@test "--ring-tcp needs no Thunderbolt, and has a file of its own" {
  cable mesh studio-1 studio-2
  run "$MAKE_HOSTFILE" --ring-tcp studio-1 studio-2
  [ "$status" -eq 0 ]
  grep -q '"backend": "ring"' "$CHECKOUT/hostfiles/ring.local.json"
  grep -q '"ips": \["192.0.2.12"\]' "$CHECKOUT/hostfiles/ring.local.json"
}

@test "every host that is down is named, and nothing is written" {
  cable mesh studio-1 studio-2 studio-3
  touch "$MACS/studio-2/down" "$MACS/studio-3/down"
  run "$MAKE_HOSTFILE" studio-1 studio-2 studio-3
  [ "$status" -eq 1 ]
  says "error: studio-2: ssh: connect to host studio-2 port 22: Connection refused"
  says "error: studio-3: "
  says "studio-1: 6 Thunderbolt ports"
  [ ! -e "$CHECKOUT/hostfiles/m3-ultra-jaccl.local.json" ]
}
