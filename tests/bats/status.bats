# What status.sh shows and exits with: nothing, ranks here and elsewhere, hosts that are down.

setup() {
  load helper
  make_checkout
  STATUS=$CHECKOUT/scripts/status.sh
  PYTHON=$(real_python)
  export PYTHON
  unset HTTP_PORT
  PORT=18431
}

teardown() {
  end_processes
}

# record HOST...: a server with a rank on each host, started last as run-a. Its port is nobody's.
record() {
  mkdir -p "$RUN_DIR" "$CHECKOUT/logs"
  printf '%s\n' "$@" >"$RUN_DIR/hosts"
  printf 'RUN_ID=run-a\nMODEL_ID=tiny\nURL=http://127.0.0.1:9\nLOG=%s\nAPI_KEY_FILE=\n' \
    "$CHECKOUT/logs/server-$PORT.log" >"$RUN_DIR/started_with"
  logged "starting run run-a, supervisor 1" "started launcher 2 for run run-a"
}

logged() {
  printf '2026-01-01 10:00:00 supervisor: %s\n' "$@" >>"$CHECKOUT/logs/server-$PORT.log"
}

@test "--help prints the header; bad arguments are usage errors" {
  run "$STATUS" --help
  [ "$status" -eq 0 ]
  says "Usage: status.sh"
  for arguments in "now" "--port" "--port 0" "--port x" "--watch" "--watch 0" "--watch soon" \
    "--watch -1"; do
    # shellcheck disable=SC2086  # split on purpose
    run "$STATUS" $arguments
    [ "$status" -eq 2 ] || { echo "$arguments: $status"; return 1; }
  done
  API_KEY_FILE=/nowhere run "$STATUS"
  [ "$status" -eq 2 ]
  says "API_KEY_FILE='/nowhere': must be"
}

@test "when nothing was started it says so and exits 3" {
  run "$STATUS"
  [ "$status" -eq 3 ]
  says "nothing runs: no server was started from this checkout"
  run "$STATUS" --port 18500
  [ "$status" -eq 3 ]
  says "no server was started on port 18500"
  run "$STATUS" --json
  [ "$status" -eq 3 ]
  says '"servers": []'
}

@test "a server that was stopped is nothing to worry about, one that gave up is" {
  record 127.0.0.1
  logged "over: stopped as asked"
  run "$STATUS"
  [ "$status" -eq 3 ]
  [ "$output" = "nothing runs (port $PORT: stopped as asked)" ]
  logged "failed: rank 0 had enough" "over: 5 failures in a row; the last: rank 0 had enough"
  run "$STATUS"
  [ "$status" -eq 1 ]
  says "port $PORT: gave up, tiny on 1 rank(s)"
  says "it gave up: 5 failures in a row; the last: rank 0 had enough"
  says "last failure: rank 0 had enough"
}

@test "ranks that start are shown with their pids before rank 0 answers" {
  record 127.0.0.1 127.0.0.1
  start_process run-a "$RUN_DIR/supervisor.pid"
  supervisor=$PROCESS
  start_process run-a "$RUN_DIR/rank-0.pid"
  run "$STATUS" --port "$PORT"
  [ "$status" -eq 1 ]
  says "port $PORT: starting, tiny on 2 rank(s)"
  says "supervisor $supervisor, restarts 0"
  echo "$output" | grep -Eq "^  0 +127.0.0.1 +runs +$PROCESS +[0-9]+ s +[0-9]+ MB"
  echo "$output" | grep -Eq "^  1 +127.0.0.1 +awaited +- "
}

@test "ranks whose supervisor is gone are named" {
  record 127.0.0.1
  start_process run-a "$RUN_DIR/rank-0.pid"
  run "$STATUS"
  [ "$status" -eq 1 ]
  says "rank 0 still runs, but its supervisor is gone"
}

@test "a host that is down is named beside the others, each of which is asked once" {
  stub_ssh
  record mac0 mac1 mac0
  mkdir -p "$REMOTE/mac1" "$REMOTE/mac0"
  touch "$REMOTE/mac1/down"
  echo "Welcome!" >"$REMOTE/mac0/profile"
  start_process run-a "$RUN_DIR/supervisor.pid"
  start_process run-a "$RUN_DIR/rank-0.pid"
  run "$STATUS"
  [ "$status" -eq 1 ]
  echo "$output" | grep -Eq "^  0 +mac0 +runs +$PROCESS "
  echo "$output" | grep -Eq "^  1 +mac1 +unknown +- "
  says "! mac1 cannot be reached: ssh: connect to host mac1 port 22: Connection refused"
  [ "$(grep -c '^ssh ' "$CALLS")" -eq 2 ]
  called "-o BatchMode=yes"
}

@test "on a host that only computes it shows the rank that is there" {
  mkdir -p "$RUN_DIR"
  start_process run-a "$RUN_DIR/rank-1.pid"
  run "$STATUS"
  [ "$status" -eq 0 ]
  says "started on another machine: run status.sh there"
  echo "$output" | grep -Eq "^  1 +127.0.0.1 +runs +$PROCESS "
}

@test "macOS's own tools are asked for memory and GPU limit" {
  stub uname <<'STUB'
echo Darwin
STUB
  probe=$BATS_TEST_TMPDIR/probe.sh
  sed "s,/usr/sbin/sysctl,$STUBS/sysctl,; s,/usr/bin/vm_stat,$STUBS/vm_stat," \
    "$CHECKOUT/scripts/lib/status/rank_facts.sh" >"$probe"
  stub sysctl <<'STUB'
case $2 in hw.memsize) echo 549755813888 ;; iogpu.wired_limit_mb) echo 460000 ;; esac
STUB
  stub vm_stat <<'STUB'
echo "Mach Virtual Memory Statistics: (page size of 16384 bytes)"
echo "Pages free:                               12345."
STUB
  run bash -s -- "$RUN_DIR" <"$probe"
  [ "$status" -eq 0 ]
  [ "${lines[0]}" = "$(printf 'fact\tsystem\tDarwin')" ]
  says "$(printf 'fact\tmemsize\t549755813888')"
  says "$(printf 'fact\twired_limit_mb\t460000')"
  says "$(printf 'fact\tvm\tPages free:')"
  [ "${lines[5]}" = "$(printf 'fact\tend')" ]
}

@test "--json is one object on one line" {
  record 127.0.0.1
  start_process run-a "$RUN_DIR/supervisor.pid"
  run "$STATUS" --json
  [ "$status" -eq 1 ]
  [ "${#lines[@]}" -eq 1 ]
  echo "$output" | "$PYTHON" -c 'import json, sys
told = json.load(sys.stdin)
assert told["well"] is False
(server,) = told["servers"]
assert (server["port"], server["state"]) == (18431, "starting"), server
assert server["ranks"][0]["state"] == "awaited"'
}

@test "--watch looks again and again until Ctrl-C" {
  record 127.0.0.1
  logged "over: stopped as asked"
  "$PYTHON" -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' "$STATUS" --watch 0.5 >"$BATS_TEST_TMPDIR/out" 2>&1 3>&- &
  pid=$!
  SERVERS="$SERVERS $pid"
  tries=0
  until [ "$(grep -c "nothing runs" "$BATS_TEST_TMPDIR/out")" -ge 2 ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { cat "$BATS_TEST_TMPDIR/out"; return 1; }
    sleep 0.1
  done
  kill -INT "$pid"
  code=0
  wait "$pid" || code=$?
  [ "$code" -eq 0 ]
  if grep Traceback "$BATS_TEST_TMPDIR/out"; then return 1; fi
}
