#!/usr/bin/env bash
# Show how the servers that were started from this checkout are: every host, every rank.
#
# Usage: status.sh [--port P] [--json] [--watch SECONDS] [--help]
#
# Run it where the server was started. It asks rank 0 over HTTP and every host over ssh, at the
# same time and with a deadline of 8 s: a host that is down or a rank 0 that does not answer is
# shown as such, beside all the others. It changes nothing.
#
#   --port P         One server (HTTP_PORT; else every one that runs or should).
#   --json           One JSON object on one line, for programs.
#   --watch SECONDS  Again and again, with so many seconds between, until Ctrl-C.
#
# The columns: rank, host, state, pid, and
#   up           since when this process runs
#   process      its resident memory, as ps counts it; on a Mac without what the GPU holds
#   model        what MLX holds in it: weights, KV cache, work
#   GPU limit    iogpu.wired_limit_mb of the host; (default): nothing was set. Macs only
#   host memory  used and all
#   beat         since when rank 0 has not heard of it
# A rank's state is ok, loading, silent (no heartbeat), stopped (SIGSTOP), gone, awaited (while
# all start), left over (from an earlier start), unknown (its host does not answer), or runs (when
# rank 0 does not tell more). Lines with ! say what is wrong.
#
# HTTP_PORT is as --port. API_KEY, or API_KEY_FILE (the file that the server was started with), has a
# key of the server; without one tokens/s and heartbeats are missing.
#
# Exit codes: 0 it serves and all is well; 1 something is not well, or it does not serve yet;
# 2 usage; 3 nothing runs (it was stopped, or never started), or a tool is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

ARGUMENTS=()
PORT=''

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --json) ARGUMENTS+=(--json) ;;
      --port)
        needs_value "$1" $#
        PORT=$2
        shift
        ;;
      --watch)
        needs_value "$1" $#
        if ! matches "$2" '[0-9]{1,5}(\.[0-9]{1,3})?' ||
          ! awk -v value="$2" 'BEGIN { exit !(value >= 0.5) }'; then
          die 2 "--watch '$2': must be seconds from 0.5 to 99999"
        fi
        ARGUMENTS+=(--watch "$2")
        shift
        ;;
      -h | --help)
        usage
        exit 0
        ;;
      *) die 2 "unknown argument '$1'; see --help" ;;
    esac
    shift
  done
}

main() {
  parse_arguments "$@"
  check_settings
  add_port
  if [ -n "${API_KEY_FILE-}" ] && [ ! -r "$API_KEY_FILE" ]; then
    look_up API_KEY_FILE
    [ "$ORIGIN" != environment ] ||
      bad_setting API_KEY_FILE "a file that can be read here, with one key a line"
    unset API_KEY_FILE # It is kept for rank 0, which may be elsewhere.
  fi
  choose_python
  choose_any_python
  exec "$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.status.show_status "$ROOT" \
    ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
}

main "$@"
