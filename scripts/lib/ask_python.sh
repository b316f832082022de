# shellcheck shell=bash
# What scripts ask Python: their command line, their settings, and whatever else both sides must know
# alike. Sourced by cluster_env.sh after common.sh, never run.
#
# A script calls read_options, then check_settings, before anything else.

EXTRA_ENV=() # what --env adds for every rank
GIVEN=()     # options that stand for settings: --port HTTP_PORT=8081

# ask_python MODULE ARGUMENT...: sets ANSWER to what it prints; its exit code, or 127 without a
# Python. The first line of each answer is the module's name, which a Python that is none lacks.
ask_python() {
  local module=$1 python status failed='' mark=${1##*.}
  shift
  # Before there is an environment, so any Python will do.
  for python in $PYTHON_NAMES "$VENV/bin/python" python3 "${PYTHON-}"; do
    command -v "$python" >/dev/null 2>&1 || continue
    ! opens_window "$python" || continue
    status=0
    ANSWER=$("$python" -I -S -X utf8 "$ROOT/scripts/lib/module.py" "$module" "$@" 2>/dev/null) ||
      status=$?
    case $ANSWER in
      "$mark"*)
        ANSWER=${ANSWER#"$mark"}
        ANSWER=${ANSWER#$'\n'}
        return "$status"
        ;;
    esac
    failed=$python
  done
  # Why, in its own words.
  [ -z "$failed" ] || "$failed" "$ROOT/scripts/lib/module.py" "$module" "$@" >/dev/null || true
  return 127
}

# need_answer MODULE ARGUMENT...: the same, but the script ends with what is wrong.
need_answer() {
  local status=0 line
  ask_python "$@" || status=$?
  case $status in
    0) return 0 ;;
    127) no_python ;;
  esac
  while IFS= read -r line; do
    # The first line of an error of options.py has the program's name already.
    log "${line#"$PROGRAM: "}"
  done <<<"$ANSWER"
  exit "$status"
}

# read_options ARGUMENT...: the command line, by the usage in the script's header. Those that several
# scripts have are taken here; take_option NAME [VALUE] of the script gets the others.
#
# With TAKES_WORDS=1 its take_word gets each argument that is no option. With MORE_OPTIONS set to a
# module that knows the options of the program that the script starts, these go to REST.
read_options() {
  local word asked
  for word; do
    case $word in
      --) break ;;
      -h | --help) # needs no Python
        usage
        exit 0
        ;;
    esac
  done
  asked=("$0")
  [ -z "${TAKES_WORDS-}" ] || asked+=(--words)
  [ -z "${MORE_OPTIONS-}" ] || asked+=(--with "$MORE_OPTIONS")
  REST=()
  need_answer lib.verbs.options "${asked[@]}" -- "$@"
  eval "$ANSWER" # lines of the next three functions, quoted
}

# shellcheck disable=SC2034  # for the scripts
option() {
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    --local) LOCAL=$2 ;;
    --env) EXTRA_ENV+=("$2") ;;
    --port) GIVEN+=("$1" "HTTP_PORT=$2") ;;
    --hostfile) GIVEN+=("$1" "HOSTFILE=$2") ;;
    --model) take_model "$2" ;;
    --parallel) GIVEN+=("$1" "PARALLEL=$2") ;;
    *) take_option "$@" ;;
  esac
}

take_model() {
  GIVEN+=(--model "MODEL_DIR=$1")
}

word() {
  take_word "$1"
}

rest() {
  REST+=("$1")
}

# bad_setting NAME ALLOWED: usage error that names the setting, its value and what is allowed.
bad_setting() {
  die 2 "$1='${!1-}': must be $2"
}

# list_settings: for usage, those that the script reads.
list_settings() {
  local status=0
  # shellcheck disable=SC2153  # of common.sh
  ask_python lib.settings.settings help "${PROGRAM%%.*}" || status=$?
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
# SETTING_DEFAULTS; RANK_SETTINGS and LAUNCH_SETTINGS, the names of what goes to ranks; and what
# stands in server/protocol/limits.py and hosts/reach.py. Takes the settings of ranks out of EXTRA_ENV.
check_settings() {
  local name place origin default value arguments others
  arguments=(check "${PROGRAM%%.*}") others=()
  for value in ${EXTRA_ENV[@]+"${EXTRA_ENV[@]}"}; do
    arguments+=(--option "$value")
  done
  arguments+=(${GIVEN[@]+"${GIVEN[@]}"})
  need_answer lib.settings.settings "${arguments[@]}"
  SETTING_NAMES=() SETTING_PLACES=() SETTING_ORIGINS=() SETTING_DEFAULTS=()
  RANK_SETTINGS='' LAUNCH_SETTINGS=''
  while IFS=$'\037' read -r name place origin default value; do
    case $place in
      fact)
        printf -v "$name" '%s' "$value"
        continue
        ;;
      rank) RANK_SETTINGS="$RANK_SETTINGS $name" ;;
      launch) LAUNCH_SETTINGS="$LAUNCH_SETTINGS $name" ;;
    esac
    SETTING_NAMES+=("$name")
    SETTING_PLACES+=("$place")
    SETTING_ORIGINS+=("$origin")
    SETTING_DEFAULTS+=("$default")
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
# shellcheck disable=SC2034  # ORIGIN is for the scripts
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
