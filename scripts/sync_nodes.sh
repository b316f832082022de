#!/usr/bin/env bash
# Bring this checkout and its environment to every host, at the same absolute path.
#
# Usage: sync_nodes.sh [--checkout-only] [--dry-run] [--help] [HOST...]
#
# Run it on rank 0. Every HOST (default: those of the hostfile) gets, over ssh and rsync:
#   the checkout     the files that git knows, and new ones in server/ and scripts/; not .git,
#                    run/, logs/, models/, hostfiles/*.local.json, cluster.env
#   its environment  .venv, or that of ENV_NAME or PYTHON: exactly as it is here
# Then it imports MLX and mlx-lm there, and compares versions and code with this machine's. A host
# that fails does not stop the others. Run it again at any time: only what differs is copied, and
# after an interruption it goes on. This machine, and one that shares its disk, are skipped.
#
# In the checkout on a host only files are removed that an earlier run, or a git checkout there,
# put there and that are no longer here. What else is in the environment there goes.
# An environment is not copied to another system or processor, or where the Python that it was
# made with is missing or another version; it then says what to do.
#
#   --checkout-only  The checkout alone: no environment, no import.
#   --dry-run        Print what would be run, and run nothing there.
#
# On stdout: `ok` or `fail` for each host, with what was done or what to do.
#
# Exit codes: 0 every host is in step, 1 one is not, 2 usage, 3 a tool or a file is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"
# shellcheck source=scripts/lib/sync/sync_hosts.sh
. "$ROOT/scripts/lib/sync/sync_hosts.sh"

OPTIONS=() TARGETS=()
# shellcheck disable=SC2034  # for cluster_env.sh
LOCAL='' CHECKOUT_ONLY=''

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --checkout-only)
        CHECKOUT_ONLY=1
        OPTIONS+=("$1")
        ;;
      --dry-run) DRY_RUN=1 ;;
      -h | --help)
        usage
        exit 0
        ;;
      -*) die 2 "unknown argument '$1'; see --help" ;;
      *) TARGETS+=("$1") ;;
    esac
    shift
  done
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
  if [ -z "$CHECKOUT_ONLY" ]; then
    prepare_python
  fi
  if [ -n "$DRY_RUN" ]; then
    OPTIONS+=(--dry-run)
  else
    warn_of_servers
  fi
  # shellcheck disable=SC2086  # a list of names
  "$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.sync.sync_nodes --root "$ROOT" --python "$PY" \
    --timeout "$SYNC_TIMEOUT" ${OPTIONS[@]+"${OPTIONS[@]}"} -- $HOSTS
}

main "$@"
