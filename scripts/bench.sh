#!/usr/bin/env bash
# Measure tokens per second of a model split over the ranks, without the server.
#
# Usage: bench.sh [--local N] [--env NAME=VALUE]... [--dry-run] [--help] [-- ARGUMENT...]
#
#   --local N         N ranks on this machine (1 to 8). Makes .venv and gets the demo model
#                     if it must. Without it: the hosts of HOSTFILE.
#   --env NAME=VALUE  One more variable for every rank. May be repeated.
#   --dry-run         Print what would be run, and run nothing.
#   ARGUMENT...       For jaccl_tps_bench.py, after ours: --json, --prompt TEXT, --max-tokens N
#
# Exit codes: 0 done, 1 a check or a rank failed, 2 usage, 3 a tool or a file is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

PROMPT="Write 5 sentences about Thunderbolt RDMA."
MAX_TOKENS=256
LOCAL_MAX_TOKENS=128 # a CPU is slow

main() {
  parse_bench_arguments jaccl_tps_bench.py "$@"
  check_settings
  choose_python
  choose_hosts
  check_devices_free
  check_open_files
  prepare_python
  choose_model
  check_model

  [ -z "$LOCAL" ] || MAX_TOKENS=$LOCAL_MAX_TOKENS
  tell_fast_synch
  launcher_command PARALLEL LOG_LEVEL
  local command
  command=("${LAUNCHER[@]}" "$ROOT/scripts/jaccl_tps_bench.py" --model "$MODEL_DIR"
    --prompt "$PROMPT" --max-tokens "$MAX_TOKENS"
    ${BENCH_ARGUMENTS[@]+"${BENCH_ARGUMENTS[@]}"})
  if [ -n "$DRY_RUN" ]; then
    show "${command[@]}"
    exit 0
  fi
  exec "${command[@]}"
}

main "$@"
