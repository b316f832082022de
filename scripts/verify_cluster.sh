#!/usr/bin/env bash
# Check that every host of the hostfile can be reached and has its RDMA devices.
#
# Usage: verify_cluster.sh [--dry-run] [--help]
#
# Prints `pass` or `fail` for each host and check, with a hint below each `fail`:
#   hostfile  the file can be launched: no placeholder left, a whole rdma matrix
#   ssh       the host lets us in without asking, and its shell prints nothing by itself
#   rdma      RDMA is enabled
#   devices   the host has the devices of its row of the matrix
#
#   --dry-run   Print what would be run on the hosts, and run nothing there.
#
# Settings, from the environment (default):
#   HOSTFILE   (hostfiles/m3-ultra-jaccl.local.json, or the only *.local.json)
#   BACKEND    The backend that you will launch with (the hostfile's)
#
# Exit codes: 0 all passed, 1 a check failed, 2 usage, 3 a tool or the hostfile is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

ANSWER_WITHIN_S=10 # ibv_devices is known to hang on a bad link

# What to do, by check. One table, so that a reader finds all of it in one place.
hint() {
  case $1 in
    hostfile) echo "edit $HOSTFILE; docs/from-scratch.md explains each entry" ;;
    ssh)
      echo "ssh-copy-id $2; then: ssh -o BatchMode=yes $2 true" \
        "must succeed and print nothing (else look in ~/.zshenv there)"
      ;;
    rdma)
      echo "start $2 in Recovery, open Terminal, run: rdma_ctl enable; then reboot" \
        "(needs macOS 26.2 and Thunderbolt 5)"
      ;;
    devices)
      echo "on $2 compare with: /usr/bin/ibv_devices; none at all: reboot it and see that the" \
        "cables are Thunderbolt 5; others: correct the rdma matrix of the hostfile"
      ;;
  esac
}

FAILED=''
OUTPUT='' # stdout of the last command on a host
DETAIL='' # what a check found, for its line

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) DRY_RUN=1 ;;
      -h | --help)
        usage
        exit 0
        ;;
      *) die 2 "unknown argument '$1'; see --help" ;;
    esac
    shift
  done
}

# ask HOST COMMAND: runs it there, within the deadline. Sets OUTPUT; on failure also DETAIL.
ask() {
  local status=0
  OUTPUT='' DETAIL=''
  host_command "$1" "$2"
  if [ -n "$DRY_RUN" ]; then
    show "${HOST_COMMAND[@]}"
    return 0
  fi
  with_deadline "$ANSWER_WITHIN_S" "${HOST_COMMAND[@]}" \
    >"$SCRATCH/out" 2>"$SCRATCH/err" </dev/null || status=$?
  OUTPUT=$(cat "$SCRATCH/out")
  case $status in
    0) return 0 ;;
    124) DETAIL="no answer to '$2' within $ANSWER_WITHIN_S s" ;;
    127) DETAIL="it has no ${2%% *}" ;;
    *)
      DETAIL=$(tail -n 1 "$SCRATCH/err" | tr -d '\r')
      DETAIL="exit code $status${DETAIL:+: $DETAIL}"
      ;;
  esac
  return 1
}

# Checks of a host: check_NAME HOST DEVICES returns 0 or 1 and sets DETAIL. To add one, write
# its function, name it in HOST_CHECKS or RDMA_CHECKS, and give it a hint.

check_ssh() {
  ask "$1" true || return 1
  # What a profile prints would end up in the launcher's hands as the first lines of a rank.
  if [ -n "$OUTPUT" ]; then
    DETAIL="its shell prints by itself: ${OUTPUT%%$'\n'*}"
    return 1
  fi
}

check_rdma() {
  ask "$1" "/usr/bin/rdma_ctl status" || return 1
  [ -z "$DRY_RUN" ] || return 0
  DETAIL=${OUTPUT%%$'\n'*}
  [ "$DETAIL" = enabled ]
}

check_devices() {
  local device found missing=
  ask "$1" /usr/bin/ibv_devices || return 1
  [ -z "$DRY_RUN" ] || return 0
  # Two lines of heading, then a name and a GUID a line.
  found=$(printf '%s\n' "$OUTPUT" | awk 'NR > 2 && NF >= 2 { print $1 }' | tr '\n' ' ')
  for device in ${2//,/ }; do
    case " $found" in
      *" $device "*) ;;
      *) missing="$missing $device" ;;
    esac
  done
  DETAIL=${2//,/ }
  [ -n "$missing" ] || return 0
  DETAIL="no$missing; it has ${found:-none}"
  return 1
}

HOST_CHECKS="ssh"
RDMA_CHECKS="rdma devices"

# report VERDICT HOST CHECK: one line of the result.
report() {
  printf '%-4s  %-24s  %-8s  %s\n' "$1" "$2" "$3" "$DETAIL"
}

# check_host HOST DEVICES CHECK...: each in turn. A host that ssh can't reach is asked no more.
check_host() {
  local host=$1 devices=$2 check
  shift 2
  for check in "$@"; do
    if "check_$check" "$host" "$devices"; then
      [ -n "$DRY_RUN" ] || report pass "$host" "$check"
      continue
    fi
    FAILED=1
    report fail "$host" "$check"
    printf '      hint: %s\n' "$(hint "$check" "$host")"
    if [ "$check" = ssh ] && [ -z "$OUTPUT" ]; then
      return 0
    fi
  done
}

check_hostfile() {
  local problems
  DETAIL=${HOSTFILE##*/}
  if problems=$(read_hostfile check --backend "$BACKEND" 2>&1); then
    report pass - hostfile
    return 0
  fi
  FAILED=1
  while IFS= read -r DETAIL; do
    DETAIL=${DETAIL#"$HOSTFILE: "}
    report fail - hostfile
  done <<<"$problems"
  printf '      hint: %s\n' "$(hint hostfile -)"
}

main() {
  local rows host devices checks=$HOST_CHECKS
  parse_arguments "$@"
  check_settings
  find_hostfile
  need ssh "it is part of every macOS and Debian"
  choose_python
  choose_any_python
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT

  [ -n "${BACKEND-}" ] || BACKEND=$(read_hostfile backend) || exit "$?"
  check_hostfile
  # Where a name is no name yet, there is no host to ask.
  rows=$(read_hostfile rows 2>/dev/null) || exit 1
  case $BACKEND in
    jaccl*) checks="$checks $RDMA_CHECKS" ;;
    *) log "backend $BACKEND: RDMA is not used, so it is not checked" ;;
  esac
  while IFS=$'\t' read -r host devices; do
    # shellcheck disable=SC2086  # a list of names
    check_host "$host" "$devices" $checks
  done <<<"$rows"
  [ -z "$FAILED" ] || exit 1
}

main "$@"
