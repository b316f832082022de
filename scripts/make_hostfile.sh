#!/usr/bin/env bash
# Write the hostfile of a cluster from the way its Macs are cabled.
#
# Usage: make_hostfile.sh [OPTION]... HOST...
#
# HOST are ssh names, rank 0 first. Each is asked over one ssh, and nothing there is changed. It
# draws what it found, says in words what is missing or doubtful and how to mend it, and writes a
# hostfile if the cabling carries one: a mesh (backend jaccl) where every Mac has a cable to every
# other, else a ring (backend jaccl-ring), in which the ranks follow the cables.
#
#   --topology mesh|ring  This one or none. With two cables or more between two Macs a ring uses
#                         all of them, a mesh only the first.
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
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

RING_HOSTFILE=$ROOT/hostfiles/ring.local.json

OUTPUT=''
ARGUMENTS=()
RING_TCP=''
WRITES=1

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --output)
        [ -n "${2-}" ] || die 2 "--output needs a file"
        OUTPUT=$(absolute_path "$2")
        shift
        ;;
      --topology | --address)
        needs_value "$1" $# "${2-}"
        ARGUMENTS+=("$1" "$2")
        shift
        ;;
      --ring-tcp)
        RING_TCP=1
        ARGUMENTS+=("$1")
        ;;
      --dry-run | --dot)
        WRITES=''
        ARGUMENTS+=("$1")
        ;;
      --force) ARGUMENTS+=("$1") ;;
      -h | --help)
        usage
        exit 0
        ;;
      -*) die 2 "unknown option '$1'; see --help" ;;
      *) ARGUMENTS+=("$1") ;;
    esac
    shift
  done
}

main() {
  local status=0
  parse_arguments "$@"
  check_settings
  need ssh "it is part of every macOS and Debian"
  choose_python
  choose_any_python
  if [ -z "$OUTPUT" ]; then
    OUTPUT=$DEFAULT_HOSTFILE
    [ -z "$RING_TCP" ] || OUTPUT=$RING_HOSTFILE
  fi
  "$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.cabling.make_hostfile --output "$OUTPUT" \
    ${ARGUMENTS[@]+"${ARGUMENTS[@]}"} || status=$?
  if [ "$status" -eq 0 ] && [ -n "$WRITES" ]; then
    log "next: HOSTFILE=$OUTPUT scripts/verify_cluster.sh"
  fi
  exit "$status"
}

main "$@"
