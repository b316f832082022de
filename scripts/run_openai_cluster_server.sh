#!/usr/bin/env bash
# Start the OpenAI server: models, split over the ranks of a cluster or of this machine.
#
# Usage: run_openai_cluster_server.sh [--local N | --hostfile FILE] [--port P] [--detach]
#                                     [--no-restart] [--env NAME=VALUE]... [--dry-run] [--help]
#
#   --local N         N ranks on this machine (1 to 8). Makes .venv and gets the demo model
#                     if it must. Without it: the hosts of HOSTFILE.
#   --hostfile FILE   HOSTFILE: the hosts of the cluster.
#   --port P          HTTP_PORT: where rank 0 listens, and which server is meant.
#   --detach          Return when the server is ready (0) or has failed (1). Without it the
#                     server stays in the foreground and Ctrl-C ends it on every host.
#   --no-restart      Do not start again after a fault.
#   --env NAME=VALUE  One more variable for every rank. May be repeated. Others can read it
#                     in ps, so no secrets.
#   --dry-run         Print the settings and what would be run, and run nothing.
#
# MODEL_DIR is the model, or the first of several: MODELS and MODELS_DIR name more, which are loaded
# when requests name them. Without MODEL_DIR the first of those is.
#
# Settings come from the environment, or are kept in cluster.env in the checkout, which every script
# reads (template: hostfiles/cluster.env.template). --env may name them, too, and wins over both.
# --dry-run shows where each value comes from.
#
# Exit codes: 0 done, 1 a check or a host failed, 2 usage, 3 a tool or a file is missing; in the
# foreground also 78: it failed in a way that starting again cannot help.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

LOCAL='' DETACH='' RESTART=1

take_option() {
  case $1 in
    --detach) DETACH=1 ;;
    --no-restart) RESTART= ;;
  esac
}

# The server's own address and place. Sets HTTP_HOST, HTTP_PORT, LOG_DIR, LOG, RUN_DIR, RUN_ID
# and URL, at which this machine can reach it.
choose_place() {
  local address
  use_default HTTP_PORT
  if [ -n "$LOCAL" ]; then
    HTTP_HOST=${HTTP_HOST:-127.0.0.1}
  else
    HTTP_HOST=${HTTP_HOST:-0.0.0.0}
  fi
  use_default HTTP_HOST
  LOG_DIR=$(absolute_path "${LOG_DIR:-$ROOT/logs}")
  LOG=$LOG_DIR/server-$HTTP_PORT.log
  RUN_DIR=$ROOT/run/$HTTP_PORT
  RUN_ID=$(date +%Y%m%dT%H%M%S)-$$-$RANDOM
  case $HTTP_HOST in
    0.0.0.0 | ::) address=$RANK0_ADDRESS ;; # all of its addresses
    *) address=$HTTP_HOST ;;
  esac
  case $address in
    *:*) ;;
    # An ssh name, when the hostfile has no address: the supervisor asks for /health by it.
    *[!0-9.]*) ALLOWED_HOSTS=${ALLOWED_HOSTS:+$ALLOWED_HOSTS,}$address ;;
  esac
  case $address in
    *:*) URL="http://[$address]:$HTTP_PORT" ;;
    *) URL="http://$address:$HTTP_PORT" ;;
  esac
  case $HTTP_HOST in
    127.* | localhost | ::1)
      [ "$RANK0" = 127.0.0.1 ] ||
        warn "HTTP_HOST=$HTTP_HOST: the server can be reached on $RANK0 (rank 0) alone"
      ;;
    *)
      if [ -z "${API_KEY-}${API_KEY_FILE-}" ]; then
        warn "anyone who can reach $HTTP_HOST:$HTTP_PORT can use the model:" \
          "set API_KEY or API_KEY_FILE"
      fi
      ;;
  esac
}

check_not_running() {
  local address=$HTTP_HOST
  if ours "$RUN_DIR/supervisor.pid"; then
    ! is_stopped "$OURS_PID" || OURS_PID="$OURS_PID, stopped: kill -CONT $OURS_PID has it go on"
    die 1 "already running on port $HTTP_PORT (pid $OURS_PID);" \
      "stop it first: $(stop_command), or set another HTTP_PORT"
  fi
  case $address in
    0.0.0.0) address=127.0.0.1 ;;
    ::) address=::1 ;;
  esac
  tell_own_rank # first: on the port of a stopped process a connection may wait for minutes
  # A connection that is accepted: bash can make one, on every host.
  if on_host "$RANK0" "$(quote bash -c "exec 3<>/dev/tcp/$address/$HTTP_PORT")" 2>/dev/null; then
    die 1 "port $HTTP_PORT of $RANK0 is taken by something else; set another HTTP_PORT"
  fi
}

# The port may be held by a rank 0 of ours, which opens it before anything else: by one that is
# stopped, say, and does not notice that its launcher is gone. It is not ended without being asked:
# its supervisor may be on another host.
tell_own_rank() {
  local word name rank pid run process state=
  while IFS=$'\t' read -r word name rank pid run process; do
    [ "$word $name $rank" = "fact rank 0" ] || continue
    is_of_run "$process" "$run" || continue
    case ${process%% *} in *T*) state=", stopped" ;; esac
    die 1 "port $HTTP_PORT of $RANK0 is held by rank 0 (pid $pid$state) of run $run, which has no" \
      "supervisor here; end what is left of it: $(stop_command)"
  done < <(on_host "$RANK0" "$(quote bash "$ROOT/scripts/lib/status/rank_facts.sh" "$RUN_DIR")" 2>/dev/null)
}

# The keys must reach rank 0 without showing up in any command line. Local ranks inherit the
# environment; for a remote one the supervisor has ssh's stdin carry them into a file that only we
# can read, once it has the lock. Sets KEYS_TO to that host, if there is one, and KEY_SOURCE: a piece
# of shell that prints a key, for the commands that are shown.
hand_over_keys() {
  local file=$RUN_DIR/api_key command dollar='$'
  KEY_SOURCE='' KEYS_TO=''
  if [ -n "${API_KEY_FILE-}" ]; then
    API_KEY_FILE=$(absolute_path "$API_KEY_FILE")
    # The first line that is not empty, without the label that may follow its key.
    command="awk 'NF { print ${dollar}1; exit }' $(quote "$API_KEY_FILE")"
    [ "$RANK0" = 127.0.0.1 ] || command="ssh $RANK0 $(quote "$command")"
    KEY_SOURCE="$dollar($command)"
    if [ -n "${API_KEY-}" ] && [ "$RANK0" != 127.0.0.1 ]; then
      warn "API_KEY is not used: API_KEY_FILE is set, and rank 0 is on another host"
    fi
    [ -z "$DRY_RUN" ] || return 0
    on_host "$RANK0" "$(quote test -r "$API_KEY_FILE")" ||
      bad_setting API_KEY_FILE "a file that can be read on $RANK0 (rank 0)"
    return 0
  fi
  [ -n "${API_KEY-}" ] || return 0
  KEY_SOURCE="$dollar{API_KEY%%,*}"
  [ "$RANK0" != 127.0.0.1 ] || return 0
  [ -z "$DRY_RUN" ] || log "the keys of API_KEY would go to $RANK0 through ssh's stdin, into $file"
  API_KEY_FILE=$file
  KEYS_TO=$RANK0
  export API_KEY
}

# The command that shows what was asked for: the port only where it is not the default, and the
# hostfile only where no start is on record here that tells the hosts.
stop_command() {
  local prefix=
  look_up HTTP_PORT
  [ "$HTTP_PORT" = "$DEFAULT" ] || prefix="HTTP_PORT=$HTTP_PORT "
  [ -z "$HOSTFILE" ] || [ -f "$RUN_DIR/hosts" ] || prefix="${prefix}HOSTFILE=$(quote "$HOSTFILE") "
  printf '%sscripts/stop_openai_cluster_server.sh' "$prefix"
}

# Commands that work as pasted. A key is shown as the place it comes from.
tell_next() {
  local key=
  [ -z "$KEY_SOURCE" ] || key=" -H \"Authorization: Bearer $KEY_SOURCE\""
  cat <<TEXT

$MODEL_ID is served by $RANKS rank(s) at $URL$(tell_others). Try:

  curl -s $URL/v1/models$key

  curl -s $URL/v1/chat/completions$key \\
    -H 'Content-Type: application/json' \\
    -d '{"model": "$MODEL_ID", "max_tokens": 64, "temperature": 0, "messages": [{"role": "user",
         "content": "What is the capital of France? Answer in one sentence."}]}'

Page:  $URL/ in a browser shows the ranks, and lets you chat
Log:   $LOG
Stop:  $(stop_command)
TEXT
}

SHOWN_MODELS=5

# The others, for behind the first.
tell_others() {
  local count
  [ -n "$OTHER_MODELS" ] || return 0
  count=$(printf '%s\n' "$OTHER_MODELS" | grep -c .)
  printf ', and when a request names it: %s' "$(printf '%s\n' "$OTHER_MODELS" |
    awk -F '\t' -v most="$SHOWN_MODELS" 'NR <= most { printf "%s%s", (NR > 1 ? ", " : ""), $1 }')"
  [ "$count" -le "$SHOWN_MODELS" ] || printf ' and %s more' "$((count - SHOWN_MODELS))"
}

main() {
  read_options "$@"
  check_settings
  choose_python
  choose_hosts
  choose_place
  if [ -z "$DRY_RUN" ]; then
    need_processes
    check_not_running
  fi
  check_hosts
  prepare_python
  choose_model
  [ -z "$DRY_RUN" ] || show_settings
  [ -z "${DRAFT_MODEL_DIR-}" ] || {
    DRAFT_MODEL_DIR=$(absolute_path "$DRAFT_MODEL_DIR")
    DRAFTED_FOR=$MODEL_DIR
  }
  check_model
  check_other_models
  keep_list
  hand_over_keys

  tell_fast_synch
  export MODEL_DIR MODEL_ID HTTP_HOST HTTP_PORT LOG_DIR
  # shellcheck disable=SC2086  # a list of names
  launcher_command $RANK_SETTINGS
  local command host
  command=("$PY" "$ROOT/scripts/lib/module.py" lib.supervise.supervise --run-dir "$RUN_DIR" --run-id "$RUN_ID"
    --log "$LOG" --health-url "$URL/health")
  [ -z "$DETACH" ] || command+=(--detach)
  [ -n "$RESTART" ] || command+=(--no-restart)
  [ -z "${LOG_MAX_MB-}" ] || command+=(--log-max-mb "$LOG_MAX_MB")
  # The supervisor writes these under run/ when it has the lock: another start may be under way.
  while IFS= read -r host; do
    command+=(--host "$host")
  done <<<"$HOSTS"
  command+=(--started-with "RUN_ID=$RUN_ID" --started-with "MODEL_ID=$MODEL_ID"
    --started-with "URL=$URL" --started-with "LOG=$LOG"
    --started-with "API_KEY_FILE=${API_KEY_FILE-}")
  [ -z "$KEYS_TO" ] || command+=(--keys-to "$KEYS_TO")
  command+=(-- "${LAUNCHER[@]}" "$ROOT/server/openai_cluster_server.py"
    --run-dir "$RUN_DIR" --run-id "$RUN_ID")

  if [ -n "$DRY_RUN" ]; then
    show "${command[@]}"
    exit 0
  fi
  mkdir -p "$LOG_DIR"
  log "starting $MODEL_ID on $RANKS rank(s) over $BACKEND, port $HTTP_PORT$(tell_others)"
  if [ -z "$DETACH" ]; then
    exec "${command[@]}"
  fi
  "${command[@]}" || exit "$?"
  tell_next
}

main "$@"
