#!/usr/bin/env bash
# Bring models to every host, at the same absolute paths, and check every byte.
#
# Usage: sync_model.sh [--hostfile FILE] [--revision REVISION] [--to DIR] [--dry-run] [--help]
#                      [--all | MODEL] [HOST...]
#
# Run it on rank 0. MODEL is the folder of an MLX model here, or a Hugging Face repo such as
# mlx-community/Foo-4bit, which is then downloaded once, on this machine, to models/Foo-4bit, unless
# the ranks could not serve it (check_model.sh tells more before). A folder that has models below
# it, up to three deep, stands for all of these.
# Every HOST (default: those of the hostfile) gets it over ssh and rsync, all at the same time, by
# its Thunderbolt cable to rank 0 where the hostfile tells of one, and is checked by sha256. Without
# a hostfile and a HOST it is for this machine alone.
#
# Space is checked first. A copy is called NAME.partial until every file is right, and a download
# until it is whole: a model that is half there is never taken for one. After an interruption run
# it again: what has arrived is used. A second run only checks. In the model's folder on a host,
# what is not in the folder here is removed. This machine, and one that shares its disk, are
# skipped.
#
#   --hostfile FILE      HOSTFILE: the hosts of the cluster.
#   --revision REVISION  Branch, tag or commit of the repo (its main branch)
#   --all                In place of MODEL: all that MODEL_DIR, MODELS and MODELS_DIR name
#   --to DIR             Where to put the downloaded folder (models/ of this checkout)
#   --dry-run            Print what would be run, and run nothing there.
#
# Of several models each host gets one after the other, if its disks have room for what is missing of
# all. One that is not whole here is left out, told, and makes the exit code 1.
#
# On stdout: `ok` or `fail` for each host, with what was done or what to do; of several models for
# each of them on each host.
#
# Exit codes: 0 every host has it, 1 one has not, 2 usage, 3 a tool or a file is missing, or the hub
# cannot be reached or does not give the repo.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

main() {
  exec_verb lib.sync.sync_model "$@"
}

main "$@"
