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
# Of several models it shows those that are loaded or on their way, and why others are not: what has no
# reason has not been asked for, or left when nobody needed it.
#
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

main() {
  exec_verb lib.status.show_status "$@"
}

main "$@"
