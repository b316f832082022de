#!/usr/bin/env bash
# Stop the server that run_openai_cluster_server.sh started, on every host.
#
# Usage: stop_openai_cluster_server.sh [--port P] [--hostfile FILE] [--dry-run] [--help]
#
# Asks it to drain: requests that run may finish, new ones are refused. What then is left of
# it is ended by its recorded pids, each checked to be ours, on every host of that run.
#
#   --port P          Which server (HTTP_PORT; else the one that runs; else the one that was
#                     started last).
#   --hostfile FILE   Where to look if nothing recorded the hosts (HOSTFILE).
#   --dry-run         Print what would be run, and run nothing.
#
# Unless the environment has a DRAIN_TIMEOUT or a RANK_END_TIMEOUT, what the server was started with holds.
#
# Exit codes: 0 nothing of it runs any more, 1 a host could not be reached or something could
# not be ended, 2 usage (or several servers run, and none was named), 3 a tool or a file is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

SLACK_S=15   # beyond the drain, for ranks to leave and hosts to be cleaned
AT_ONCE_S=10 # for the second SIGTERM, which cuts the drain short
RANK_GRACE_S=5 # without RANK_END_TIMEOUT

STOPPED='' # whether anything was running
FAILED=''

# Sets DRAIN_S, in whole seconds.
choose_drain() {
  look_up DRAIN_TIMEOUT
  if [ "$ORIGIN" != environment ] && [ -f "$RUN_DIR/drain_timeout" ]; then
    DRAIN_TIMEOUT=$(cat "$RUN_DIR/drain_timeout")
    matches "$DRAIN_TIMEOUT" '[0-9]{1,8}(\.[0-9]{1,9})?' ||
      die 1 "$RUN_DIR/drain_timeout: '$DRAIN_TIMEOUT' is no number of seconds; set DRAIN_TIMEOUT"
  fi
  use_default DRAIN_TIMEOUT
  DRAIN_S=$(awk -v s="$DRAIN_TIMEOUT" 'BEGIN { print int(s) + (s > int(s)) }')
}

# Sets END_S: whole seconds for ranks to leave, beyond what is usual over TCP.
choose_end() {
  if [ -z "${RANK_END_TIMEOUT-}" ] && [ -f "$RUN_DIR/rank_end_timeout" ]; then
    RANK_END_TIMEOUT=$(cat "$RUN_DIR/rank_end_timeout")
    [ -z "$RANK_END_TIMEOUT" ] || matches "$RANK_END_TIMEOUT" '[0-9]{1,8}(\.[0-9]{1,9})?' ||
      die 1 "$RUN_DIR/rank_end_timeout: '$RANK_END_TIMEOUT' is no number of seconds; set RANK_END_TIMEOUT"
  fi
  END_S=$(awk -v s="${RANK_END_TIMEOUT:-0}" 'BEGIN { print int(s) + (s > int(s)) }')
}

# wait_for_supervisor SECONDS: it has ended by then.
wait_for_supervisor() {
  local waited=0
  while is_run "$OURS_PID" "$OURS_RUN"; do
    [ "$waited" -lt "$(($1 * 5))" ] || return 1
    [ "$((waited % 25))" != 24 ] || log "waiting, $(((waited + 1) / 5)) s of at most $1 s"
    sleep 0.2
    waited=$((waited + 1))
  done
}

stop_supervisor() {
  ours "$RUN_DIR/supervisor.pid" || return 0
  STOPPED=1
  if [ -n "$DRY_RUN" ]; then
    run kill -TERM "$OURS_PID"
    return 0
  fi
  log "asking the server (pid $OURS_PID) to drain, up to $DRAIN_S s"
  end_gently "$OURS_PID"
  wait_for_supervisor "$((DRAIN_S + SLACK_S + END_S))" && return 0
  log "it still runs: asking it to leave at once"
  end_gently "$OURS_PID"
  wait_for_supervisor "$((AT_ONCE_S + END_S))" && return 0
  log "it still runs: SIGKILL to the supervisor, pid $OURS_PID"
  kill -KILL "$OURS_PID" 2>/dev/null || true
  wait_for_supervisor 5 || {
    log "pid $OURS_PID could not be ended"
    FAILED=1
  }
}

# The hosts of that run, each once. Sets HOSTS.
recall_hosts() {
  local status=0
  if [ -f "$RUN_DIR/hosts" ]; then
    HOSTS=$(cat "$RUN_DIR/hosts")
  else
    [ -n "${HOSTFILE-}" ] || ask_python lib.hosts.find_hostfile || status=$?
    if [ "$status" = 3 ]; then # none is there
      HOSTS=127.0.0.1
    else
      find_hostfile
      choose_python
      choose_any_python
      HOSTS=$(read_hostfile hosts) || exit "$?"
    fi
  fi
  HOSTS=$(printf '%s\n' "$HOSTS" | awk 'NF && !seen[$0]++')
}

# note_stopped RUN_ID: for status.sh. The supervisor's last word in the log says it otherwise, but one
# that was killed had none.
note_stopped() {
  [ -n "$1" ] || return 0
  printf '%s\n' "$1" >"$RUN_DIR/stopped" || true
}

# end_ranks SECONDS: on every host at the same time, since ranks leave together.
end_ranks() {
  local host command count=0 i status pids names
  pids=() names=()
  # The keys that the run script may have left for rank 0 go with the ranks.
  command="$(quote bash "$ROOT/scripts/lib/supervise/end_ranks.sh" "$RUN_DIR" "$1"); code=\$?"
  command="$command; rm -f $(quote "$RUN_DIR/api_key"); exit \$code"
  while IFS= read -r host; do
    if [ -n "$DRY_RUN" ]; then
      host_command "$host" "$command"
      show "${HOST_COMMAND[@]}"
      continue
    fi
    on_host "$host" "$command" >"$SCRATCH/$count" 2>&1 &
    pids+=("$!")
    names+=("$host")
    count=$((count + 1))
  done <<<"$HOSTS"
  for ((i = 0; i < count; i++)); do
    status=0
    wait "${pids[i]}" || status=$?
    sed "s/^/${names[i]}: /" "$SCRATCH/$i" >&2
    if [ "$status" = 0 ]; then
      [ ! -s "$SCRATCH/$i" ] || STOPPED=1
      continue
    fi
    FAILED=1
    case $status in
      255) log "${names[i]} could not be reached: ranks may still run there" ;;
      126 | 127) log "${names[i]} has no $ROOT: ranks may still run there" ;;
      *) log "${names[i]}: not everything could be ended" ;;
    esac
  done
}

main() {
  read_options "$@"
  check_settings
  choose_server
  RUN_DIR=$ROOT/run/$HTTP_PORT
  choose_drain
  choose_end
  recall_hosts
  need_processes
  need_ssh
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT

  local grace run_id=''
  grace=$((END_S > 0 ? END_S : RANK_GRACE_S))
  # Now: by the end another server may have been started.
  [ ! -f "$RUN_DIR/started_with" ] || run_id=$(sed -n 's/^RUN_ID=//p' "$RUN_DIR/started_with")
  stop_supervisor
  # Nobody asked these ranks to drain yet, if they run without a supervisor.
  [ -n "$STOPPED" ] || grace=$((DRAIN_S + grace))
  end_ranks "$grace"
  [ -z "$DRY_RUN" ] || exit 0
  [ -z "$FAILED" ] || exit 1
  # Of a supervisor that was killed. It may by now be that of a server that was just started.
  ours "$RUN_DIR/supervisor.pid" || rm -f "$RUN_DIR/supervisor.pid"
  if [ -n "$STOPPED" ]; then
    note_stopped "$run_id"
    log "the server on port $HTTP_PORT has stopped"
  else
    log "nothing is running on port $HTTP_PORT"
  fi
}

main "$@"
