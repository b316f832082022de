# What the scripts make of cluster.env: where each value comes from, what is refused, what is never run.

setup() {
  load helper
  make_checkout
  stub_python
  FILE=$CHECKOUT/cluster.env
}

teardown() {
  end_processes
}

@test "a kept setting reaches the ranks; the environment wins over it, --env over both" {
  printf 'QUEUE_MAX=3\nMAX_BATCH=4\nREQ_TIMEOUT=5 # seconds\n' >"$FILE"
  MAX_BATCH=6 run "$RUN" --local 2 --env REQ_TIMEOUT=7
  [ "$status" -eq 0 ]
  called "--env QUEUE_MAX=3"
  called "--env MAX_BATCH=6"
  called "--env REQ_TIMEOUT=7"
  [ "$(called "lib.supervise.supervise" | grep -o REQ_TIMEOUT= | grep -c .)" -eq 1 ]
  grep -qx QUEUE_MAX=3 "$CALLS.environment"
}

@test "--dry-run shows where each value comes from, and no key" {
  printf 'QUEUE_MAX=3\nAPI_KEY=sk-secret\n' >"$FILE"
  chmod 600 "$FILE"
  MAX_BATCH=6 run "$RUN" --local 2 --dry-run --env REQ_TIMEOUT=7
  [ "$status" -eq 0 ]
  printf '%s\n' "$output" | grep -qE '^# QUEUE_MAX=3 +cluster.env$'
  printf '%s\n' "$output" | grep -qE '^# MAX_BATCH=6 +environment$'
  printf '%s\n' "$output" | grep -qE '^# REQ_TIMEOUT=7 +--env$'
  printf '%s\n' "$output" | grep -qE '^# STALL_TIMEOUT=60 +default$'
  printf '%s\n' "$output" | grep -qE '^# API_KEY=\(not shown\) +cluster.env$'
  case $output in *sk-secret*) return 1 ;; esac
  [ ! -e "$CHECKOUT/run" ]
}

@test "a setting named with --env is checked, and holds for the script, too" {
  run "$RUN" --local 2 --env QUEUE_MAX=many
  [ "$status" -eq 2 ]
  says "QUEUE_MAX='many': must be a whole number from 0 to 100000 (from --env)"
  run "$RUN" --local 2 --env HTTP_PORT=18432
  [ "$status" -eq 0 ]
  called "/run/18432 --run-id"
  called "--health-url http://127.0.0.1:18432/health"
}

@test "a kept key reaches the ranks, and no command line and no output" {
  echo "API_KEY=sk-secret" >"$FILE"
  chmod 644 "$FILE"
  run "$RUN" --local 2 --detach
  [ "$status" -eq 2 ]
  says "cluster.env holds API_KEY, and others may read it: chmod 600 $FILE"
  chmod 600 "$FILE"
  run "$RUN" --local 2 --detach
  [ "$status" -eq 0 ]
  case $output in *sk-secret*) return 1 ;; esac
  run called sk-secret
  [ "$status" -ne 0 ]
  grep -qx API_KEY=sk-secret "$CALLS.environment"
}

@test "nothing in the file is run or expanded" {
  # shellcheck disable=SC2016  # not to be expanded
  printf 'LOG_DIR=$(touch %s/ran)`touch %s/ran`;touch %s/ran\n' "$CHECKOUT" "$CHECKOUT" "$CHECKOUT" >"$FILE"
  echo 'MODEL_ID="x; touch ran"' >>"$FILE"
  run "$RUN" --local 2 --dry-run
  [ "$status" -eq 2 ]
  says "MODEL_ID='x; touch ran': must be"
  [ ! -e "$CHECKOUT/ran" ]
  [ ! -e ran ]
}

@test "a wrong file stops every script with its line and the nearest name" {
  printf '# ours\nQUEUE_MAXX=3\n' >"$FILE"
  for script in run_openai_cluster_server stop_openai_cluster_server status logs bench bench_link \
    verify_cluster sync_nodes install_service; do
    run "$CHECKOUT/scripts/$script.sh"
    [ "$status" -eq 2 ] || { echo "$script: $status"; return 1; }
    says "$script.sh: cluster.env line 2: QUEUE_MAXX: no such setting; did you mean QUEUE_MAX?"
  done
  [ ! -s "$CALLS" ]
}

@test "every problem is told at once" {
  printf 'QUEUE_MAX=3\nQUEUE_MAX=4\nMAX_BATCH=0\n' >"$FILE"
  REQ_TIMEOUT=never run "$RUN" --local 2
  [ "$status" -eq 2 ]
  says "line 2: QUEUE_MAX: is there twice"
  says "MAX_BATCH='0': must be a whole number from 1 to 1024 (from cluster.env)"
  says "REQ_TIMEOUT='never': must be seconds from 0.1 to 31536000"
}

@test "CLUSTER_ENV takes another file or none; one that is not there is told" {
  echo QUEUE_MAX=3 >"$FILE"
  echo QUEUE_MAX=4 >"$BATS_TEST_TMPDIR/other.env"
  CLUSTER_ENV=$BATS_TEST_TMPDIR/other.env run "$RUN" --local 2 --dry-run
  printf '%s\n' "$output" | grep -qE '^# QUEUE_MAX=4 +other.env$'
  CLUSTER_ENV=/dev/null run "$RUN" --local 2 --dry-run
  printf '%s\n' "$output" | grep -qE '^# QUEUE_MAX=8 +default$'
  CLUSTER_ENV=/none/x.env run "$RUN" --local 2 --dry-run
  [ "$status" -eq 3 ]
  says "/none/x.env: cannot be read"
}

@test "stop waits as long as the server was started with, whatever is kept now" {
  mkdir -p "$RUN_DIR"
  echo 7 >"$RUN_DIR/drain_timeout"
  echo DRAIN_TIMEOUT=2 >"$FILE"
  run "$STOP" --dry-run
  [ "$status" -eq 0 ]
  says "/run/18431\\ 12\\;"
  DRAIN_TIMEOUT=1 run "$STOP" --dry-run
  says "/run/18431\\ 6\\;"
  rm "$RUN_DIR/drain_timeout"
  run "$STOP" --dry-run
  says "/run/18431\\ 7\\;"
}

@test "the port that is kept is the one that stop means, and --port wins over it" {
  unset HTTP_PORT
  echo HTTP_PORT=18431 >"$FILE"
  start_process some-run "$RUN_DIR/supervisor.pid"
  run "$STOP" --dry-run
  says "kill -TERM $PROCESS"
  PYTHON=$REAL_PYTHON run "$CHECKOUT/scripts/logs.sh" --port 18432
  [ "$status" -eq 3 ]
  says "18432"
}

@test "status takes a key file that is kept for another host for none" {
  echo "API_KEY_FILE=/none/keys" >"$FILE"
  PYTHON=$REAL_PYTHON run "$CHECKOUT/scripts/status.sh"
  [ "$status" -eq 3 ]
  API_KEY_FILE=/none/keys PYTHON=$REAL_PYTHON run "$CHECKOUT/scripts/status.sh"
  [ "$status" -eq 2 ]
  says "API_KEY_FILE='/none/keys': must be a file that can be read here"
}

@test "a stop needs only its own settings to be right" {
  QUEUE_MAX=many run "$STOP" --dry-run
  [ "$status" -eq 0 ]
}
