#!/usr/bin/env bash
# Bring a model to every host, at the same absolute path, and check every byte.
#
# Usage: sync_model.sh [--revision REVISION] [--to DIR] [--dry-run] [--help] MODEL [HOST...]
#
# Run it on rank 0. MODEL is the folder of an MLX model here, or a Hugging Face repo such as
# mlx-community/Foo-4bit, which is then downloaded once, on this machine, to models/Foo-4bit.
# Every HOST (default: those of the hostfile) gets it over ssh and rsync, all at the same time, by
# its Thunderbolt cable to rank 0 where the hostfile tells of one, and is checked by sha256.
#
# Space is checked first. A copy is called NAME.partial until every file is right, and a download
# until it is whole: a model that is half there is never taken for one. After an interruption run
# it again: what has arrived is used. A second run only checks. In the model's folder on a host,
# what is not in the folder here is removed. This machine, and one that shares its disk, are
# skipped.
#
#   --revision REVISION  Branch, tag or commit of the repo (its main branch)
#   --to DIR             Where to put the downloaded folder (models/ of this checkout)
#   --dry-run            Print what would be run, and run nothing there.
#
# On stdout: `ok` or `fail` for each host, with what was done or what to do.
#
# Exit codes: 0 every host has it, 1 one has not, 2 usage, 3 a tool or a file is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"
# shellcheck source=scripts/lib/sync/sync_hosts.sh
. "$ROOT/scripts/lib/sync/sync_hosts.sh"

OPTIONS=() TARGETS=()
# shellcheck disable=SC2034  # for cluster_env.sh
LOCAL='' MODEL=''

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --revision | --to)
        [ -n "${2-}" ] || die 2 "$1 needs a value"
        OPTIONS+=("$1" "$2")
        shift
        ;;
      --dry-run) DRY_RUN=1 ;;
      -h | --help)
        usage
        exit 0
        ;;
      -*) die 2 "unknown argument '$1'; see --help" ;;
      *)
        if [ -z "$MODEL" ]; then
          [ -n "$1" ] || die 2 "MODEL is empty: must be a folder or a Hugging Face repo"
          MODEL=$1
        else
          TARGETS+=("$1")
        fi
        ;;
    esac
    shift
  done
  [ -n "$MODEL" ] || die 2 "MODEL is missing: the folder of a model, or a Hugging Face repo"
}

main() {
  parse_arguments "$@"
  check_settings
  use_default SYNC_TIMEOUT
  need ssh "it is part of every macOS and Debian"
  need rsync "Debian: apt-get install rsync"
  choose_python
  choose_any_python
  choose_targets
  if [ ! -d "$MODEL" ] && [ -z "$DRY_RUN" ]; then
    prepare_python # huggingface-hub downloads it
  fi
  [ -z "$DRY_RUN" ] || OPTIONS+=(--dry-run)
  [ -z "$HOSTFILE" ] || OPTIONS+=(--hostfile "$HOSTFILE")
  # shellcheck disable=SC2086  # a list of names
  "$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.sync.sync_model --root "$ROOT" --python "$PY" \
    --timeout "$SYNC_TIMEOUT" ${OPTIONS[@]+"${OPTIONS[@]}"} -- "$MODEL" $HOSTS
}

main "$@"
