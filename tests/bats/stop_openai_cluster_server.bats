# How stop_openai_cluster_server.sh ends the supervisor and the ranks, and what it never touches.

setup() {
  load helper
  make_checkout
}

teardown() {
  end_processes
}

gone() {
  ! kill -0 "$1" 2>/dev/null
}

@test "--help prints the header; unknown arguments are usage errors" {
  run "$STOP" --help
  [ "$status" -eq 0 ]
  says "Usage: stop_openai_cluster_server.sh"
  run "$STOP" --prot 1
  [ "$status" -eq 2 ]
  says "unknown argument '--prot': the nearest known one is --port; see --help"
  run "$STOP" --port 70000
  [ "$status" -eq 2 ]
  says "--port '70000': must be a whole number from 1 to 65535"
  HTTP_PORT=x run "$STOP"
  [ "$status" -eq 2 ]
  DRAIN_TIMEOUT=soon run "$STOP"
  [ "$status" -eq 2 ]
}

@test "nothing running: says so, exit 0, twice" {
  run "$STOP"
  [ "$status" -eq 0 ]
  says "nothing is running on port 18431"
  run "$STOP"
  [ "$status" -eq 0 ]
}

# record PORT RUN_ID: of a server of this machine that was started once.
record() {
  mkdir -p "$CHECKOUT/run/$1"
  echo 127.0.0.1 >"$CHECKOUT/run/$1/hosts"
  printf 'RUN_ID=%s\n' "$2" >"$CHECKOUT/run/$1/started_with"
}

@test "without a port it finds the one server that runs, by itself, and says which" {
  unset HTTP_PORT
  record 18500 run-a
  record 18600 run-b
  start_process run-a "$CHECKOUT/run/18500/supervisor.pid"
  run "$STOP"
  [ "$status" -eq 0 ]
  says "port 18500: the one that runs"
  says "the server on port 18500 has stopped"
  gone "$PROCESS"
}

@test "ranks whose supervisor is gone are a server that runs, too" {
  unset HTTP_PORT
  record 18500 run-a
  record 18600 run-b
  start_process run-a "$CHECKOUT/run/18500/rank-0.pid"
  DRAIN_TIMEOUT=1 run "$STOP"
  [ "$status" -eq 0 ]
  says "rank 0 (pid $PROCESS) ended"
  says "the server on port 18500 has stopped"
}

@test "of several that run it takes none, and --port names one" {
  unset HTTP_PORT
  record 18500 run-a
  record 18600 run-b
  start_process run-a "$CHECKOUT/run/18500/supervisor.pid"
  first=$PROCESS
  start_process run-b "$CHECKOUT/run/18600/supervisor.pid"
  run "$STOP"
  [ "$status" -eq 2 ]
  says "several servers run here, on ports 18500, 18600: name one with --port"
  kill -0 "$first"
  kill -0 "$PROCESS"
  HTTP_PORT=18500 run "$STOP" --port 18600
  [ "$status" -eq 0 ]
  gone "$PROCESS"
  kill -0 "$first"
}

@test "nothing runs: the last one that was started is looked after, else the usual port" {
  unset HTTP_PORT
  run "$STOP"
  [ "$status" -eq 0 ]
  says "nothing is running on port 8080"
  record 18500 run-a
  run "$STOP"
  [ "$status" -eq 0 ]
  says "port 18500: the last one"
  says "nothing is running on port 18500"
}

@test "a running supervisor is asked to drain and waited for" {
  start_process some-run "$RUN_DIR/supervisor.pid"
  run "$STOP"
  [ "$status" -eq 0 ]
  says "asking the server (pid $PROCESS) to drain, up to 30 s"
  says "the server on port 18431 has stopped"
  gone "$PROCESS"
  run "$STOP"
  says "nothing is running"
}

@test "a stopped supervisor and a stopped rank are continued, to hear that they shall end" {
  start_process some-run "$RUN_DIR/supervisor.pid"
  supervisor=$PROCESS
  start_process some-run "$RUN_DIR/rank-0.pid"
  sleep 0.3 # until both have set their traps
  kill -STOP "$supervisor" "$PROCESS"
  run "$STOP"
  [ "$status" -eq 0 ]
  says "rank 0 (pid $PROCESS) ended"
  [ "${output#*ending pid}" = "$output" ]
  gone "$supervisor"
  gone "$PROCESS"
}

@test "it waits as long as this server may drain, not a fixed time" {
  start_process some-run "$RUN_DIR/supervisor.pid"
  echo 2.5 >"$RUN_DIR/drain_timeout"
  run "$STOP"
  says "to drain, up to 3 s"
  start_process some-run "$RUN_DIR/supervisor.pid"
  DRAIN_TIMEOUT=4 run "$STOP"
  says "to drain, up to 4 s"
}

@test "a supervisor that ignores SIGTERM is ended in the end" {
  sed 's/^SLACK_S=.*/SLACK_S=1/; s/^AT_ONCE_S=.*/AT_ONCE_S=1/' "$STOP" >"$STOP.quick"
  chmod +x "$STOP.quick"
  IGNORE=1 start_process some-run "$RUN_DIR/supervisor.pid"
  sleep 0.3
  DRAIN_TIMEOUT=0 run "$STOP.quick"
  [ "$status" -eq 0 ]
  says "asking it to leave at once"
  says "SIGKILL to the supervisor, pid $PROCESS"
  gone "$PROCESS"
}

@test "a pid that is now somebody else's is left alone" {
  start_process their-run "$BATS_TEST_TMPDIR/theirs"
  mkdir -p "$RUN_DIR"
  printf '%s\nour-run\n' "$PROCESS" >"$RUN_DIR/supervisor.pid"
  printf '%s\nour-run\n' "$PROCESS" >"$RUN_DIR/rank-0.pid"
  run "$STOP"
  [ "$status" -eq 0 ]
  says "nothing is running"
  kill -0 "$PROCESS"
}

@test "a broken record is no reason to fail" {
  mkdir -p "$RUN_DIR"
  for text in '' 'x' '12' '-1\nrun' '0\nrun' '1 2\nrun'; do
    printf -- "$text" >"$RUN_DIR/supervisor.pid"
    run "$STOP"
    [ "$status" -eq 0 ] || { echo "$text: $status $output"; return 1; }
  done
}

@test "ranks whose supervisor is dead are ended too" {
  start_process some-run "$RUN_DIR/rank-0.pid"
  first=$PROCESS
  start_process some-run "$RUN_DIR/rank-1.pid"
  DRAIN_TIMEOUT=1 run "$STOP"
  [ "$status" -eq 0 ]
  says "127.0.0.1: rank 0 (pid $first) ended"
  says "has stopped"
  gone "$first"
  gone "$PROCESS"
}

@test "what was ended for a dead supervisor is on record as stopped, and nothing else is" {
  mkdir -p "$RUN_DIR"
  printf 'RUN_ID=some-run\nMODEL_ID=tiny\n' >"$RUN_DIR/started_with"
  run "$STOP"
  says "nothing is running"
  [ ! -e "$RUN_DIR/stopped" ]
  start_process some-run "$RUN_DIR/rank-0.pid"
  run "$STOP" --dry-run
  [ ! -e "$RUN_DIR/stopped" ]
  DRAIN_TIMEOUT=1 run "$STOP"
  [ "$status" -eq 0 ]
  [ "$(cat "$RUN_DIR/stopped")" = some-run ]
}

@test "every host of the run is cleaned, each once, over ssh that never asks" {
  stub_ssh
  mkdir -p "$RUN_DIR"
  printf 'mac0\nmac1\nmac0\n' >"$RUN_DIR/hosts"
  echo sk-secret >"$RUN_DIR/api_key"
  start_process some-run "$RUN_DIR/rank-0.pid"
  DRAIN_TIMEOUT=1 run "$STOP"
  [ "$status" -eq 0 ]
  [ "$(grep -c '^ssh ' "$CALLS")" -eq 2 ]
  [ "$(grep -c -- '-n -o BatchMode=yes -o ConnectTimeout=5' "$CALLS")" -eq 2 ]
  called "mac1 bash $CHECKOUT/scripts/lib/supervise/end_ranks.sh $RUN_DIR"
  [ ! -e "$RUN_DIR/api_key" ]
  gone "$PROCESS"
}

@test "a host that can't be reached fails the stop, after the others were cleaned" {
  stub_ssh
  mkdir -p "$RUN_DIR" "$REMOTE/mac0"
  touch "$REMOTE/mac0/down"
  printf 'mac0\nmac1\n' >"$RUN_DIR/hosts"
  start_process some-run "$RUN_DIR/rank-1.pid"
  DRAIN_TIMEOUT=1 run "$STOP"
  [ "$status" -eq 1 ]
  says "mac0 could not be reached"
  says "mac1: rank 1 (pid $PROCESS) ended"
  gone "$PROCESS"
}

@test "a host without this checkout is told apart from an unreachable one" {
  stub ssh <<'STUB'
echo "bash: no such file" >&2
exit 127
STUB
  mkdir -p "$RUN_DIR"
  echo mac0 >"$RUN_DIR/hosts"
  run "$STOP"
  [ "$status" -eq 1 ]
  says "mac0 has no $CHECKOUT"
}

@test "without a record of hosts it looks on those of the hostfile" {
  stub_ssh
  PYTHON=$(real_python)
  export PYTHON
  hostfile studio.local.json
  run "$STOP"
  [ "$status" -eq 0 ]
  says "nothing is running"
  [ "$(grep -c '^ssh ' "$CALLS")" -eq 2 ]
}

@test "--dry-run prints what it would do and ends nothing" {
  start_process some-run "$RUN_DIR/supervisor.pid"
  printf 'mac0\n' >"$RUN_DIR/hosts"
  run "$STOP" --dry-run
  [ "$status" -eq 0 ]
  says "+ kill -TERM $PROCESS"
  says "+ ssh -n -o BatchMode=yes"
  kill -0 "$PROCESS"
}
