# shellcheck shell=bash
# What the scripts that start ranks share: which hosts, interpreter and model are meant, and the
# launcher's command line. Sourced after common.sh, never run.
#
# The scripts call, in this order: read_options and check_settings (ask_python.sh), choose_python,
# choose_hosts, prepare_python, choose_model, launcher_command. Each sets the global names listed above
# it, and ends the script if it can't. LOCAL is the number of --local, or empty; EXTRA_ENV holds the
# --env options.

# shellcheck source=scripts/lib/venv.sh
. "$ROOT/scripts/lib/venv.sh"
# shellcheck source=scripts/lib/ask_python.sh
. "$ROOT/scripts/lib/ask_python.sh"

# choose_server: sets HTTP_PORT, if no option, environment or cluster.env does, to that of the one
# server that runs, and says so; without one, to that of the one started last, or to its default.
choose_server() {
  local told
  [ -z "${HTTP_PORT-}" ] || return 0
  need_answer lib.status.servers "$ROOT"
  { IFS= read -r HTTP_PORT && IFS= read -r told; } <<<"$ANSWER" || true
  [ -z "${told-}" ] || log "$told"
  use_default HTTP_PORT
}

# choose_python: PYTHON, or the conda environment ENV_NAME, or the checkout's .venv, which need not
# exist yet. Sets PY; the same path is used on every host.
choose_python() {
  need_answer lib.settings.interpreter path
  PY=$ANSWER
}

# choose_any_python: for the parts that need no package. Sets ANY_PYTHON.
choose_any_python() {
  ANY_PYTHON=$PY
  runs_code "$ANY_PYTHON" || ANY_PYTHON=$(find_python) || no_python
}

# prepare_python: PY exists and has what the ranks need. The .venv is made with --local only:
# with a hostfile it must be on every host, and this is but one of them.
prepare_python() {
  if [ "$PY" = "$VENV/bin/python" ]; then
    [ -z "$LOCAL" ] || ensure_venv "$ROOT/requirements.txt"
    [ -z "$DRY_RUN" ] || return 0
  fi
  need_answer lib.settings.interpreter problem "$PY"
}

# read_hostfile COMMAND [OPTION...]: what hostfile.py says of $HOSTFILE.
read_hostfile() {
  local command=$1
  shift
  "$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.hosts.hostfile "$command" "$HOSTFILE" "$@"
}

# find_hostfile: HOSTFILE as given, or the one that is there; absolute.
find_hostfile() {
  need_answer lib.hosts.find_hostfile ${HOSTFILE:+"$HOSTFILE"}
  HOSTFILE=$ANSWER
}

# choose_hosts: with $LOCAL, that many ranks here, else the hostfile.
# Sets HOSTFILE (empty when local), HOSTS (ssh names, one a line), RANKS, BACKEND, RANK0 (ssh name),
# RANK0_ADDRESS (for HTTP).
# shellcheck disable=SC2034  # RANK0_ADDRESS is for the run script
choose_hosts() {
  local rank
  if [ -n "$LOCAL" ]; then
    [ -z "${HOSTFILE-}" ] || log "--local: HOSTFILE is not used"
    HOSTFILE=
    [ "${BACKEND-ring}" = ring ] || bad_setting BACKEND "ring with --local"
    BACKEND=ring
    RANKS=$LOCAL
    HOSTS=$(for ((rank = 0; rank < LOCAL; rank++)); do echo 127.0.0.1; done)
    RANK0_ADDRESS=127.0.0.1
  else
    find_hostfile
    choose_any_python
    [ -n "${BACKEND-}" ] || BACKEND=$(read_hostfile backend) || exit "$?"
    read_hostfile check --backend "$BACKEND" || exit "$?"
    HOSTS=$(read_hostfile hosts) || exit "$?"
    RANKS=$(printf '%s\n' "$HOSTS" | grep -c .)
    RANK0_ADDRESS=$(read_hostfile rank0) || exit "$?"
    need_ssh
  fi
  RANK0=${HOSTS%%$'\n'*}
}

# check_hosts: on every host processes can be seen, without which none could be ended, and the hard limit of
# open files is high enough: mlx-lm raises the soft one when it is imported, and fails where the hard one is
# lower. A host that cannot be reached is not our business here, nor one whose answer we don't understand.
check_hosts() {
  local hosts host command answers count=0 i status=0 limit system
  [ -z "$DRY_RUN" ] || return 0
  hosts=$(printf '%s\n' "$HOSTS" | awk '!seen[$0]++')
  # shellcheck disable=SC2016  # for the host to expand
  command='ps -p $$ >/dev/null 2>&1 || [ -r /proc/$$/stat ] || echo blind; '
  # The superuser may raise it, and so may the ranks that run as one.
  command="${command}ulimit -n $FILES_LEAST 2>/dev/null || { uname -s; ulimit -Hn; }"
  answers=$(mktemp -d)
  while IFS= read -r host; do
    on_host "$host" "$(quote bash -c "$command")" >"$answers/$count" 2>/dev/null &
    count=$((count + 1))
  done <<<"$hosts"
  wait
  for ((i = 0; i < count; i++)); do
    host=$(printf '%s\n' "$hosts" | sed -n "$((i + 1))p")
    if grep -qx blind "$answers/$i"; then
      log "$host: no process can be seen there, so no rank could be ended: $SEES_NO_PROCESS"
      status=3
      continue
    fi
    { IFS= read -r system && IFS= read -r limit; } <"$answers/$i" || continue
    matches "$limit" '[0-9]+' || continue
    command=$RAISE_FILES_LINUX
    [ "$system" != Darwin ] || command=$RAISE_FILES_DARWIN
    log "$host: the hard limit of open files is $limit: must be at least $FILES_LEAST, or mlx-lm" \
      "cannot be imported; there: $command; then log in anew"
    status=1
  done
  rm -rf "$answers"
  [ "$status" = 0 ] || exit "$status"
}

# choose_model: MODEL_DIR, the first of MODELS and MODELS_DIR, or the demo model for --local. Sets
# MODEL_DIR (absolute) and MODEL_ID, and OTHER_MODELS: name, tab and folder of the others, one a line.
OTHER_MODELS='' LISTED=''
choose_model() {
  local folder status=0
  if [ -n "${MODELS-}${MODELS_DIR-}" ]; then
    choose_models
  elif [ -n "${MODEL_DIR-}" ]; then
    MODEL_DIR=$(absolute_path "$MODEL_DIR")
    # Here or on another host: only what is here can be looked at.
    if [ -d "$MODEL_DIR" ]; then
      MODEL_DIR=$(cd "$MODEL_DIR" && pwd)
    elif [ -n "$LOCAL" ]; then
      bad_setting MODEL_DIR "the folder of an MLX model; there is no such folder"
    fi
  elif [ -z "$LOCAL" ]; then
    die 2 "MODEL_DIR is not set: must be the folder of an MLX model, the same on every host"
  elif [ -n "$DRY_RUN" ]; then
    run "$PY" "$ROOT/scripts/lib/module.py" lib.model.demo_model "$ROOT/models"
    MODEL_DIR="$ROOT/models/DEMO_MODEL"
  else
    # Its last line is the folder; the others, and all of stderr, are progress.
    folder=$("$PY" "$ROOT/scripts/lib/module.py" lib.model.demo_model "$ROOT/models" | tail -n 1) ||
      status=$?
    [ "$status" != 130 ] || exit 130 # Ctrl-C, and it has said so
    [ "$status" = 0 ] ||
      die 1 "the demo model could not be made; start again to go on, or set MODEL_DIR"
    MODEL_DIR=$folder
  fi
  if [ -z "${MODEL_ID-}" ]; then
    MODEL_ID=${MODEL_DIR##*/}
    # The folder's name, which need not be one.
    ask_python lib.settings.settings valid MODEL_ID "$MODEL_ID" || die 2 "$ANSWER; set MODEL_ID"
  fi
}

# choose_models: the same where there are several. Looked at where rank 0 will read them.
choose_models() {
  local command mark name folder status=0 first=1
  [ -z "${MODEL_DIR-}" ] || MODEL_DIR=$(absolute_path "$MODEL_DIR")
  [ -z "${MODELS_DIR-}" ] || MODELS_DIR=$(absolute_path "$MODELS_DIR")
  export MODELS MODELS_DIR
  command=("${MODEL_DIR-}" "${MODEL_ID-}" "${MODELS-}" "${MODELS_DIR-}" "${PINNED-}")
  if [ "$RANK0" = 127.0.0.1 ]; then
    ask_python lib.model.list_models "${command[@]}" || status=$?
  elif [ -n "$DRY_RUN" ]; then # no host is asked
    ask_python lib.model.list_models --unseen "${command[@]}" || status=$?
  else
    command=("$PY" "$ROOT/scripts/lib/module.py" lib.model.list_models "${command[@]}")
    ANSWER=$(on_host "$RANK0" "$(quote "${command[@]}")") || status=$?
  fi
  [ "$status" != 127 ] || no_python
  while IFS=$'\t' read -r mark name folder; do
    case $mark in
      wrong) die 2 "$name" ;;
      model) ;;
      others) LISTED=1 LISTED_MODELS=$name && continue ;;
      *) continue ;; # a profile may print what it likes
    esac
    if [ -n "$first" ]; then
      MODEL_ID=$name MODEL_DIR=$folder first=
    else
      OTHER_MODELS=$OTHER_MODELS${OTHER_MODELS:+$'\n'}$name$'\t'$folder
    fi
  done <<<"$ANSWER"
  [ "$status$first" = 0 ] || die 1 "the models could not be listed on $RANK0 (rank 0)"
}

# keep_list: ranks that start again have the models of this start, whatever has come into MODELS_DIR
# meanwhile, or is there on some of the hosts alone.
keep_list() {
  [ -n "$LISTED" ] || return 0
  unset MODELS MODELS_DIR
  [ -z "$LISTED_MODELS" ] || export MODELS="$LISTED_MODELS"
}

# check_other_models: tells which of them cannot be served; the server can do without.
check_other_models() {
  local command
  [ -n "$OTHER_MODELS${MODELS_DIR-}" ] || return 0
  look_up PARALLEL
  command=("$PY" "$ROOT/scripts/lib/module.py" lib.model.check_models "$RANKS" --parallel
    "${PARALLEL:-$DEFAULT}" "$MODEL_DIR" "$MODEL_ID" "${MODELS-}" "${MODELS_DIR-}" "${PINNED-}")
  [ "${TRUST_REMOTE_CODE:-0}" = 0 ] || command+=(--trust-remote-code)
  on_rank0 "${command[@]}" || die 1 "the models could not be looked at on $RANK0 (rank 0)"
}

# on_rank0 COMMAND...: as run does, where rank 0 will be.
on_rank0() {
  local command
  command=("$@")
  [ "$RANK0" = 127.0.0.1 ] || {
    host_command "$RANK0" "$(quote "${command[@]}")"
    command=("${HOST_COMMAND[@]}")
  }
  run "${command[@]}"
}

# check_model: the model can be split over these ranks, and DRAFT_MODEL_DIR may draft for it, if it
# is DRAFTED_FOR. Looked at where rank 0 will read it.
DRAFTED_FOR=''
check_model() {
  local command
  look_up PARALLEL
  command=("$PY" "$ROOT/scripts/lib/module.py" lib.model.check_model "$MODEL_DIR" "$RANKS" --parallel
    "${PARALLEL:-$DEFAULT}")
  [ "$MODEL_DIR" != "$DRAFTED_FOR" ] || command+=(--draft "$DRAFT_MODEL_DIR")
  [ "${TRUST_REMOTE_CODE:-0}" = 0 ] || command+=(--trust-remote-code)
  on_rank0 "${command[@]}" || die "$(($? == 3 ? 3 : 1))" "the model was not accepted on $RANK0 (rank 0)"
}

# check_devices_free: JACCL gives a device to one job; a second one fails, or hangs both.
check_devices_free() {
  local record
  [ -z "$LOCAL" ] || return 0
  for record in "$ROOT"/run/*/supervisor.pid; do
    if ours "$record" && grep -qvx 127.0.0.1 "${record%/*}/hosts" 2>/dev/null; then
      die 1 "a server runs on the cluster (pid $OURS_PID): stop it first"
    fi
  done
}

RDMA_END_S=60 # RANK_END_TIMEOUT over JACCL

# launcher_command NAME...: sets LAUNCHER to the launcher's command line, up to and with `--`.
# The settings named go to every rank if they are set, then the user's own $EXTRA_ENV.
launcher_command() {
  local name
  # SIGKILL of a process that has RDMA open can cost a Mac its ports, or all but its power switch.
  case $BACKEND in jaccl*) : "${RANK_END_TIMEOUT:=$RDMA_END_S}" ;; esac
  [ -z "${RANK_END_TIMEOUT-}" ] || export RANK_END_TIMEOUT
  LAUNCHER=("$PY" "$ROOT/scripts/lib/module.py" lib.launch.mlx_launch --python "$PY" --backend "$BACKEND")
  # Ports that nobody chose are the launcher's to find, and to change when a start has failed.
  if [ -n "$LOCAL" ]; then
    LAUNCHER+=(-n "$LOCAL" --starting-port "${CLUSTER_PORT:-auto}")
  else
    look_up CLUSTER_PORT
    LAUNCHER+=(--hostfile "$HOSTFILE" --starting-port "${CLUSTER_PORT:-auto:$DEFAULT}")
  fi
  LAUNCHER+=(--cwd "$ROOT")
  # A rank never downloads: another version than its peers' would be the least of it.
  LAUNCHER+=(--env HF_HUB_OFFLINE=1 --env TRANSFORMERS_OFFLINE=1)
  while IFS= read -r name; do
    case $name in
      # Other hosts may have other CPUs.
      OPENBLAS_CORETYPE=*) [ -n "$LOCAL" ] || continue ;;
    esac
    LAUNCHER+=(--env "$name")
  done < <(blas_environment)
  for name in $LAUNCH_SETTINGS "$@"; do
    [ -z "${!name-}" ] || LAUNCHER+=(--env "$name=${!name}")
  done
  for name in ${EXTRA_ENV[@]+"${EXTRA_ENV[@]}"}; do
    LAUNCHER+=(--env "$name")
  done
  LAUNCHER+=(--)
}

# tell_fast_synch: the state of MLX_METAL_FAST_SYNCH, wherever it may have been set.
tell_fast_synch() {
  local value=${MLX_METAL_FAST_SYNCH-} origin
  look_up MLX_METAL_FAST_SYNCH
  origin="from $ORIGIN"
  [ "$ORIGIN" != environment ] || origin="from the environment"
  if [ -z "$value" ] && [ -n "$HOSTFILE" ]; then
    origin="from the hostfile"
    value=$(read_hostfile envs | sed -n 's/^MLX_METAL_FAST_SYNCH=//p' | tail -n 1)
  fi
  if [ -z "$value" ] || [ "$value" = 0 ]; then
    log "MLX_METAL_FAST_SYNCH: off"
  else
    log "MLX_METAL_FAST_SYNCH=$value, $origin: faster, but it can deadlock and leave a GPU" \
      "wedged until its Mac is started again"
  fi
}
