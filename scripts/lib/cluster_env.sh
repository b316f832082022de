# shellcheck shell=bash
# What the scripts that start ranks share: which settings are allowed, which hosts, interpreter
# and model are meant, and the launcher's command line. Sourced after common.sh, never run.
#
# The scripts call, in this order: check_settings, choose_python, choose_hosts, prepare_python,
# choose_model, launcher_command. Each sets the global names listed above it, and ends the script
# if it can't. LOCAL is the number of --local, or empty; EXTRA_ENV holds the --env options.

DEFAULT_HOSTFILE=$ROOT/hostfiles/m3-ultra-jaccl.local.json
HOSTFILE_HINT="make one with scripts/make_hostfile.sh HOST..., or copy a template and fill it in:\
 cp hostfiles/m3-ultra-jaccl.template.json\
 hostfiles/m3-ultra-jaccl.local.json; or use --local 2 for ranks on this machine"
MAX_LOCAL_RANKS=8 # as many as scripts/lib/launch/meeting_ports.py keeps ports for
FILES_LEAST=4096 # as in server/lifecycle/file_limit.py

# bad_setting NAME ALLOWED: usage error that names the setting, its value and what is allowed.
bad_setting() {
  die 2 "$1='${!1-}': must be $2"
}

# ask_settings ARGUMENT...: sets ANSWER to what settings/settings.py prints; its exit code, or 127
# without a Python. The table of settings (server/protocol/settings_table.py) is read there alone.
ask_settings() {
  local python status failed=
  # Before there is an environment, so any Python will do; Apple's last but one, since without
  # Apple's developer tools it is but a window that asks for them.
  for python in python3.11 python3.12 python3.13 python3.14 "$VENV/bin/python" python3 \
    "${PYTHON-}"; do
    command -v "$python" >/dev/null 2>&1 || continue
    status=0
    ANSWER=$("$python" -I -S -X utf8 "$ROOT/scripts/lib/module.py" lib.settings.settings "$@" 2>/dev/null) || status=$?
    case $ANSWER in
      settings*)
        ANSWER=${ANSWER#settings}
        ANSWER=${ANSWER#$'\n'}
        return "$status"
        ;;
    esac
    failed=$python
  done
  # Why, in its own words.
  [ -z "$failed" ] || "$failed" "$ROOT/scripts/lib/module.py" lib.settings.settings "$@" >/dev/null || true
  return 127
}

# list_settings: for usage, those that the script reads.
list_settings() {
  local status=0
  # shellcheck disable=SC2153  # of common.sh
  ask_settings help "${PROGRAM%%.*}" || status=$?
  if [ "$status" = 0 ]; then
    printf '%s\n' "$ANSWER"
  else
    printf '\nSettings: in docs/from-scratch.md (no Python was found to list them here)\n'
  fi
}

# check_settings: those that this script reads, before anything is started. Each is set, and
# exported, to what an option, the environment or cluster.env says, or is unset.
#
# Sets for each, in the same order, SETTING_NAMES, SETTING_PLACES, SETTING_ORIGINS and
# SETTING_DEFAULTS; and RANK_SETTINGS and LAUNCH_SETTINGS, the names of what goes to ranks. Takes
# the settings of ranks out of EXTRA_ENV.
check_settings() {
  local name place origin default value arguments others status=0
  arguments=(check "${PROGRAM%%.*}") others=()
  for value in ${EXTRA_ENV[@]+"${EXTRA_ENV[@]}"}; do
    arguments+=(--option "$value")
  done
  ask_settings "${arguments[@]}" || status=$?
  case $status in
    0) ;;
    127) no_python ;;
    *)
      while IFS= read -r value; do
        log "$value"
      done <<<"$ANSWER"
      exit "$status"
      ;;
  esac
  SETTING_NAMES=() SETTING_PLACES=() SETTING_ORIGINS=() SETTING_DEFAULTS=()
  RANK_SETTINGS='' LAUNCH_SETTINGS=''
  while IFS=$'\037' read -r name place origin default value; do
    SETTING_NAMES+=("$name")
    SETTING_PLACES+=("$place")
    SETTING_ORIGINS+=("$origin")
    SETTING_DEFAULTS+=("$default")
    case $place in
      rank) RANK_SETTINGS="$RANK_SETTINGS $name" ;;
      launch) LAUNCH_SETTINGS="$LAUNCH_SETTINGS $name" ;;
    esac
    unset "$name"
    [ -z "$value" ] || export "$name=$value"
  done <<<"$ANSWER"
  for value in ${EXTRA_ENV[@]+"${EXTRA_ENV[@]}"}; do
    case " $RANK_SETTINGS $LAUNCH_SETTINGS " in
      *" ${value%%=*} "*) ;;
      *) others+=("$value") ;;
    esac
  done
  EXTRA_ENV=(${others[@]+"${others[@]}"})
  # Left by another job, these would take the ranks of this one to other peers.
  unset MLX_RANK MLX_WORLD_SIZE MLX_HOSTFILE MLX_IBV_DEVICES MLX_JACCL_COORDINATOR MLX_JACCL_RING
  unset JACCL_RANK JACCL_IBV_DEVICES JACCL_COORDINATOR JACCL_RING
}

# look_up NAME: sets ORIGIN and DEFAULT to where its value comes from and what it is without one.
look_up() {
  local i
  for ((i = 0; i < ${#SETTING_NAMES[@]}; i++)); do
    if [ "${SETTING_NAMES[i]}" = "$1" ]; then
      ORIGIN=${SETTING_ORIGINS[i]} DEFAULT=${SETTING_DEFAULTS[i]}
      return 0
    fi
  done
  die 3 "$1 is no setting of $PROGRAM" # a mistake in the table of settings
}

# use_default NAME...: sets those that are not set to their defaults.
use_default() {
  local name
  for name in "$@"; do
    [ -n "${!name-}" ] || {
      look_up "$name"
      printf -v "$name" '%s' "$DEFAULT"
    }
  done
}

# show_settings: for --dry-run, every value and where it comes from, as comments.
show_settings() {
  local i name value
  for ((i = 0; i < ${#SETTING_NAMES[@]}; i++)); do
    name=${SETTING_NAMES[i]}
    value=${!name-}
    [ -n "$value" ] || value=${SETTING_DEFAULTS[i]}
    [ "${SETTING_PLACES[i]}" != secret ] || [ -z "$value" ] || value='(not shown)'
    printf '# %-45s  %s\n' "$name=$value" "${SETTING_ORIGINS[i]}"
  done
}

# add_port: the server that $PORT of --port, else HTTP_PORT names goes to ARGUMENTS, if one does.
add_port() {
  PORT=${PORT:-${HTTP_PORT-}}
  [ -n "$PORT" ] || return 0
  if ! matches "$PORT" '[1-9][0-9]{0,4}' || [ "$PORT" -gt 65535 ]; then
    die 2 "--port '$PORT': must be a whole number from 1 to 65535"
  fi
  ARGUMENTS+=(--port "$PORT")
}

# choose_python: PYTHON, or the conda environment ENV_NAME, or the checkout's .venv, which need not
# exist yet. Sets PY; the same path is used on every host.
choose_python() {
  local conda
  if [ -n "${PYTHON-}" ]; then
    PY=$(command -v "$PYTHON") || die 3 "PYTHON='$PYTHON': no such program"
    PY=$(absolute_path "$PY")
  elif [ -n "${ENV_NAME-}" ]; then
    conda=${CONDA_EXE:-conda}
    need "$conda" "put conda on PATH, set CONDA_EXE, or use PYTHON instead of ENV_NAME"
    PY=$("$conda" run -n "$ENV_NAME" python -c 'import sys; print(sys.executable)' | tail -n 1) ||
      die 3 "ENV_NAME='$ENV_NAME': conda has no such environment with a python in it"
  else
    PY=$VENV/bin/python
  fi
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
    if [ -n "$LOCAL" ]; then
      ensure_venv "$ROOT/requirements.txt"
    elif [ ! -x "$PY" ]; then
      [ -n "$DRY_RUN" ] ||
        die 3 "no $PY: make it on every host (docs/from-scratch.md), or set ENV_NAME or PYTHON"
    fi
    [ -z "$DRY_RUN" ] || return 0
  fi
  runs_code "$PY" || die 3 "$PY: not a Python 3.11 or later (on a Mac: for arm64)"
  "$PY" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("mlx_lm"))' ||
    die 3 "$PY has no mlx-lm: $PY -m pip install -r requirements.txt"
}

# read_hostfile COMMAND [OPTION...]: what hostfile.py says of $HOSTFILE.
read_hostfile() {
  local command=$1
  shift
  "$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.hosts.hostfile "$command" "$HOSTFILE" "$@"
}

# list_hostfiles: prints those of this checkout, one a line.
list_hostfiles() {
  local file
  for file in "$ROOT"/hostfiles/*.local.json; do
    [ ! -f "$file" ] || printf '%s\n' "$file"
  done
}

# find_hostfile: HOSTFILE as given, or the one that is there; absolute.
find_hostfile() {
  local found
  if [ -n "${HOSTFILE-}" ]; then
    HOSTFILE=$(absolute_path "$HOSTFILE")
    [ -f "$HOSTFILE" ] || die 3 "HOSTFILE='$HOSTFILE': no such file; $HOSTFILE_HINT"
    return 0
  fi
  HOSTFILE=$DEFAULT_HOSTFILE
  [ ! -f "$HOSTFILE" ] || return 0
  found=$(list_hostfiles)
  case $found in
    '') die 3 "no hostfile: $HOSTFILE_HINT" ;;
    *$'\n'*) die 2 "several hostfiles; set HOSTFILE to one of:"$'\n'"$found" ;;
  esac
  HOSTFILE=$found
}

# choose_hosts: with $LOCAL, that many ranks here, else the hostfile.
# Sets HOSTFILE (empty when local), HOSTS (ssh names, one a line), RANKS, BACKEND, RANK0 (ssh name),
# RANK0_ADDRESS (for HTTP).
# shellcheck disable=SC2034  # RANK0_ADDRESS is for the run script
choose_hosts() {
  local rank
  if [ -n "$LOCAL" ]; then
    if ! matches "$LOCAL" '[1-9]' || [ "$LOCAL" -gt "$MAX_LOCAL_RANKS" ]; then
      die 2 "--local $LOCAL: must be a number of ranks from 1 to $MAX_LOCAL_RANKS"
    fi
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
  fi
  RANK0=${HOSTS%%$'\n'*}
}

# check_open_files: on every host the hard limit of open files is high enough. mlx-lm raises the soft
# one when it is imported, and fails where the hard one is lower. A host that cannot be reached is
# not our business here, nor one whose answer we don't understand.
check_open_files() {
  local host command answers count=0 i status=0 limit system
  [ -z "$DRY_RUN" ] || return 0
  # The superuser may raise it, and so may the ranks that run as one.
  command="ulimit -n $FILES_LEAST 2>/dev/null || { uname -s; ulimit -Hn; }"
  answers=$(mktemp -d)
  while IFS= read -r host; do
    on_host "$host" "$(quote bash -c "$command")" >"$answers/$count" 2>/dev/null &
    count=$((count + 1))
  done <<<"$HOSTS"
  wait
  for ((i = 0; i < count; i++)); do
    host=$(printf '%s\n' "$HOSTS" | sed -n "$((i + 1))p")
    { IFS= read -r system && IFS= read -r limit; } <"$answers/$i" || continue
    matches "$limit" '[0-9]+' || continue
    [ "$system" = Darwin ] && command="sudo launchctl limit maxfiles 65536 200000" ||
      command="echo '* hard nofile 65536' | sudo tee -a /etc/security/limits.conf"
    log "$host: the hard limit of open files is $limit: must be at least $FILES_LEAST, or mlx-lm" \
      "cannot be imported; there: $command; then log in anew"
    status=1
  done
  rm -rf "$answers"
  [ "$status" = 0 ] || exit 1
}

# choose_model: MODEL_DIR, or the demo model for --local. Sets MODEL_DIR (absolute) and MODEL_ID.
choose_model() {
  local folder
  if [ -n "${MODEL_DIR-}" ]; then
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
      die 1 "the demo model could not be made; start again to go on, or set MODEL_DIR"
    MODEL_DIR=$folder
  fi
  if [ -z "${MODEL_ID-}" ]; then
    MODEL_ID=${MODEL_DIR##*/}
    # The folder's name, which need not be one.
    ask_settings valid MODEL_ID "$MODEL_ID" || die 2 "$ANSWER; set MODEL_ID"
  fi
}

# check_model: the model can be split over these ranks. Looked at where rank 0 will read it.
check_model() {
  local command
  look_up PARALLEL
  command=("$PY" "$ROOT/scripts/lib/module.py" lib.model.check_model "$MODEL_DIR" "$RANKS" --parallel
    "${PARALLEL:-$DEFAULT}")
  [ "$RANK0" = 127.0.0.1 ] || {
    host_command "$RANK0" "$(quote "${command[@]}")"
    command=("${HOST_COMMAND[@]}")
  }
  run "${command[@]}" || die "$(($? == 3 ? 3 : 1))" "the model was not accepted on $RANK0 (rank 0)"
}

# take_rank_option --local|--env [VALUE [ARGUMENT...]]: sets LOCAL, or adds to EXTRA_ENV. Usage
# error without a value; choose_hosts looks at the number of ranks.
take_rank_option() {
  case $1 in
    --local)
      LOCAL=${2-}
      [ -n "$LOCAL" ] || die 2 "--local needs a number of ranks"
      ;;
    --env) add_env ${2+"$2"} ;;
  esac
}

# add_env [NAME=VALUE]: an --env option of the user's.
add_env() {
  [ $# -ge 1 ] || die 2 "--env needs NAME=VALUE"
  matches "$1" '[A-Za-z_][A-Za-z0-9_]*=.*' || die 2 "--env '$1': must be NAME=VALUE"
  case $1 in
    API_KEY=*) die 2 "--env API_KEY: everyone on the host could read it in ps; export it instead" ;;
  esac
  EXTRA_ENV+=("$1")
}

# parse_bench_arguments PROGRAM ARGUMENT...: for the scripts that run one of our programs on all
# ranks. Sets LOCAL, EXTRA_ENV and DRY_RUN, and BENCH_ARGUMENTS to what follows `--`.
# shellcheck disable=SC2034  # the scripts use them
parse_bench_arguments() {
  local program=$1
  shift
  LOCAL='' EXTRA_ENV=() BENCH_ARGUMENTS=()
  while [ $# -gt 0 ]; do
    case $1 in
      --local | --env)
        take_rank_option "$@"
        shift
        ;;
      --dry-run) DRY_RUN=1 ;;
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        BENCH_ARGUMENTS=("$@")
        return 0
        ;;
      *) die 2 "unknown argument '$1'; those of $program go after --; see --help" ;;
    esac
    shift
  done
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

# launcher_command NAME...: sets LAUNCHER to the launcher's command line, up to and with `--`.
# The settings named go to every rank if they are set, then the user's own $EXTRA_ENV.
launcher_command() {
  local name
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
