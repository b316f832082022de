# The options of verify_cluster.sh, and a ring of two hosts behind a stub ssh. What it says of
# Macs and of what is wrong with them is in tests/doctor.

setup() {
  load helper
  make_checkout
  stub_ssh
  PYTHON=$(real_python)
  export PYTHON
  ring studio.local.json
}

# ring NAME: a hostfile without RDMA, whose hosts are this machine.
ring() {
  cat >"$CHECKOUT/hostfiles/$1" <<'JSON'
{"hosts": [{"ssh": "mac0", "ips": ["127.0.0.1"]}, {"ssh": "mac1", "ips": ["127.0.0.1"]}]}
JSON
  mkdir -p "$REMOTE/mac0" "$REMOTE/mac1"
}

# row CHECK: its line of the table, with single spaces.
row() {
  echo "$output" | awk -v check="$1" '$1 == check { $1 = $1; print }'
}

@test "--help prints the header; wrong arguments are usage errors that name them" {
  run "$VERIFY" --help
  [ "$status" -eq 0 ]
  says "Usage: verify_cluster.sh"
  for wrong in --all --host "--deadline 0" "--deadline soon" --yes \
    "--smoke --link" "--json --smoke"; do
    # shellcheck disable=SC2086  # words
    run "$VERIFY" $wrong
    [ "$status" -eq 2 ]
    says "${wrong%% *}"
  done
  run "$VERIFY" --host mac9
  says "--host mac9: must be one of mac0, mac1"
  run "$VERIFY" --check gids
  says "must be one of hostfile, ssh,"
}

@test "--list names every check with what it is about, and asks no host" {
  run "$VERIFY" --list
  [ "$status" -eq 0 ]
  for check in ssh python rdma gid bridge cabling port path model memory sleep; do
    echo "$output" | grep -Eq "^$check +[a-zA-Z]"
  done
  run called "ssh "
  [ "$status" -ne 0 ]
}

@test "a ring that is well passes on both hosts, over one ssh each, without RDMA checks" {
  run "$VERIFY"
  [ "$status" -eq 0 ]
  [ "$(row ssh)" = "ssh pass pass" ]
  [ "$(row path)" = "path pass pass" ]
  [ -z "$(row gid)" ]
  says "0 failed"
  [ "$(grep -c "^ssh " "$CALLS")" -eq 2 ]
  [ "$(grep -c -- '-o BatchMode=yes -o ConnectTimeout=5' "$CALLS")" -eq 2 ]
}

@test "hosts can be named before there is a hostfile" {
  rm "$CHECKOUT/hostfiles/studio.local.json"
  run "$VERIFY" mac0 mac1
  [ "$status" -eq 0 ]
  [ "$(row ssh)" = "ssh pass pass" ]
  [ "$(row versions)" != "" ]
  [ -z "$(row hostfile)" ]
  [ -z "$(row path)" ]
  says "scripts/make_hostfile.sh mac0 mac1 writes one"
  touch "$REMOTE/mac1/down"
  run "$VERIFY" mac0 mac1 --check python
  [ "$status" -eq 1 ]
  [ "$(row ssh)" = "ssh pass FAIL" ]
  run "$VERIFY" --dry-run mac0 mac9
  [ "$status" -eq 0 ]
  says "mac9"
}

@test "names of hosts do not go with another place" {
  for wrong in "mac0 --local 2" "mac0 --smoke" "mac0 --link" "mac0 --hostfile x.json"; do
    # shellcheck disable=SC2086  # words
    run "$VERIFY" $wrong
    [ "$status" -eq 2 ] || { echo "$wrong: $status"; return 1; }
  done
  run "$VERIFY" "mac0;reboot"
  [ "$status" -eq 2 ]
  says "mac0;reboot"
}

@test "a host that is down fails with what to do, and the other is still checked" {
  touch "$REMOTE/mac0/down"
  run "$VERIFY" --check python
  [ "$status" -eq 1 ]
  [ "$(row ssh)" = "ssh FAIL pass" ]
  [ "$(row python)" = "python - pass" ]
  says "FAIL  mac0: ssh: ssh: connect to host mac0 port 22: Connection refused"
  says "Remote Login"
}

@test "a shell profile that prints fails, and the rest of that host is judged all the same" {
  echo "Welcome to mac1" >"$REMOTE/mac1/profile"
  run "$VERIFY" --check python
  [ "$status" -eq 1 ]
  says "FAIL  mac1: ssh: its shell prints by itself: Welcome to mac1"
  [ "$(row python)" = "python pass pass" ]
}

@test "--host and --check look at nothing else" {
  run "$VERIFY" --host mac1 --check disk
  [ "$status" -eq 0 ]
  [ "$(echo "$output" | head -n 3 | awk '{ print $1, $2 }' | tr '\n' ' ')" = \
    "check mac1 ssh pass disk pass " ]
  run called "mac0"
  [ "$status" -ne 0 ]
}

@test "--json is one object with every finding and the facts" {
  touch "$REMOTE/mac0/down"
  "$VERIFY" --json --check disk >"$BATS_TEST_TMPDIR/json" || [ "$?" -eq 1 ]
  run "$PYTHON" -c '
import json, sys
data = json.load(open(sys.argv[1]))
found = {(f["check"], f["host"]): f for f in data["findings"]}
assert data["ok"] is False and data["counts"]["fail"] == 1
assert found["ssh", "mac0"]["verdict"] == "fail" and found["ssh", "mac0"]["fix"]["words"]
assert found["disk", "mac1"]["verdict"] == "pass"
assert data["facts"]["mac1"]["disk_free"] > 0
' "$BATS_TEST_TMPDIR/json"
  [ "$status" -eq 0 ]
}

@test "JACCL on hosts that are no Macs is refused in words, once a host" {
  hostfile studio.local.json
  run "$VERIFY" --check macos --check gid
  [ "$status" -eq 1 ]
  [ "$(uname -s)" = Darwin ] || says "needs macOS"
  [ "$(uname -s)" = Darwin ] || [ "$(row gid)" = "gid - -" ]
}

@test "a malformed matrix fails, and the hosts are checked all the same" {
  hostfile studio.local.json
  sed 's/null, "rdma_en3"/null/' "$CHECKOUT/hostfiles/studio.local.json" >"$BATS_TEST_TMPDIR/f"
  HOSTFILE=$BATS_TEST_TMPDIR/f run "$VERIFY" --check hostfile --check disk
  [ "$status" -eq 1 ]
  says 'FAIL  hostfile: rank 0 (mac0): "rdma" has 1 entries'
  says "The hostfile is malformed"
  [ "$(row disk)" = "disk pass pass" ]
}

@test "a template that was not filled in asks no host" {
  HOSTFILE=$CHECKOUT/hostfiles/m3-ultra-jaccl.template.json run "$VERIFY"
  [ "$status" -eq 1 ]
  says "<RANK0_LAN_IP>"
  run called "ssh "
  [ "$status" -ne 0 ]
}

@test "no hostfile: exit 3 with a hint; one that is no JSON: exit 1" {
  rm "$CHECKOUT"/hostfiles/*.local.json
  run "$VERIFY"
  [ "$status" -eq 3 ]
  says "cp hostfiles/m3-ultra-jaccl.template.json"
  HOSTFILE=/none.json run "$VERIFY"
  [ "$status" -eq 3 ]
  echo "{" >"$BATS_TEST_TMPDIR/f"
  HOSTFILE=$BATS_TEST_TMPDIR/f run "$VERIFY"
  [ "$status" -eq 1 ]
  says "is not JSON"
}

@test "--dry-run prints the commands and asks no host" {
  hostfile studio.local.json
  run "$VERIFY" --dry-run
  [ "$status" -eq 0 ]
  says "mac1 '/bin/sh -s 1'"
  says "mac1 /usr/bin/ibv_devinfo -v -d rdma_en3"
  says "mac0 /usr/sbin/lsof -nP -iTCP:32323 -sTCP:LISTEN"
  run called "ssh "
  [ "$status" -ne 0 ]
}

@test "--local N looks at this machine without ssh, with or without a model" {
  run "$VERIFY" --local 2
  [ "$status" -eq 0 ]
  says "the first start makes the demo model"
  [ -z "$(row path)$(row hostfile)" ]
  run called "ssh "
  [ "$status" -ne 0 ]
  MODEL_DIR=$BATS_TEST_TMPDIR/none run "$VERIFY" --local 2 --check model
  [ "$status" -eq 1 ]
  says "there is no $BATS_TEST_TMPDIR/none"
  unset PYTHON
  TEST_PYTHON='' run "$VERIFY" --local 2 --check python
  says "the first start makes it"
}

@test "a rank that was left over is found, with the command that ends it" {
  IGNORE=1 start_process run-1 "$RUN_DIR/rank-1.pid"
  run "$VERIFY" --local 2 --check ranks
  end_processes
  [ "$status" -eq 1 ]
  says "rank-1 (pid $PROCESS) still runs"
  says "fix: HTTP_PORT=$HTTP_PORT scripts/stop_openai_cluster_server.sh"
}

@test "--fix asks, so it needs a terminal or --yes; --yes mends what may be mended" {
  run "$VERIFY" --fix </dev/null
  [ "$status" -eq 2 ]
  says "add --yes"
  start_process run-1 "$RUN_DIR/rank-1.pid"
  run "$VERIFY" --local 2 --check ranks --fix --yes
  end_processes
  [ "$status" -eq 0 ]
  says "looking again"
  [ "$(row ranks | tail -n 1)" = "ranks pass" ]
}

@test "--smoke and --link go on only when nothing failed" {
  cat >"$CHECKOUT/scripts/lib/link/link_check.sh" <<'STUB'
echo "link check: $*"
STUB
  run "$VERIFY" --check disk --smoke --deadline 30
  [ "$status" -eq 0 ]
  says "link check: smoke --deadline 30"
  run "$VERIFY" --local 2 --check disk --link
  says "link check: link --local 2"
  touch "$REMOTE/mac0/down"
  run "$VERIFY" --check disk --link
  [ "$status" -eq 1 ]
  says "--link was not begun"
  [ "${output#*link check:}" = "$output" ]
}

@test "each of several models is looked at where the ranks will be" {
  for name in one two; do
    mkdir -p "$BATS_TEST_TMPDIR/my models/$name"
    echo '{}' >"$BATS_TEST_TMPDIR/my models/$name/config.json"
    : >"$BATS_TEST_TMPDIR/my models/$name/model.safetensors"
  done
  cd "$BATS_TEST_TMPDIR"
  MODEL_ID=x MODELS="a=$BATS_TEST_TMPDIR/my models/one" MODELS_DIR='my models' PINNED=two MODELS_GB=3 \
    run "$VERIFY" --local 2 --check models --dry-run
  [ "$status" -eq 0 ]
  says "lib.model.check_models 2 --parallel auto --json '' x 'a=$BATS_TEST_TMPDIR/my models/one' '$BATS_TEST_TMPDIR/my models' two"
  says "127.0.0.1 /bin/ls '$BATS_TEST_TMPDIR/my models/one'"
}
