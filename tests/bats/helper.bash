# shellcheck shell=bash
# What the bats files share: a checkout of its own for each test, and stubs on PATH.
#
# CHECKOUT  a copy of the scripts; its .venv, models/ and run/ are empty
# STUBS     first on PATH
# CALLS     file to which every stub appends the call it got, one a line
# REMOTE    what the stub ssh answers: $REMOTE/HOST/PROGRAM holds the output of PROGRAM there

make_checkout() {
  REPO=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
  CHECKOUT=$BATS_TEST_TMPDIR/checkout
  STUBS=$BATS_TEST_TMPDIR/stubs
  CALLS=$BATS_TEST_TMPDIR/calls
  REMOTE=$BATS_TEST_TMPDIR/remote
  export CALLS REMOTE
  mkdir -p "$CHECKOUT/hostfiles" "$CHECKOUT/server" "$CHECKOUT/tests" "$STUBS" "$REMOTE"
  : >"$CALLS"
  cp -Rp "$REPO/scripts" "$CHECKOUT/" # with their times, by which Python knows its own caches
  cp "$REPO"/requirements*.txt "$CHECKOUT/"
  # What scripts import of it.
  cp "$REPO/server/__init__.py" "$CHECKOUT/server/"
  cp -Rp "$REPO/server/protocol" "$CHECKOUT/server/"
  cp "$REPO"/hostfiles/*.template.json "$CHECKOUT/hostfiles/"
  RUN=$CHECKOUT/scripts/run_openai_cluster_server.sh
  STOP=$CHECKOUT/scripts/stop_openai_cluster_server.sh
  VERIFY=$CHECKOUT/scripts/verify_cluster.sh
  BENCH=$CHECKOUT/scripts/bench.sh
  TEST=$CHECKOUT/scripts/test.sh
  PATH=$STUBS:$PATH
  unset LD_PRELOAD PYTHON ENV_NAME CONDA_EXE HOSTFILE MODEL_DIR MODEL_ID API_KEY API_KEY_FILE
  unset BACKEND PARALLEL HTTP_HOST HTTP_PORT LOG_DIR LOG_LEVEL LOG_MAX_MB CLUSTER_PORT MLX_METAL_FAST_SYNCH
  unset CLUSTER_ENV DRAIN_TIMEOUT STALL_TIMEOUT LOAD_TIMEOUT JOIN_TIMEOUT REQ_TIMEOUT QUEUE_MAX MAX_BATCH
  unset OPENBLAS_CORETYPE OPENBLAS_NUM_THREADS MODELS MODELS_DIR MODELS_GB PINNED IDLE_UNLOAD
  # Not the port of a server that the developer may have running.
  export HTTP_PORT=18431
  RUN_DIR=$CHECKOUT/run/$HTTP_PORT
  SERVERS=
}

# stub NAME: a program on PATH whose body is stdin; it records its call first.
stub() {
  {
    printf '#!/usr/bin/env bash\n'
    # shellcheck disable=SC2016  # for the stub to expand
    printf 'printf "%%s\\n" "%s $*" >>"$CALLS"\n' "$1"
    cat
  } >"$STUBS/$1"
  chmod +x "$STUBS/$1"
}

real_python() {
  printf '%s\n' "${TEST_PYTHON:-$(bash -c '. "$1/scripts/lib/common.sh"; find_python' - "$REPO")}"
}

# A python that has every package, makes the demo model, approves of any model and serves nothing.
# CHECK_MODEL_CODE and SUPERVISE_CODE are what these two exit with.
stub_python() {
  REAL_PYTHON=$(real_python)
  export REAL_PYTHON
  # shellcheck disable=SC2016  # for the stub to expand
  stub fakepython <<'STUB'
case $1:$2 in # -c CODE, or module.py lib.FOLDER.MODULE
  -c:*) exit 0 ;;
  */module.py:*.hostfile | */module.py:*.list_models) exec "$REAL_PYTHON" "$@" ;;
  */module.py:*.demo_model)
    echo "converting" >&2
    mkdir -p "$3/Demo-1B" && echo "progress" && echo "$3/Demo-1B"
    ;;
  */module.py:*.check_model)
    [ -z "${CHECK_MODEL_CODE-}" ] || echo "9 heads cannot be shared by $4 ranks" >&2
    exit "${CHECK_MODEL_CODE:-0}"
    ;;
  */module.py:*.supervise)
    env >"$CALLS.environment"
    exit "${SUPERVISE_CODE:-0}"
    ;;
esac
STUB
  export PYTHON=$STUBS/fakepython
}

# ssh that runs what it is asked here, except for a host that is `down`, and programs of macOS,
# whose output it has recorded.
stub_ssh() {
  # shellcheck disable=SC2016  # for the stub to expand
  stub ssh <<'STUB'
while :; do
  case $1 in
    -o) shift 2 ;;
    -*) shift ;;
    *) break ;;
  esac
done
host=$1 command=$2
if [ -e "$REMOTE/$host/down" ]; then
  echo "ssh: connect to host $host port 22: Connection refused" >&2
  exit 255
fi
cat "$REMOTE/$host/profile" 2>/dev/null
case $command in
  /usr/bin/*)
    program=${command%% *}
    if [ -e "$REMOTE/$host/hangs" ]; then exec sleep 60; fi
    if [ ! -e "$REMOTE/$host/${program##*/}" ]; then
      echo "zsh:1: no such file or directory: $program" >&2
      exit 127
    fi
    cat "$REMOTE/$host/${program##*/}"
    ;;
  *) exec bash -c "$command" ;;
esac
STUB
}

# hostfile NAME: a ready one for two Macs, as hostfiles/NAME.
hostfile() {
  cat >"$CHECKOUT/hostfiles/$1" <<'JSON'
{"hosts": [
  {"ssh": "mac0", "ips": ["192.0.2.1"], "rdma": [null, "rdma_en3"]},
  {"ssh": "mac1", "ips": [], "rdma": ["rdma_en3", null]}
]}
JSON
}

# start_process RUN_ID FILE: a process that looks like one of ours, recorded in FILE.
# With IGNORE=1 it does not react to SIGTERM.
start_process() {
  local reaction="exit 0"
  [ -z "${IGNORE-}" ] || reaction=":"
  bash -c 'trap "$1" TERM; while :; do sleep 0.1; done' server "$reaction" --run-id "$1" \
    >/dev/null 2>&1 3>&- &
  SERVERS="$SERVERS $!"
  mkdir -p "$(dirname "$2")"
  printf '%s\n%s\n' "$!" "$1" >"$2"
  PROCESS=$!
  disown
}

end_processes() {
  local pid
  for pid in $SERVERS; do
    kill -KILL "$pid" 2>/dev/null || true
  done
}

called() {
  grep -F -- "$1" "$CALLS"
}

says() {
  case $output in
    *"$1"*) return 0 ;;
  esac
  printf 'expected: %s\nin:\n%s\n' "$1" "$output"
  return 1
}
