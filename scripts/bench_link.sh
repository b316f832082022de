#!/usr/bin/env bash
# Measure latency and bandwidth of the sums that the ranks exchange, by message size.
#
# Usage: bench_link.sh [--local N] [--env NAME=VALUE]... [--dry-run] [--help] [-- ARGUMENT...]
#
#   --local N         N ranks on this machine (2 to 8), over the ring backend on loopback, with
#                     float32 as in the demo model. Without it: the hosts of HOSTFILE, in bfloat16.
#   --env NAME=VALUE  One more variable for every rank. May be repeated.
#   --dry-run         Print what would be run, and run nothing.
#   ARGUMENT...       For bench_link.py, after ours: --hidden N, --dtype TYPE, --max-mb N,
#                     --nominal-gbps G, --seconds S, --deadline S
#
# It prints a table, then one JSON line. scripts/bench_link.py --help tells what each number is. No
# model is loaded; with MODEL_DIR set, a token's hidden state is as large as in that model.
#
# Exit codes: 0 done, 1 a rank failed, 2 usage, 3 a tool or a file is missing; a rank's own code if
# it refused to go on.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

main() {
  local command
  parse_bench_arguments bench_link.py "$@"
  check_settings
  choose_python
  choose_hosts
  [ "$RANKS" -gt 1 ] || die 2 "one rank has no link: name two or more"
  check_devices_free
  prepare_python
  tell_fast_synch
  # shellcheck disable=SC2119  # its arguments are settings of the server
  launcher_command
  command=("${LAUNCHER[@]}" "$ROOT/scripts/bench_link.py" --ranks "$RANKS")
  [ -z "$LOCAL" ] || command+=(--dtype float32)
  [ -z "${MODEL_DIR-}" ] || command+=(--model "$(absolute_path "$MODEL_DIR")")
  command+=(${BENCH_ARGUMENTS[@]+"${BENCH_ARGUMENTS[@]}"})
  if [ -n "$DRY_RUN" ]; then
    show "${command[@]}"
    exit 0
  fi
  exec "${command[@]}"
}

main "$@"
