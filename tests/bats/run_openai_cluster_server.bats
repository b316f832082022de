# How run_openai_cluster_server.sh reads its settings, what it refuses, and what it starts.

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

@test "without --local and without a hostfile: exit 3 and how to make one" {
  run "$RUN"
  [ "$status" -eq 3 ]
  says "cp hostfiles/m3-ultra-jaccl.template.json hostfiles/m3-ultra-jaccl.local.json"
}

@test "a hostfile decides hosts, backend, address and port" {
  hostfile studio.local.json
  stub_ssh
  MODEL_DIR=/models/Big-70B run "$RUN"
  [ "$status" -eq 0 ]
  says "anyone who can reach 0.0.0.0:18431"
  called "--backend jaccl --hostfile $CHECKOUT/hostfiles/studio.local.json --starting-port auto:32323"
  called "--health-url http://192.0.2.1:18431/health"
  called "--env MODEL_DIR=/models/Big-70B --env MODEL_ID=Big-70B --env HTTP_HOST=0.0.0.0"
  called "lib.model.check_model /models/Big-70B 2 --parallel tensor"
  called "--host mac0 --host mac1 --started-with RUN_ID="
  run called "--keys-to"
  [ "$status" -ne 0 ]
}

@test "a name by which the supervisor asks rank 0 is one that the server answers to" {
  hostfile studio.local.json
  sed 's/192.0.2.1/mac0.lan/; s/"ips": \[\]/"ips": ["mac1.lan"]/' \
    "$CHECKOUT/hostfiles/studio.local.json" >"$CHECKOUT/hostfiles/named.local.json"
  rm "$CHECKOUT/hostfiles/studio.local.json"
  stub_ssh
  BACKEND=ring ALLOWED_HOSTS=llm.example MODEL_DIR=/models/Big-70B run "$RUN"
  [ "$status" -eq 0 ]
  called "--health-url http://mac0.lan:18431/health"
  called "--env ALLOWED_HOSTS=llm.example,mac0.lan"
}

@test "several hostfiles: the usual name wins, else HOSTFILE must tell" {
  hostfile one.local.json
  hostfile two.local.json
  MODEL_DIR=/m/x run "$RUN" --dry-run
  [ "$status" -eq 2 ]
  says "two.local.json"
  HOSTFILE=$CHECKOUT/hostfiles/two.local.json MODEL_DIR=/m/x run "$RUN" --dry-run
  [ "$status" -eq 0 ]
  hostfile m3-ultra-jaccl.local.json
  MODEL_DIR=/m/x run "$RUN" --dry-run
  [ "$status" -eq 0 ]
  says "--hostfile $CHECKOUT/hostfiles/m3-ultra-jaccl.local.json"
}

@test "a template that was not filled in is refused before anything is asked of a host" {
  stub_ssh
  HOSTFILE=$CHECKOUT/hostfiles/m3-ultra-jaccl.template.json MODEL_DIR=/m/x run "$RUN"
  [ "$status" -eq 1 ]
  says "<RANK0_LAN_IP>"
  run called "ssh "
  [ "$status" -ne 0 ]
}

@test "a hostfile needs MODEL_DIR, and an interpreter that is on every host" {
  hostfile studio.local.json
  run "$RUN" --dry-run
  [ "$status" -eq 2 ]
  says "MODEL_DIR is not set"
  unset PYTHON
  stub_ssh
  MODEL_DIR=/m/x run "$RUN"
  [ "$status" -eq 3 ]
  says "no $CHECKOUT/.venv/bin/python"
}

@test "ENV_NAME takes the interpreter out of a conda environment, as an absolute path" {
  unset PYTHON
  stub conda <<STUB
echo "some notice"
echo "$STUBS/fakepython"
STUB
  ENV_NAME=mlxjccl run "$RUN" --local 2
  [ "$status" -eq 0 ]
  called "conda run -n mlxjccl python -c"
  called "--python $STUBS/fakepython"
  mv "$STUBS/conda" "$BATS_TEST_TMPDIR/other-conda"
  CONDA_EXE=$BATS_TEST_TMPDIR/other-conda ENV_NAME=mlxjccl run "$RUN" --local 2
  [ "$status" -eq 0 ]
}

@test "without conda, or without that environment, ENV_NAME exits 3" {
  unset PYTHON
  CONDA_EXE=/none/conda ENV_NAME=mlxjccl run "$RUN" --local 2
  [ "$status" -eq 3 ]
  stub conda <<'STUB'
echo "EnvironmentLocationNotFound: Not a conda environment" >&2
exit 1
STUB
  ENV_NAME=nope run "$RUN" --local 2
  [ "$status" -eq 3 ]
  says "ENV_NAME='nope'"
}

@test "API keys never show: not in a command, not in what is printed" {
  API_KEY=sk-secret run "$RUN" --local 2 --detach
  [ "$status" -eq 0 ]
  says 'Authorization: Bearer ${API_KEY%%,*}'
  [ "${output#*sk-secret}" = "$output" ]
  run called sk-secret
  [ "$status" -ne 0 ]
  grep -qx API_KEY=sk-secret "$CALLS.environment"
  run "$RUN" --local 2 --env API_KEY=sk-secret
  [ "$status" -eq 2 ]
  API_KEY=' ,' run "$RUN" --local 2
  [ "$status" -eq 2 ]
  says "API_KEY holds no key"
}

@test "for a remote rank 0 the supervisor has the keys in its environment, to bring them" {
  hostfile studio.local.json
  stub_ssh
  API_KEY=sk-one,sk-two MODEL_DIR=/m/x run "$RUN" --detach
  [ "$status" -eq 0 ]
  says 'Authorization: Bearer ${API_KEY%%,*}'
  called "--started-with API_KEY_FILE=$RUN_DIR/api_key --keys-to mac0 -- "
  called "--env API_KEY_FILE=$RUN_DIR/api_key"
  grep -qx API_KEY=sk-one,sk-two "$CALLS.environment"
  run called sk-one
  [ "$status" -ne 0 ]
}

@test "a dry run with keys prints no key and writes none" {
  hostfile studio.local.json
  API_KEY=sk-one MODEL_DIR=/m/x run "$RUN" --dry-run
  [ "$status" -eq 0 ]
  says "API_KEY_FILE=$RUN_DIR/api_key"
  [ "${output#*sk-one}" = "$output" ]
  [ ! -e "$RUN_DIR" ]
}

@test "API_KEY_FILE must be readable for rank 0" {
  API_KEY_FILE=/none/keys run "$RUN" --local 2
  [ "$status" -eq 2 ]
  says "API_KEY_FILE='/none/keys'"
  printf '\nsk-file ops team\n' >"$BATS_TEST_TMPDIR/keys"
  cd "$BATS_TEST_TMPDIR"
  API_KEY_FILE=keys run "$RUN" --local 2 --detach
  [ "$status" -eq 0 ]
  called "--env API_KEY_FILE=$BATS_TEST_TMPDIR/keys"
  # What is shown works as pasted: it is the key without its label.
  key=$(echo "$output" | sed -n 's/.*models -H \(".*"\)$/\1/p')
  [ "$(eval "echo $key")" = "Authorization: Bearer sk-file" ]
}

@test "a port open to the network without a key is warned of, a closed one is not" {
  HTTP_HOST=0.0.0.0 run "$RUN" --local 2
  says "set API_KEY or API_KEY_FILE"
  HTTP_HOST=0.0.0.0 API_KEY=k run "$RUN" --local 2
  [ "${output#*warning: anyone}" = "$output" ]
  run "$RUN" --local 2
  [ "${output#*warning: anyone}" = "$output" ]
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
