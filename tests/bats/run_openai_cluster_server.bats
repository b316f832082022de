# How run_openai_cluster_server.sh reads its settings, and what it starts.

setup() {
  load helper
  make_checkout
  stub_python
}

teardown() {
  end_processes
}

@test "--help prints the header with every setting and exits 0" {
  run "$RUN" --help
  [ "$status" -eq 0 ]
  says "Usage: run_openai_cluster_server.sh"
  says "MLX_METAL_FAST_SYNCH"
  says "Exit codes:"
}

@test "unknown arguments and missing values are usage errors" {
  for arguments in "--foo" "--local" "--local 0" "--local 9" "--local two" "--env" "--env A" \
    "--env 1A=2" "somewhere"; do
    # shellcheck disable=SC2086  # split on purpose
    run "$RUN" $arguments
    [ "$status" -eq 2 ] || { echo "$arguments: $status"; return 1; }
  done
  [ ! -e "$RUN_DIR" ]
}

@test "--local and --env without a value tell what they need, whatever comes before" {
  for before in "" "--local 2" "--env A=1"; do
    # shellcheck disable=SC2086  # split on purpose
    run "$RUN" $before --local
    says "--local needs a value"
    # shellcheck disable=SC2086  # split on purpose
    run "$RUN" $before --env
    says "--env needs a value"
  done
  run "$RUN" --local ''
  says "--local '': must be a number of ranks from 1 to 8"
  run "$RUN" --env ''
  says "--env '': must be NAME=VALUE"
}

@test "each bad setting exits 2 and names the setting, its value and what is allowed" {
  for setting in HTTP_PORT=0 HTTP_PORT=65536 HTTP_PORT=http QUEUE_MAX=-1 MAX_BATCH=0 \
    DEFAULT_MAX_TOKENS=many REQ_TIMEOUT=0 REQ_TIMEOUT=nan DRAIN_TIMEOUT=-1 STALL_TIMEOUT=x \
    LOAD_TIMEOUT=1e9 JOIN_TIMEOUT=0 CANARY_INTERVAL=no KV_BUDGET_GB=-1 LOG_LEVEL=loud PARALLEL=both BACKEND=mpi CLUSTER_PORT=80 \
    MLX_METAL_FAST_SYNCH=yes 'HTTP_HOST=a b' 'MODEL_ID=a"b' HTTP_PORT=08080; do
    run env "$setting" "$RUN" --local 2
    [ "$status" -eq 2 ] || { echo "$setting: $status"; return 1; }
    says "${setting%%=*}='${setting#*=}': must be "
  done
  [ ! -e "$RUN_DIR" ]
}

@test "an empty setting counts as not set" {
  REQ_TIMEOUT='' MODEL_DIR='' BACKEND='' run "$RUN" --local 2 --dry-run
  [ "$status" -eq 0 ]
}

@test "--dry-run prints the commands, runs none of them and needs no venv" {
  unset PYTHON
  run "$RUN" --local 2 --detach --dry-run
  [ "$status" -eq 0 ]
  says "+ $CHECKOUT/.venv/bin/python -m pip install"
  says "lib.model.demo_model $CHECKOUT/models"
  says "lib.model.check_model"
  says "lib.supervise.supervise --run-dir $RUN_DIR"
  says "--detach"
  [ ! -e "$CHECKOUT/.venv" ]
  [ ! -e "$CHECKOUT/run" ]
  [ ! -e "$CHECKOUT/models" ]
}

@test "local ranks get the launcher's command line as designed" {
  run "$RUN" --local 2
  [ "$status" -eq 0 ]
  line=$(called "lib.supervise.supervise --run-dir")
  id=$(echo "$line" | sed 's/.*--run-dir [^ ]* --run-id \([^ ]*\) --log.*/\1/')
  expected="fakepython $CHECKOUT/scripts/lib/module.py lib.supervise.supervise --run-dir $RUN_DIR --run-id $id"
  expected="$expected --log $CHECKOUT/logs/server-18431.log"
  expected="$expected --health-url http://127.0.0.1:18431/health --host 127.0.0.1 --host 127.0.0.1"
  expected="$expected --started-with RUN_ID=$id --started-with MODEL_ID=Demo-1B"
  expected="$expected --started-with URL=http://127.0.0.1:18431"
  expected="$expected --started-with LOG=$CHECKOUT/logs/server-18431.log"
  expected="$expected --started-with API_KEY_FILE= -- $STUBS/fakepython"
  expected="$expected $CHECKOUT/scripts/lib/module.py lib.launch.mlx_launch --python $STUBS/fakepython"
  expected="$expected --backend ring -n 2 --starting-port auto --cwd $CHECKOUT"
  expected="$expected --env HF_HUB_OFFLINE=1 --env TRANSFORMERS_OFFLINE=1 "
  case $line in "$expected"*) ;; *) printf '%s\n%s\n' "$line" "$expected"; return 1 ;; esac
  rank="-- $CHECKOUT/server/openai_cluster_server.py --run-dir $RUN_DIR --run-id $id"
  case $line in *"$rank") ;; *) echo "$line"; return 1 ;; esac
  called "--env BACKEND=ring"
  called "--env MODEL_DIR=$CHECKOUT/models/Demo-1B --env MODEL_ID=Demo-1B"
  called "--env HTTP_HOST=127.0.0.1 --env HTTP_PORT=18431"
}

@test "nothing is written under run/ before the supervisor has the lock" {
  hostfile studio.local.json
  stub_ssh
  API_KEY=sk-one MODEL_DIR=/m/x run "$RUN"
  [ "$status" -eq 0 ]
  called "lib.supervise.supervise --run-dir $RUN_DIR"
  [ ! -e "$CHECKOUT/run" ]
}

@test "on Linux the ranks get OpenBLAS if ldconfig knows it" {
  [ "$(uname -s)" = Linux ] || skip "Linux only"
  machine=$([ "$(uname -m)" = x86_64 ] && echo x86-64 || echo AArch64)
  stub ldconfig <<STUB
echo "2 libs found in cache"
echo "	libopenblas.so.0 (libc6) => /lib/other/libopenblas.so.0"
echo "	libopenblas.so.0 (libc6,$machine) => /lib/here/libopenblas.so.0"
STUB
  run "$RUN" --local 2
  called "--env LD_PRELOAD=/lib/here/libopenblas.so.0 --env OPENBLAS_NUM_THREADS=1"
  stub ldconfig </dev/null
  run "$RUN" --local 2
  [ "$status" -eq 0 ]
  says "apt-get install libopenblas0-pthread"
}

@test "settings and --env reach the ranks; unset ones keep the server's defaults" {
  QUEUE_MAX=3 REQ_TIMEOUT=2.5 DRAIN_TIMEOUT=7 run "$RUN" --local 1 --env A=1 --env "B=2 3"
  [ "$status" -eq 0 ]
  called "--env QUEUE_MAX=3"
  called "--env REQ_TIMEOUT=2.5"
  called "--env A=1 --env B=2 3 --"
  run called "MAX_BATCH"
  [ "$status" -ne 0 ]
  grep -qx DRAIN_TIMEOUT=7 "$CALLS.environment" # for the supervisor to record
}

@test "variables that would lead ranks to another job's peers are dropped" {
  MLX_HOSTFILE=/stray JACCL_RANK=7 run "$RUN" --local 2
  [ "$status" -eq 0 ]
  run grep -E '^(MLX_HOSTFILE|JACCL_RANK)=' "$CALLS.environment"
  [ "$status" -ne 0 ]
}

@test "MLX_METAL_FAST_SYNCH is passed only when set, and its state is always told" {
  run "$RUN" --local 2
  says "MLX_METAL_FAST_SYNCH: off"
  run called FAST_SYNCH
  [ "$status" -ne 0 ]
  MLX_METAL_FAST_SYNCH=1 run "$RUN" --local 2
  says "MLX_METAL_FAST_SYNCH=1, from the environment"
  called "--env MLX_METAL_FAST_SYNCH=1"
  run "$RUN" --local 2 --env MLX_METAL_FAST_SYNCH=1
  says "MLX_METAL_FAST_SYNCH=1, from --env"
}

@test "--no-restart and --detach reach the supervisor; after --detach it says what to try" {
  run "$RUN" --local 2 --detach --no-restart
  [ "$status" -eq 0 ]
  called "/health --detach --no-restart --host 127.0.0.1 --host 127.0.0.1 --started-with "
  says "curl -s http://127.0.0.1:18431/v1/models"
  says '"model": "Demo-1B"'
  says "Stop:  HTTP_PORT=18431 scripts/stop_openai_cluster_server.sh"
  says "$CHECKOUT/logs/server-18431.log"
}

@test "a server that does not come up makes --detach exit 1 and suggest nothing" {
  SUPERVISE_CODE=1 run "$RUN" --local 2 --detach
  [ "$status" -eq 1 ]
  [ "${output#*curl}" = "$output" ]
}

@test "MODEL_DIR replaces the demo model and is made absolute" {
  mkdir -p "$BATS_TEST_TMPDIR/my models/Big-70B"
  cd "$BATS_TEST_TMPDIR/my models"
  MODEL_DIR=./Big-70B/ run "$RUN" --local 2
  [ "$status" -eq 0 ]
  called "--env MODEL_DIR=$BATS_TEST_TMPDIR/my models/Big-70B --env MODEL_ID=Big-70B"
  run called lib.model.demo_model
  [ "$status" -ne 0 ]
}

@test "MODEL_ID names the model; a MODEL_DIR that is not there is refused" {
  MODEL_ID=gpt-oss run "$RUN" --local 2
  called "--env MODEL_ID=gpt-oss"
  MODEL_DIR=/none run "$RUN" --local 2
  [ "$status" -eq 2 ]
  says "MODEL_DIR='/none': must be"
}

@test "--local takes no backend but ring" {
  BACKEND=jaccl run "$RUN" --local 2
  [ "$status" -eq 2 ]
  says "BACKEND='jaccl': must be ring with --local"
}

@test "the log's size goes to the supervisor, and wrong ones are refused" {
  LOG_MAX_MB=2.5 run "$RUN" --local 2
  [ "$status" -eq 0 ]
  called "--log-max-mb 2.5 --host "
  for size in -1 big 1000001; do
    LOG_MAX_MB=$size run "$RUN" --local 2
    [ "$status" -eq 2 ]
    says "LOG_MAX_MB='$size': must be MB from 0 to 1000000"
  done
}

@test "what it is started with goes to the supervisor for status.sh and logs.sh, without keys" {
  API_KEY=sk-secret LOG_DIR=$BATS_TEST_TMPDIR/logs MODEL_ID='my model' run "$RUN" --local 2
  [ "$status" -eq 0 ]
  called "--started-with LOG=$BATS_TEST_TMPDIR/logs/server-18431.log"
  called "--started-with URL=http://127.0.0.1:18431"
  called "--started-with MODEL_ID=my model"
  run called sk-secret
  [ "$status" -ne 0 ]
}

@test "of two starts for one port one serves, and the other has touched nothing" {
  # Real supervisors, over a launcher that waits: both have passed the look at the port.
  stub fakepython <<'STUB'
case $1:$2 in
  -c:*) exit 0 ;;
  */module.py:*.demo_model) echo "$3/Demo-1B" ;;
  */module.py:*.supervise)
    : >"$CALLS.$$"
    while [ "$(ls "$CALLS".[0-9]* | wc -l)" -lt 2 ]; do sleep 0.05; done
    exec "$REAL_PYTHON" "$@"
    ;;
  */module.py:*.mlx_launch) exec sleep 60 ;;
esac
STUB
  cp -R "$REPO/server/." "$CHECKOUT/server/"
  for number in 1 2; do
    MODEL_ID=model-$number DRAIN_TIMEOUT=$number "$RUN" --local "$number" \
      >"$BATS_TEST_TMPDIR/out.$number" 2>&1 3>&- &
    SERVERS="$SERVERS $!"
    eval "pid_$number=$!"
  done
  # Both have become a supervisor, by exec, under the pid of the script.
  for ((i = 0; i < 300; i++)); do
    if grep -q "already running" "$BATS_TEST_TMPDIR"/out.[12]; then break; fi
    sleep 0.1
  done
  loser=1 winner=2
  grep -q "already running" "$BATS_TEST_TMPDIR/out.1" || { loser=2 winner=1; }
  grep -q "already running" "$BATS_TEST_TMPDIR/out.$loser"
  while ! grep -q "started launcher" "$BATS_TEST_TMPDIR/out.$winner"; do sleep 0.1; done
  eval "pid=\$pid_$winner"
  # shellcheck disable=SC2154  # set by eval
  [ "$(head -n 1 "$RUN_DIR/supervisor.pid")" = "$pid" ]
  grep -qx "MODEL_ID=model-$winner" "$RUN_DIR/started_with"
  grep -qx "RUN_ID=$(sed -n 2p "$RUN_DIR/supervisor.pid")" "$RUN_DIR/started_with"
  [ "$(cat "$RUN_DIR/drain_timeout")" = "$winner" ]
  [ "$(grep -c . "$RUN_DIR/hosts")" = "$winner" ]
  kill -TERM "$pid"
  while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
}
