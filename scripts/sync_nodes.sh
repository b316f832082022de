#!/usr/bin/env bash
# Bring this checkout and its environment to every host, at the same absolute path.
#
# Usage: sync_nodes.sh [--hostfile FILE] [--checkout-only] [--dry-run] [--help] [HOST...]
#
# Run it on rank 0. Every HOST (default: those of the hostfile) gets, over ssh and rsync:
#   the checkout     the files that git knows, and new ones in server/ and scripts/; not .git,
#                    run/, logs/, models/, hostfiles/*.local.json, cluster.env
#   its environment  .venv, or that of ENV_NAME or PYTHON: exactly as it is here; and .python, if it
#                    was made with that
# Then it imports MLX and mlx-lm there, and compares versions and code with this machine's. A host
# that fails does not stop the others. Run it again at any time: only what differs is copied, and
# after an interruption it goes on. This machine, and one that shares its disk, are skipped.
#
# In the checkout on a host only files are removed that an earlier run, or a git checkout there,
# put there and that are no longer here. What else is in the environment there goes.
# An environment is not copied to another system or processor, or where the Python that it was
# made with is missing or another version; it then says what to do.
#
#   --hostfile FILE  HOSTFILE: the hosts of the cluster.
#   --checkout-only  The checkout alone: no environment, no import.
#   --dry-run        Print what would be run, and run nothing there.
#
# On stdout: `ok` or `fail` for each host, with what was done or what to do.
#
# Exit codes: 0 every host is in step, 1 one is not, 2 usage, 3 a tool or a file is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

main() {
  exec_verb lib.sync.sync_nodes "$@"
}

main "$@"
