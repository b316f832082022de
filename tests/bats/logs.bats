# What logs.sh shows, of which server, and how it follows.

setup() {
  load helper
  make_checkout
  LOGS=$CHECKOUT/scripts/logs.sh
  PYTHON=$(real_python)
  export PYTHON
  unset HTTP_PORT
}

teardown() {
  end_processes
}

# server PORT RUN_ID: the records of a server of two ranks, and its log in two parts.
server() {
  local dir=$CHECKOUT/run/$1 log=$CHECKOUT/logs/server-$1.log
  mkdir -p "$dir" "$CHECKOUT/logs"
  printf '127.0.0.1\n127.0.0.1\n' >"$dir/hosts"
  printf 'RUN_ID=%s\nMODEL_ID=tiny\nURL=http://127.0.0.1:%s\nLOG=%s\nAPI_KEY_FILE=\n' \
    "$2" "$1" "$log" >"$dir/started_with"
  cat >"$log.1" <<TEXT
2026-01-01 09:00:00 supervisor: starting run old, supervisor 11
2026-01-01 10:00:00 supervisor: starting run $2, supervisor 12
2026-01-01 10:00:01,000 [rank 0] INFO joining on $1
TEXT
  cat >"$log" <<TEXT
2026-01-01 10:00:02 supervisor: continued from server-$1.log.1
[rank 1] Traceback (most recent call last):
mlx_launch: cause: rank 1 on 127.0.0.1 exited with code 70
  | ouch
2026-01-01 10:00:03 supervisor: failed: rank 1 on 127.0.0.1 exited with code 70
TEXT
}

@test "--help prints the header; bad arguments are usage errors" {
  run "$LOGS" --help
  [ "$status" -eq 0 ]
  says "Usage: logs.sh"
  for arguments in "--now" "--rank" "--rank x" "--rank -1" "-n" "-n -5" "-n many" "--port 0" \
    "--port http" "--port 65536" "server.log"; do
    # shellcheck disable=SC2086  # split on purpose
    run "$LOGS" $arguments
    [ "$status" -eq 2 ] || { echo "$arguments: $status"; return 1; }
  done
}

@test "without a server it says so and exits 3" {
  run "$LOGS"
  [ "$status" -eq 3 ]
  says "no server was started from this checkout"
  server 18500 run-a
  run "$LOGS" --port 18501
  [ "$status" -eq 3 ]
  says "no server was started on port 18501 from this checkout (ports: 18500)"
}

@test "a log that is gone is named" {
  server 18500 run-a
  rm "$CHECKOUT"/logs/*
  run "$LOGS"
  [ "$status" -eq 3 ]
  says "there is no log at $CHECKOUT/logs/server-18500.log"
}

@test "the parts are shown as one log" {
  server 18500 run-a
  run "$LOGS" -n 4
  [ "$status" -eq 0 ]
  [ "${#lines[@]}" -eq 4 ]
  [ "${lines[0]}" = "[rank 1] Traceback (most recent call last):" ]
  run "$LOGS" -n all
  [ "${#lines[@]}" -eq 7 ]
  [ "${lines[2]}" = "2026-01-01 10:00:01,000 [rank 0] INFO joining on 18500" ]
}

@test "--rank shows one rank and what the launcher says of it" {
  server 18500 run-a
  run "$LOGS" --rank 1
  [ "$status" -eq 0 ]
  [ "${#lines[@]}" -eq 3 ]
  [ "${lines[2]}" = "  | ouch" ]
  run "$LOGS" --rank 0
  [ "$output" = "2026-01-01 10:00:01,000 [rank 0] INFO joining on 18500" ]
  run "$LOGS" --rank 2
  [ "$status" -eq 2 ]
  says "--rank 2: must be a rank from 0 to 1"
}

@test "--since-start leaves out earlier runs" {
  server 18500 run-a
  run "$LOGS" --since-start
  [ "${#lines[@]}" -eq 6 ]
  [ "${lines[0]}" = "2026-01-01 10:00:00 supervisor: starting run run-a, supervisor 12" ]
  run "$LOGS" --since-start -n 1
  [ "$output" = "2026-01-01 10:00:03 supervisor: failed: rank 1 on 127.0.0.1 exited with code 70" ]
}

@test "of several servers it takes the one that runs, or asks" {
  server 18500 run-a
  server 18600 run-b
  start_process run-a "$CHECKOUT/run/18500/supervisor.pid"
  run "$LOGS" -n all
  [ "$status" -eq 0 ]
  says "joining on 18500"
  start_process run-b "$CHECKOUT/run/18600/supervisor.pid"
  run "$LOGS"
  [ "$status" -eq 2 ]
  says "several servers run here, on ports 18500, 18600: name one with --port"
  run "$LOGS" -n all --port 18600
  says "joining on 18600"
  HTTP_PORT=18500 run "$LOGS" -n all
  says "joining on 18500"
}

@test "-f goes on through a new part, and Ctrl-C ends it quietly" {
  server 18500 run-a
  log=$CHECKOUT/logs/server-18500.log
  # bash starts background jobs with SIGINT ignored; a terminal does not.
  "$PYTHON" -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' "$LOGS" -f -n 1 >"$BATS_TEST_TMPDIR/out" \
    2>"$BATS_TEST_TMPDIR/errors" 3>&- &
  pid=$!
  SERVERS="$SERVERS $pid"
  wait_for "failed: rank 1"
  echo "one more" >>"$log"
  mv "$log" "$log.1"
  echo "in the next part" >"$log"
  wait_for "in the next part"
  kill -INT "$pid"
  code=0
  wait "$pid" || code=$?
  [ "$code" -eq 0 ]
  [ ! -s "$BATS_TEST_TMPDIR/errors" ] || { cat "$BATS_TEST_TMPDIR/errors"; return 1; }
  [ "$(sed 1d "$BATS_TEST_TMPDIR/out")" = "one more
in the next part" ]
}

# wait_for TEXT: it is in the output.
wait_for() {
  local tries=0
  until grep -qF -- "$1" "$BATS_TEST_TMPDIR/out"; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { cat "$BATS_TEST_TMPDIR/out"; return 1; }
    sleep 0.1
  done
}

@test "a reader that has seen enough is no error" {
  server 18500 run-a
  for _ in $(seq 200); do
    for _ in 1 2 3 4 5 6 7 8 9 10; do printf '%0100d\n' 7; done
  done >>"$CHECKOUT/logs/server-18500.log"
  set -o pipefail
  run bash -c '"$1" -n all 2>&1 | head -n 1; echo "${PIPESTATUS[0]}"' - "$LOGS"
  [ "${#lines[@]}" -eq 2 ]
  [ "${lines[1]}" = 0 ]
}
