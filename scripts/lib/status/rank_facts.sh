#!/usr/bin/env bash
# Tell what of one server runs on this host: its ranks by their records, and the memory.
#
# Usage: rank_facts.sh RUN_DIR      (status.sh sends it to every host: bash -s -- RUN_DIR)
#
# Prints lines `fact NAME VALUE...`, separated by tabs, the last one `fact end`. It judges nothing:
# whether a process is the recorded one, and how it is, is worked out where the answers meet. Needs
# nothing of the checkout and only tools that macOS and Linux have; changes nothing.
#
# Exit codes: 0 done, 2 usage.
set -euo pipefail

fact() {
  local IFS=$'\t'
  printf 'fact\t%s\n' "$*"
}

# look_at PID: its state, age, resident KiB and command line, in this order, as only the last may hold
# blanks. Slim containers have no ps, or one that does not take this; there Linux's /proc tells.
look_at() {
  ps -ww -p "$1" -o stat= -o etime= -o rss= -o command= 2>/dev/null && return 0
  {
    cat /proc/uptime
    sed -n '$s/.*) //p' "/proc/$1/stat"
    tr '\0\n' '  ' <"/proc/$1/cmdline"
  } 2>/dev/null | awk -v hz="$(getconf CLK_TCK)" -v page_kib="$(($(getconf PAGESIZE) / 1024))" '
    NR == 1 { up = $1 }
    NR == 2 { state = $1; age = int(up - $20 / hz); kib = $22 * page_kib }
    NR == 3 { printf "%s %d:%02d %d %s\n", state, age / 60, age % 60, kib, $0 }'
}

tell_ranks() { # RUN_DIR
  local file rank pid run_id process
  for file in "$1"/rank-*.pid; do
    [ -f "$file" ] || continue
    rank=${file##*/rank-}
    rank=${rank%.pid}
    pid='' run_id=''
    { IFS= read -r pid && IFS= read -r run_id; } <"$file" || [ -n "$run_id" ] || continue
    case $rank$pid in *[!0-9]*) continue ;; esac
    process=$(look_at "$pid") || process=''
    fact rank "$rank" "$pid" "$run_id" "$process"
  done
}

tell_memory() {
  local line
  if [ "$(uname -s)" = Darwin ]; then
    fact memsize "$(/usr/sbin/sysctl -n hw.memsize 2>/dev/null || true)"
    fact wired_limit_mb "$(/usr/sbin/sysctl -n iogpu.wired_limit_mb 2>/dev/null || true)"
    /usr/bin/vm_stat 2>/dev/null | while IFS= read -r line; do fact vm "$line"; done || true
  else
    while IFS= read -r line; do
      case $line in MemTotal:* | MemAvailable:*) fact meminfo "$line" ;; esac
    done </proc/meminfo || true
  fi
}

main() {
  case "${1-}" in
    '' | -*)
      printf 'rank_facts.sh: needs a RUN_DIR\n' >&2
      exit 2
      ;;
  esac
  fact system "$(uname -s)"
  tell_ranks "$1"
  tell_memory
  fact end
}

main "$@"
