#!/usr/bin/env bash
# Show the log of a server: the lines of all its ranks, of their launcher and supervisor.
#
# Usage: logs.sh [-f | --follow] [--rank N] [--port P] [-n N | --lines N] [--since-start]
#                [--help]
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

main() {
  exec_verb lib.logs.show_log "$@"
}

main "$@"
