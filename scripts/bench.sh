#!/usr/bin/env bash
# Measure tokens per second of a model split over the ranks, without the server.
#
# Usage: bench.sh [--local N | --hostfile FILE] [--model DIR] [--parallel KIND]
#                 [--env NAME=VALUE]... [--dry-run] [--help] [ARGUMENT...]
#
#   --local N         N ranks on this machine (1 to 8). Makes .venv and gets the demo model
#                     if it must. Without it: the hosts of HOSTFILE.
#   --hostfile FILE   HOSTFILE: the hosts of the cluster.
#   --model DIR       MODEL_DIR: folder of an MLX model, the same path on every host; or the name
#                     of one of MODELS and MODELS_DIR. Without it the one that is loaded first.
#   --parallel KIND   PARALLEL: auto, tensor or pipeline.
#   --env NAME=VALUE  One more variable for every rank. May be repeated.
#   --dry-run         Print what would be run, and run nothing.
#   ARGUMENT...       Options of jaccl_tps_bench.py, among ours or after `--`:
#     --prompt TEXT     (5 sentences about RDMA)     --raw         no chat template around it
#     --max-tokens N    (256; with --local 128)      --ignore-eos  always as many
#     --warmup N        runs not counted (1)         --repeats N   runs that are counted (3)
#     --prefill-step N  tokens a chunk (2048)        --json        one JSON line last
#     --speculate       drafts, as with SPECULATE=auto
#
# Exit codes: 0 done, 1 a check or a rank failed, 2 usage, 3 a tool or a file is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

LOCAL='' WANTED=''
MORE_OPTIONS=lib.bench.tps_options
LOCAL_MAX_TOKENS=128 # a CPU is slow

take_model() {
  WANTED=$1
}

# is_folder MODEL: rather than a name; it need not be here.
is_folder() {
  case $1 in /* | ./* | ../*) return 0 ;; esac
  [ -d "$1" ]
}

# choose_wanted: sets MODEL_DIR to the folder of the model that --model names.
choose_wanted() {
  local name folder names=$MODEL_ID
  [ "$WANTED" != "$MODEL_ID" ] || return 0
  while IFS=$'\t' read -r name folder; do
    [ "$name" != "$WANTED" ] || {
      MODEL_DIR=$folder
      return 0
    }
    names="$names${name:+, }$name"
  done <<<"$OTHER_MODELS"
  die 2 "--model '$WANTED': must be a folder, or one of $names"
}

main() {
  local alone=''
  read_options "$@"
  if [ -n "$WANTED" ] && is_folder "$WANTED"; then
    GIVEN+=(--model "MODEL_DIR=$WANTED")
    WANTED='' alone=1
  fi
  check_settings
  [ -z "$alone" ] || unset MODELS MODELS_DIR MODEL_ID
  if [ -n "$WANTED" ] && [ -z "${MODELS-}${MODELS_DIR-}" ]; then
    MODEL_DIR=$WANTED WANTED=
  fi
  choose_python
  choose_hosts
  check_devices_free
  check_hosts
  prepare_python
  choose_model
  [ -z "$WANTED" ] || choose_wanted
  check_model

  tell_fast_synch
  launcher_command PARALLEL LOG_LEVEL
  local command
  command=("${LAUNCHER[@]}" "$ROOT/scripts/jaccl_tps_bench.py" --model "$MODEL_DIR")
  [ -z "$LOCAL" ] || command+=(--max-tokens "$LOCAL_MAX_TOKENS")
  command+=(${REST[@]+"${REST[@]}"}) # behind ours, so that they win
  if [ -n "$DRY_RUN" ]; then
    show "${command[@]}"
    exit 0
  fi
  exec "${command[@]}"
}

main "$@"
