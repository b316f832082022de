# shellcheck shell=bash
# What sync_nodes.sh and sync_model.sh share: which hosts are meant. Sourced after common.sh and
# cluster_env.sh, never run. TARGETS holds the hosts named on the command line.

# choose_targets: those named, else all of the hostfile. Sets HOSTS, one a line, and HOSTFILE (empty
# if there is none). Not choose_hosts: a matrix that is still wrong is no reason not to copy.
choose_targets() {
  local host
  if [ "${#TARGETS[@]}" -gt 0 ]; then
    HOSTS=
    for host in "${TARGETS[@]}"; do
      matches "$host" '[A-Za-z0-9_][A-Za-z0-9_.:@%-]*' || die 2 "'$host': not a name that ssh takes"
      HOSTS=$HOSTS$host$'\n'
    done
    HOSTS=${HOSTS%$'\n'}
    [ -n "${HOSTFILE-}" ] || HOSTFILE=$(list_hostfiles | head -n 1)
    [ -z "$HOSTFILE" ] || find_hostfile
    return 0
  fi
  find_hostfile
  HOSTS=$(read_hostfile hosts) || exit "$?"
}

# warn_of_servers: those that run here use what is about to be replaced.
warn_of_servers() {
  local pidfile
  for pidfile in "$ROOT"/run/*/supervisor.pid; do
    if ours "$pidfile"; then
      warn "a server runs (pid $OURS_PID): start it again to have it use what is copied"
    fi
  done
}
