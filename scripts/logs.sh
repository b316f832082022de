#!/usr/bin/env bash
# Show the log of a server: the lines of all its ranks, of their launcher and supervisor.
#
# Usage: logs.sh [-f] [--rank N] [--port P] [-n LINES] [--since-start] [--help]
#
# Run it where the server was started: all hosts' lines come together there. The log is rotated
# (LOG_MAX_MB of the run script); this reads all its parts as one, and follows from part to part.
#
#   -f, --follow     Go on with what comes, until Ctrl-C.
#   --rank N         Only what rank N says, and what the launcher says of it.
#   --port P         Which server (HTTP_PORT; else the one that runs; else the one that was
#                    started last).
#   -n, --lines N    The last N lines (100). `all`: all that is kept. 0 with -f: new ones alone.
#   --since-start    From the last start on, with all restarts since; the last N of them with -n.
#
# Worth searching for: `ready:`, `failed:` (why it ended), `starting again`, `over:` (gave up, or
# was stopped), `cause:` with a failed rank's last lines below.
#
# Exit codes: 0 done, 2 usage (or several servers run, and none was named), 3 no such server or
# log, or a tool is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

DEFAULT_LINES=100
MOST_LINES=1000000000

ARGUMENTS=()
LINES_WANTED='' SINCE_START='' PORT=''

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      -f | --follow) ARGUMENTS+=(--follow) ;;
      --since-start) SINCE_START=1 ;;
      --rank)
        needs_value "$1" $#
        matches "$2" '0|[1-9][0-9]{0,3}' || die 2 "--rank '$2': must be the number of a rank"
        ARGUMENTS+=(--rank "$2")
        shift
        ;;
      --port)
        needs_value "$1" $#
        PORT=$2
        shift
        ;;
      -n | --lines)
        needs_value "$1" $#
        LINES_WANTED=$2
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
  if [ -n "$SINCE_START" ]; then
    ARGUMENTS+=(--since-start)
  else
    LINES_WANTED=${LINES_WANTED:-$DEFAULT_LINES}
  fi
  if [ -n "$LINES_WANTED" ] && [ "$LINES_WANTED" != all ]; then
    if ! matches "$LINES_WANTED" '0|[1-9][0-9]{0,9}' || [ "$LINES_WANTED" -gt "$MOST_LINES" ]; then
      die 2 "-n '$LINES_WANTED': must be a number of lines, or: all"
    fi
    ARGUMENTS+=(--lines "$LINES_WANTED")
  fi
  choose_python
  choose_any_python
  # With exec, so that Ctrl-C has one process to end.
  exec "$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.logs.show_log "$ROOT" ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
}

main "$@"
