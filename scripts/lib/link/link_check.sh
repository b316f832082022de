#!/usr/bin/env bash
# Let the ranks meet and exchange messages, without a model: do the links work, and how fast?
#
# Usage: link_check.sh smoke|link [--local N | --hostfile FILE] [--deadline S]
#                      [--nominal-gbps G] [--json] [--env NAME=VALUE]... [--dry-run] [--help]
#
# verify_cluster.sh --smoke and --link run it, on the machine that launches.
#
#   smoke              Start one process a rank, let them join over the backend, check on each the
#                      size of the world, and sum once over all ranks. A line a rank.
#   link               Then exchange messages between each two ranks that share a cable: time one
#                      way for 8 KB, and GB/s in each direction. A line a pair: pass, warn or fail
#                      against the nominal rate; with none it is told as it is (info).
#
#   --local N          N ranks on this machine (1 to 8). Without it: the hosts of HOSTFILE.
#   --hostfile FILE    HOSTFILE: the hosts of the cluster.
#   --deadline S       Whole seconds for the ranks, from start to end (60; link: 180). A rank that
#                      waits longer ends itself, and what is left after it is ended from here.
#   --nominal-gbps G   Rate of a link in Gb/s to judge by (80 for jaccl and jaccl-ring, else none).
#   --json             One JSON line more, last.
#   --env NAME=VALUE   One more variable for every rank. May be repeated.
#   --dry-run          Print what would be run, and run nothing.
#
# Exit codes: 0 all passed (or warned), 1 a rank or a link failed, 2 usage, 3 a tool or a file is
# missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

SMOKE_WITHIN_S=60
LINK_WITHIN_S=180
START_EXTRA_S=15 # for ssh and the interpreters; the ranks' own clocks start after it

WHAT=''
LOCAL=''
DEADLINE=''
TAKES_WORDS=1
RANK_ARGUMENTS=()
LAUNCH_PID=''
SCRATCH=''

take_word() {
  [ -z "$WHAT" ] || die 2 "both $WHAT and $1; see --help"
  WHAT=$1
}

take_option() {
  case $1 in
    --deadline)
      matches "$2" '[1-9][0-9]{0,4}' ||
        die 2 "--deadline '$2': must be whole seconds from 1 to 99999"
      DEADLINE=$2
      ;;
    --nominal-gbps)
      matches "$2" '[1-9][0-9]{0,4}(\.[0-9]{1,3})?' ||
        die 2 "--nominal-gbps '$2': must be Gb/s from 1 to 99999"
      RANK_ARGUMENTS+=("$1" "$2")
      ;;
    --json) RANK_ARGUMENTS+=(--json) ;;
  esac
}

# Nothing may be left behind: the launcher ends its ranks, here and through ssh, when it is told to.
clean_up() {
  trap - EXIT INT TERM HUP
  if [ -n "$LAUNCH_PID" ]; then
    kill -TERM "$LAUNCH_PID" 2>/dev/null || true
    wait "$LAUNCH_PID" 2>/dev/null || true
  fi
  [ -z "$SCRATCH" ] || rm -rf "$SCRATCH"
}

# Lines that are results, as against what the ranks and the launcher say meanwhile. Through ssh a
# rank has but one stream, so the words must tell.
RESULT='^(pass|warn|fail|info|[{])'

# run_ranks SECONDS COMMAND...: its exit code; results into $SCRATCH/out, all else shown and into
# $SCRATCH/err. After SECONDS the launcher is told to end the ranks, which it does within seconds.
run_ranks() {
  local tenths=$(($1 * 10)) status=0 sorts
  shift
  mkfifo "$SCRATCH/pipe"
  : >"$SCRATCH/out"
  : >"$SCRATCH/err"
  awk -v result="$RESULT" -v out="$SCRATCH/out" -v err="$SCRATCH/err" '
    $0 ~ result { print >out; next }
    { print >err; print; fflush() }' <"$SCRATCH/pipe" >&2 &
  sorts=$!
  # The ranks have nothing to finish, so they need no time for it.
  DRAIN_TIMEOUT=0 "$@" >"$SCRATCH/pipe" 2>&1 </dev/null &
  LAUNCH_PID=$!
  while kill -0 "$LAUNCH_PID" 2>/dev/null; do
    if [ "$tenths" -eq 0 ]; then
      log "not done after its deadline: ending the ranks"
      kill -TERM "$LAUNCH_PID" 2>/dev/null || true
    fi
    sleep 0.1
    tenths=$((tenths - 1))
  done
  wait "$LAUNCH_PID" || status=$?
  LAUNCH_PID=''
  wait "$sorts" || true
  return "$status"
}

# Ranks print when they are ready; people read them by rank, and programs one JSON line, last.
show_results() {
  if [ "$WHAT" = smoke ]; then
    grep -v '^{' "$SCRATCH/out" | sort -n -k 3 || true
  else
    grep -v '^{' "$SCRATCH/out" || true
  fi
  grep '^{' "$SCRATCH/out" || true
}

# What went wrong, from the launcher's last words, in the form of a check's line.
tell_failure() {
  local cause rank=0 host absent=''
  cause=$(sed -n 's/^mlx_launch: cause: //p' "$SCRATCH/err" | tail -n 1)
  while IFS= read -r host; do
    grep -q "link_ranks: rank $rank of " "$SCRATCH/err" || absent="$absent, rank $rank ($host)"
    rank=$((rank + 1))
  done <<<"$HOSTS"
  [ -z "$absent" ] || cause="${absent#, } did not get as far as joining; ${cause:-no more is known}"
  printf 'fail  %s over %s on %s ranks: %s\n' "$WHAT" "$BACKEND" "$RANKS" \
    "${cause:-$(tail -n 1 "$SCRATCH/err")}"
  case $BACKEND in
    jaccl*)
      log "find the cause before you try again (scripts/verify_cluster.sh): each start of JACCL" \
        "that fails is reported to cost a protection domain, of about 11, until the Mac is restarted"
      ;;
  esac
}

main() {
  local names command status=0
  read_options "$@"
  case $WHAT in
    smoke | link) ;;
    *) die 2 "'$WHAT': must be smoke or link; see --help" ;;
  esac
  check_settings
  choose_python
  choose_hosts
  check_devices_free
  prepare_python
  [ "$WHAT" != link ] || [ "$RANKS" -gt 1 ] || die 2 "one rank has no link: name two or more"
  if [ -z "$DEADLINE" ]; then
    DEADLINE=$SMOKE_WITHIN_S
    [ "$WHAT" = smoke ] || DEADLINE=$LINK_WITHIN_S
  fi
  names=$(printf '%s' "$HOSTS" | tr '\n' ',')
  tell_fast_synch
  # shellcheck disable=SC2119  # its arguments are settings of the server
  launcher_command
  command=("${LAUNCHER[@]}" "$ROOT/scripts/lib/module.py" lib.link.link_ranks "$WHAT" --hosts "$names"
    --deadline "$DEADLINE" ${RANK_ARGUMENTS[@]+"${RANK_ARGUMENTS[@]}"})
  if [ -n "$DRY_RUN" ]; then
    show "${command[@]}"
    exit 0
  fi
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  SCRATCH=$(mktemp -d)
  run_ranks "$((DEADLINE + START_EXTRA_S))" "${command[@]}" || status=$?
  show_results
  if [ "$status" -ne 0 ]; then
    tell_failure
    exit 1
  fi
  ! grep -q '^fail ' "$SCRATCH/out" || exit 1
}

main "$@"
