#!/usr/bin/env bash
# End the ranks of one server on this host.
#
# Usage: end_ranks.sh RUN_DIR [GRACE_S]
#
# RUN_DIR holds one rank-N.pid for each rank that runs here: its pid, and below it the id
# of its run. A process is ended only if its command line carries that id, so a pid that
# has meanwhile gone to another program is left alone. Each rank gets SIGTERM (and SIGCONT:
# it may be stopped), after GRACE_S seconds (default 5) another one, which makes it leave at
# once, and 2 s later SIGKILL, which is announced; but not one that is stuck in the kernel: it would not hear
# that, either. Records of ranks that are gone are removed. Prints one line for each rank that it ended.
#
# Exit codes: 0 no rank of ours is left here; 1 one could not be ended; 2 usage; 3 no process can be seen
# here.
#
# Needs bash, and ps or Linux's /proc: it runs on every host, before and without Python.
set -euo pipefail

AT_ONCE_S=2 # Between the second SIGTERM and SIGKILL.
STUCK_S=1   # Between two looks at one that may be stuck: a disk keeps a process for less.
KILLED_S=5  # A process that outlives SIGKILL this long is stuck in the kernel.

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

rank_of() {
  local name=${1##*/rank-}
  printf '%s' "${name%.pid}"
}

# signal_ranks TERM|KILL: sends it to those of ours that remain.
signal_ranks() {
  local i
  for i in "${!pids[@]}"; do
    if is_run "${pids[i]}" "${run_ids[i]}"; then
      case $1 in
        TERM) end_gently "${pids[i]}" ;;
        KILL)
          case " $stuck " in *" ${pids[i]} "*) continue ;; esac
          printf 'rank %s (pid %s) did not leave within %s s: SIGKILL\n' \
            "$(rank_of "${files[i]}")" "${pids[i]}" "$((grace + AT_ONCE_S))"
          kill -KILL "${pids[i]}" 2>/dev/null || true
          ;;
      esac
    fi
  done
}

# waits_in_kernel PID: U (on macOS; ?E is its end) or D (Linux) is a wait that no signal ends.
waits_in_kernel() {
  case $(state_of "$1") in
    U* | D* | '?E'*) return 0 ;;
  esac
  return 1
}

# find_stuck: sets stuck to the pids of ours that wait in the kernel, seen twice.
find_stuck() {
  local i seen=''
  stuck=''
  for i in "${!pids[@]}"; do
    if is_run "${pids[i]}" "${run_ids[i]}" && waits_in_kernel "${pids[i]}"; then
      seen="$seen ${pids[i]}"
    fi
  done
  [ -n "$seen" ] || return 0
  sleep "$STUCK_S"
  for i in "${!pids[@]}"; do
    case " $seen " in
      *" ${pids[i]} "*) ! waits_in_kernel "${pids[i]}" || stuck="$stuck ${pids[i]}" ;;
    esac
  done
}

# wait_for_ranks SECONDS: returns 0 as soon as none of ours remains.
wait_for_ranks() {
  local deadline=$((SECONDS + $1)) i left
  while true; do
    left=0
    for i in "${!pids[@]}"; do
      if is_run "${pids[i]}" "${run_ids[i]}"; then left=1; fi
    done
    [ "$left" = 1 ] || return 0
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

main() {
  case "${1-}" in
    -h | --help) usage && exit 0 ;;
    '') die 2 'no RUN_DIR given (see --help)' ;;
    -*) die 2 "unknown option $1 (see --help)" ;;
  esac
  [ $# -le 2 ] || die 2 'too many arguments (see --help)'
  local run_dir=$1 grace=${2-5}
  case "$grace" in '' | *[!0-9]*) die 2 "GRACE_S is '$grace', not a whole number of seconds" ;; esac
  grace=$((10#$grace)) # 08 would be octal.

  need_processes
  local file i
  local -a pids run_ids files
  pids=() run_ids=() files=()
  for file in "$run_dir"/rank-*.pid; do
    [ -e "$file" ] || continue
    if ours "$file"; then
      pids+=("$OURS_PID")
      run_ids+=("$OURS_RUN")
      files+=("$file")
    else
      rm -f -- "$file"
    fi
  done
  [ ${#pids[@]} -gt 0 ] || exit 0 # From here on the arrays are not empty (bash 3.2).

  local forced='' stuck='' failed=0 how rank
  signal_ranks TERM
  if ! wait_for_ranks "$grace"; then
    signal_ranks TERM
    if ! wait_for_ranks "$AT_ONCE_S"; then
      # Only now: on macOS SIGKILL can strand the memory that the GPU had wired, or a process that has
      # RDMA open.
      find_stuck
      for i in "${!pids[@]}"; do
        if is_run "${pids[i]}" "${run_ids[i]}"; then forced="$forced ${pids[i]}"; fi
      done
      signal_ranks KILL
      wait_for_ranks "$KILLED_S" || true
    fi
  fi
  for i in "${!pids[@]}"; do
    rank=$(rank_of "${files[i]}")
    how=ended
    case " $forced " in *" ${pids[i]} "*) how="killed after $((grace + AT_ONCE_S)) s" ;; esac
    if is_run "${pids[i]}" "${run_ids[i]}"; then
      how='cannot be ended'
      case " $stuck " in
        *" ${pids[i]} "*)
          how="is stuck in the kernel (state $(state_of "${pids[i]}")), where no signal ends it: restart"
          how="$how this host, and if that does not come to an end, cut its power"
          ;;
      esac
      printf 'rank %s (pid %s) %s\n' "$rank" "${pids[i]}" "$how"
      failed=1
    else
      printf 'rank %s (pid %s) %s\n' "$rank" "${pids[i]}" "$how"
      rm -f -- "${files[i]}"
    fi
  done
  exit "$failed"
}

main "$@"
