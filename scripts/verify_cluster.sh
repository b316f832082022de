#!/usr/bin/env bash
# Look at every host of the cluster, and say what would break a launch and what mends it.
#
# Usage: verify_cluster.sh [HOST...] [--host HOST]... [--check NAME]... [--json] [--deadline S]
#                          [--fix [--yes]] [--smoke | --link] [--local N | --hostfile FILE]
#                          [--port P] [--list] [--dry-run] [--help]
#
# Asks all hosts at once, each over one ssh (Macs over a second one, to ping the far ends of their
# Thunderbolt cables), and changes nothing. Prints a table of hosts and checks, then for each
# finding what the launch would have shown and how to mend it.
#
#   HOST...        ssh names, rank 0 first, of hosts that have no hostfile yet: all that does not need
#                  one is checked. On a Mac for JACCL, unless BACKEND says otherwise.
#   --host HOST    Look at this host alone. May be repeated.
#   --check NAME   Do this check alone (ssh always is). May be repeated; --list names them.
#   --json         Print the result, and the facts behind it, as JSON.
#   --deadline S   Seconds that the hosts may take (60), and then --smoke (60) or --link (180).
#   --fix          Offer the fixes that can be taken back, one after the other, then look again.
#                  Says so where one needs sudo.
#   --yes          With --fix: do them all without asking.
#   --smoke        If nothing failed: start the backend on all hosts, check the number of ranks
#                  and add up one number.
#   --link         If nothing failed: measure bandwidth and latency of each pair.
#   --local N      What N ranks on this machine need (1 to 8). Without it: the hosts of HOSTFILE.
#   --hostfile FILE  HOSTFILE: the hosts of the cluster.
#   --port P       HTTP_PORT of the server that is to be started, or that runs (else that of the one
#                  that runs).
#   --list         Print the checks.
#   --dry-run      Print what would be run on the hosts, and run nothing there.
#
# Set what you will launch with. Without MODEL_DIR, MODELS or MODELS_DIR there is no check of models
# and of memory.
#
# Exit codes: 0 nothing failed (there may be warnings), 1 something did, 2 usage, 3 a tool or
# the hostfile is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

LOCAL='' DEADLINE='' FIX='' YES='' JSON='' AFTERWARDS='' LIST=''
OPTIONS=()
NAMED=()
TAKES_WORDS=1

take_word() {
  NAMED+=("$1")
}

take_option() {
  case $1 in
    --host | --check) OPTIONS+=("$1" "$2") ;;
    --deadline) DEADLINE=$2 ;;
    --json) JSON=1 ;;
    --fix) FIX=1 ;;
    --yes) YES=1 ;;
    --list) LIST=1 ;;
    --smoke | --link)
      [ -z "$AFTERWARDS" ] || die 2 "--smoke and --link: one of them"
      AFTERWARDS=${1#--}
      ;;
  esac
}

# Those that do not go together.
check_options() {
  [ -z "$YES" ] || [ -n "$FIX" ] || die 2 "--yes goes with --fix"
  [ -z "$JSON" ] || [ -z "$AFTERWARDS" ] || die 2 "--json does not go with --$AFTERWARDS"
  if [ ${#NAMED[@]} -gt 0 ]; then
    [ -z "$AFTERWARDS" ] || die 2 "--$AFTERWARDS needs a hostfile: scripts/make_hostfile.sh ${NAMED[*]}"
    [ -z "$LOCAL" ] || die 2 "--local and host names: one of them"
    case " ${GIVEN[*]-} " in *" --hostfile "*) die 2 "--hostfile and host names: one of them" ;; esac
  fi
  if [ -n "$DEADLINE" ] && ! { matches "$DEADLINE" '[1-9][0-9]{0,3}' && [ "$DEADLINE" -ge 2 ]; }; then
    die 2 "--deadline $DEADLINE: must be whole seconds from 2 to 9999"
  fi
}

# Without a port the server that runs is meant, if it is but one.
look_for_port() {
  [ -z "${HTTP_PORT-}" ] || return 0
  ask_python lib.status.servers --running "$ROOT" || ANSWER=''
  HTTP_PORT=${ANSWER%%$'\n'*}
}

# Sets PLACE: where the launch would be, as options of the doctor.
choose_place() {
  use_default HTTP_PORT PARALLEL
  PLACE=(--python "$PY" --http-port "$HTTP_PORT" --parallel "$PARALLEL")
  if [ -n "$LOCAL" ]; then
    choose_hosts # checks the number
    PLACE+=(--local "$LOCAL" --cluster-port "${CLUSTER_PORT:-0}") # 0: free ones are taken
  else
    need ssh "$HAS_SSH"
    use_default CLUSTER_PORT
    PLACE+=(--cluster-port "$CLUSTER_PORT")
    if [ ${#NAMED[@]} -gt 0 ]; then
      local host
      for host in "${NAMED[@]}"; do PLACE+=(--named "$host"); done
    else
      find_hostfile
      PLACE+=(--hostfile "$HOSTFILE")
    fi
    [ -z "${BACKEND-}" ] || PLACE+=(--backend "$BACKEND")
  fi
  [ -z "${MODEL_DIR-}" ] || PLACE+=(--model-dir "$(absolute_path "${MODEL_DIR%/}")")
  [ -z "${MODEL_ID-}" ] || PLACE+=(--model-id "$MODEL_ID")
  [ -z "${MODELS-}" ] || PLACE+=(--models "$MODELS")
  [ -z "${MODELS_DIR-}" ] || PLACE+=(--models-dir "$(absolute_path "${MODELS_DIR%/}")")
  [ -z "${MODELS_GB-}" ] || PLACE+=(--models-gb "$MODELS_GB")
  [ -z "${PINNED-}" ] || PLACE+=(--pinned "$PINNED")
  [ -z "${DRAFT_MODEL_DIR-}" ] ||
    PLACE+=(--draft-model-dir "$(absolute_path "${DRAFT_MODEL_DIR%/}")")
  [ "${TRUST_REMOTE_CODE:-0}" = 0 ] || PLACE+=(--trust-remote-code)
  [ -z "${KV_BUDGET_GB-}" ] || PLACE+=(--kv-budget-gb "$KV_BUDGET_GB")
  [ -z "${KV_BITS-}" ] || PLACE+=(--kv-bits "$KV_BITS")
  [ -z "${KV_BITS_FROM-}" ] || PLACE+=(--kv-bits-from "$KV_BITS_FROM")
  [ "${CONTEXT_MAX:-0}" = 0 ] || PLACE+=(--context-max "$CONTEXT_MAX")
  [ -z "${PROTECTION_DOMAINS-}" ] || PLACE+=(--domains "$PROTECTION_DOMAINS")
  [ -z "${MLX_METAL_FAST_SYNCH-}" ] || PLACE+=(--fast-synch "$MLX_METAL_FAST_SYNCH")
}

doctor() {
  "$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.doctor.main --checkout "$ROOT" "$@" \
    ${OPTIONS[@]+"${OPTIONS[@]}"}
}

# after_checks: --smoke or --link, in a program of their own.
after_checks() {
  local command
  command=(bash "$ROOT/scripts/lib/link/link_check.sh" "$AFTERWARDS")
  if [ -n "$LOCAL" ]; then command+=(--local "$LOCAL"); else export HOSTFILE; fi
  [ -z "$DEADLINE" ] || command+=(--deadline "$DEADLINE")
  [ -z "$DRY_RUN" ] || command+=(--dry-run)
  exec "${command[@]}"
}

main() {
  local status=0
  read_options "$@"
  check_options
  check_settings
  choose_python
  choose_any_python
  look_for_port
  if [ -n "$LIST" ]; then
    use_default HTTP_PORT CLUSTER_PORT
    PLACE=(--python "$PY" --http-port "$HTTP_PORT" --cluster-port "$CLUSTER_PORT" --list)
  else
    choose_place
  fi
  [ -z "$JSON" ] || PLACE+=(--json)
  [ -z "$FIX" ] || PLACE+=(--fix)
  [ -z "$YES" ] || PLACE+=(--yes)
  [ -z "$DEADLINE" ] || PLACE+=(--deadline "$DEADLINE")
  [ -z "$DRY_RUN" ] || PLACE+=(--dry-run)
  doctor "${PLACE[@]}" || status=$?
  if [ ${#NAMED[@]} -gt 0 ] && [ "$status" = 0 ]; then
    tell "what a hostfile says is not checked yet: scripts/make_hostfile.sh ${NAMED[*]} writes one"
  fi
  if [ -z "$AFTERWARDS" ] || [ -n "$LIST" ]; then
    exit "$status"
  fi
  [ "$status" = 0 ] || die "$status" "--$AFTERWARDS was not begun: mend what failed first"
  after_checks
}

main "$@"
