#!/usr/bin/env bash
# Measure latency and bandwidth of the sums that the ranks exchange, by message size.
#
# Usage: bench_link.sh [--local N | --hostfile FILE] [--model DIR] [--env NAME=VALUE]...
#                      [--dry-run] [--help] [ARGUMENT...]
#
#   --local N         N ranks on this machine (2 to 8), over the ring backend on loopback, with
#                     float32 as in the demo model. Without it: the hosts of HOSTFILE, in bfloat16.
#   --hostfile FILE   HOSTFILE: the hosts of the cluster.
#   --model DIR       MODEL_DIR: a token's hidden state is as large as in that model.
#   --env NAME=VALUE  One more variable for every rank. May be repeated.
#   --dry-run         Print what would be run, and run nothing.
#   ARGUMENT...       Options of bench_link.py, among ours or after `--`:
#     --hidden N        values of a token (MODEL_DIR's, else 4096)
#     --dtype TYPE      of a value: bfloat16, float16 or float32
#     --max-mb N        the largest message (64)
#     --nominal-gbps G  of a link, Gb/s      --seconds S   to spend on each size (0.5)
#     --deadline S      for it all (600)     --json        one JSON line last, as ever
#
# It prints a table, then one JSON line. scripts/bench_link.py --help tells what each number is. No
# model is loaded.
#
# Exit codes: 0 done, 1 a rank failed, 2 usage, 3 a tool or a file is missing; a rank's own code if
# it refused to go on.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

LOCAL=''
MORE_OPTIONS=lib.link.bench_link_options

main() {
  local command
  read_options "$@"
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
  case " ${REST[*]-}" in
    *" --hidden"*) ;;
    *) [ -z "${MODEL_DIR-}" ] || command+=(--model "$(absolute_path "$MODEL_DIR")") ;;
  esac
  command+=(${REST[@]+"${REST[@]}"})
  if [ -n "$DRY_RUN" ]; then
    show "${command[@]}"
    exit 0
  fi
  exec "${command[@]}"
}

main "$@"
