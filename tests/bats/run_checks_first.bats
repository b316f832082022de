# What run_openai_cluster_server.sh looks at before it starts anything: model, port, open files.

setup() {
  load helper
  make_checkout
  stub_python
}

teardown() {
  end_processes
}

@test "a model that the ranks can't share is refused before anything starts" {
  CHECK_MODEL_CODE=1 run "$RUN" --local 2
  [ "$status" -eq 1 ]
  says "9 heads cannot be shared by 2 ranks"
  [ ! -e "$RUN_DIR" ]
}

@test "a server that runs on the port already: says so, exit 1" {
  start_process some-run "$RUN_DIR/supervisor.pid"
  run "$RUN" --local 2
  [ "$status" -eq 1 ]
  says "already running on port 18431 (pid $PROCESS)"
}

@test "a recorded pid that is now somebody else's does not count as running" {
  start_process some-run "$RUN_DIR/supervisor.pid"
  printf '%s\nother-run\n' "$PROCESS" >"$RUN_DIR/supervisor.pid"
  run "$RUN" --local 2
  [ "$status" -eq 0 ]
}

@test "a port that another program has is refused" {
  "$REAL_PYTHON" -c '
import socket, time
s = socket.create_server(("127.0.0.1", 18431))
print("up", flush=True)
time.sleep(60)' >"$BATS_TEST_TMPDIR/up" 3>&- &
  SERVERS=$!
  disown
  while [ ! -s "$BATS_TEST_TMPDIR/up" ]; do sleep 0.1; done
  run "$RUN" --local 2
  [ "$status" -eq 1 ]
  says "port 18431 of 127.0.0.1 is taken"
}

# listen_as RUN_ID: a rank 0 of that run, by its command line, has the port.
listen_as() {
  "$REAL_PYTHON" -c '
import socket, time
s = socket.create_server(("127.0.0.1", 18431))
print("up", flush=True)
time.sleep(60)' --run-id "$1" >"$BATS_TEST_TMPDIR/up" 3>&- &
  PROCESS=$!
  SERVERS="$SERVERS $!"
  disown
  mkdir -p "$RUN_DIR"
  printf '%s\n%s\n' "$PROCESS" "$1" >"$RUN_DIR/rank-0.pid"
  while [ ! -s "$BATS_TEST_TMPDIR/up" ]; do sleep 0.1; done
}

@test "a port that a stopped rank 0 of ours has is told with the command that ends it" {
  listen_as some-run
  kill -STOP "$PROCESS"
  run "$RUN" --local 2
  [ "$status" -eq 1 ]
  says "port 18431 of 127.0.0.1 is held by rank 0 (pid $PROCESS, stopped) of run some-run"
  says "end what is left of it: HTTP_PORT=18431 scripts/stop_openai_cluster_server.sh"
  DRAIN_TIMEOUT=1 run "$STOP"
  [ "$status" -eq 0 ]
  says "rank 0 (pid $PROCESS) ended"
  run "$RUN" --local 2
  [ "$status" -eq 0 ]
}

@test "a rank 0 of ours on another host that has the port is told, too" {
  hostfile studio.local.json
  stub_ssh
  listen_as some-run
  MODEL_DIR=/m/x run "$RUN"
  [ "$status" -eq 1 ]
  says "port 18431 of mac0 is held by rank 0 (pid $PROCESS) of run some-run"
  says "HOSTFILE=$CHECKOUT/hostfiles/studio.local.json scripts/stop_openai_cluster_server.sh"
}

@test "a rank's record whose pid went to another program does not blame us for the port" {
  listen_as other-run
  printf '%s\nsome-run\n' "$PROCESS" >"$RUN_DIR/rank-0.pid"
  run "$RUN" --local 2
  [ "$status" -eq 1 ]
  says "port 18431 of 127.0.0.1 is taken by something else"
}

@test "a stopped supervisor is told as stopped" {
  start_process some-run "$RUN_DIR/supervisor.pid"
  kill -STOP "$PROCESS"
  run "$RUN" --local 2
  [ "$status" -eq 1 ]
  says "already running on port 18431 (pid $PROCESS, stopped: kill -CONT $PROCESS has it go on)"
}

# with_few_files COMMAND...: under a hard limit of 1024 open files that even the superuser may not
# raise.
with_few_files() {
  local drop
  drop=()
  if [ "$(id -u)" = 0 ]; then
    command -v setpriv >/dev/null || skip "the superuser may raise any limit"
    drop=(setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource)
  fi
  ${drop[@]+"${drop[@]}"} bash -c 'ulimit -n 1024 && exec "$@"' - "$@"
}

@test "too low a hard limit of open files is told with the command that raises it" {
  run with_few_files "$RUN" --local 2
  [ "$status" -eq 1 ]
  says "127.0.0.1: the hard limit of open files is 1024: must be at least 4096"
  if [ "$(uname -s)" = Linux ]; then says "sudo tee -a /etc/security/limits.conf"; fi
  run called lib.model.demo_model
  [ "$status" -ne 0 ]
  run with_few_files "$RUN" --local 2 --dry-run
  [ "$status" -eq 0 ]
}

@test "the limit of open files is asked of every host; one that is down is left to the ranks" {
  hostfile studio.local.json
  stub_ssh
  stub uname <<'STUB'
echo Darwin
STUB
  mkdir -p "$REMOTE/mac0"
  MODEL_DIR=/m/x run with_few_files "$RUN"
  [ "$status" -eq 1 ]
  for host in mac0 mac1; do
    says "$host: the hard limit of open files is 1024: must be at least 4096"
  done
  says "there: sudo launchctl limit maxfiles 65536 200000; then log in anew"
  mkdir -p "$REMOTE/mac1"
  touch "$REMOTE/mac1/down"
  MODEL_DIR=/m/x run "$RUN"
  [ "$status" -eq 0 ]
}
