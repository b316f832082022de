#!/usr/bin/env bash
# Write the hostfile of a cluster from the way its Macs are cabled.
#
# Usage: make_hostfile.sh [--topology mesh|ring] [--ring-tcp] [--address IPV4] [--output FILE]
#                         [--force] [--dry-run | --dot] [--help] HOST...
#
# HOST are ssh names, rank 0 first. Each is asked over one ssh, and over a second one to ping the
# far ends of its cables; nothing there is changed. It draws what it found, says in words what is
# missing or doubtful and how to mend it, and writes a hostfile if the cabling carries one: a mesh (backend jaccl) where every Mac has a cable to every
# other, else a ring (backend jaccl-ring), in which the ranks follow the cables.
#
#   --topology mesh|ring  This one or none. With two cables or more between each two Macs a ring
#                         uses all of them, a mesh (since MLX 0.32.4) all for messages of 512 KB
#                         and more, the first for shorter.
#   --ring-tcp            No RDMA: the ring backend over the ordinary network. For Macs without
#                         Thunderbolt 5 cables, and for Linux.
#   --address IPV4        The address of the first HOST, where the ranks meet. Default: that of
#                         its en0, else en1, else another network that is not Thunderbolt.
#   --output FILE         (hostfiles/m3-ultra-jaccl.local.json, which the other scripts use; with
#                         --ring-tcp hostfiles/ring.local.json)
#   --force               Overwrite FILE. Its "envs" are kept.
#   --dry-run             Ask the hosts, print the hostfile, write nothing.
#   --dot                 Ask the hosts, print the cabling for Graphviz, write nothing:
#                         make_hostfile.sh --dot HOST... | dot -Tsvg >cabling.svg
#
# Exit codes: 0 done, 1 a host or the cabling does not allow it, or FILE exists, 2 usage,
# 3 a tool is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

main() {
  exec_verb lib.cabling.make_hostfile "$@"
}

main "$@"
