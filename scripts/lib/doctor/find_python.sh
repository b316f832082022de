# shellcheck shell=sh
# Finds a Python on a host, for probe.py; without one, answers with the tools' own output.
#
# ask.py sends it to /bin/sh on every host and puts after it what it calls: WANTED (our
# interpreter), BEGIN and END (marks around the answer), WITHIN_S, and the functions `probe`,
# which runs probe.py with $python, and `commands`, which calls `ask` for each tool. POSIX sh.

runs() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 9))' </dev/null >/dev/null 2>&1
}

# Sets python.
find_python() {
  for python in "$WANTED" /opt/homebrew/bin/python3 /usr/local/bin/python3 /usr/bin/python3; do
    [ -x "$python" ] || continue
    # On a Mac without the developer tools this one opens a window that offers to install them.
    if [ "$python" = /usr/bin/python3 ] && [ -x /usr/bin/xcode-select ]; then
      /usr/bin/xcode-select -p >/dev/null 2>&1 || continue
    fi
    if runs "$python"; then
      return 0
    fi
  done
  return 1
}

# ask NAME COMMAND...: in the background, its output into files.
ask() {
  name=$1
  shift
  names="$names $name"
  {
    if [ -x "$1" ]; then
      "$@" >"$scratch/$name.out" 2>"$scratch/$name.err"
      echo "$?" >"$scratch/$name.code"
    else
      echo missing >"$scratch/$name.code"
    fi
  } </dev/null >/dev/null 2>&1 &
  pids="$pids $!"
}

all_done() {
  for name in $names; do
    [ -s "$scratch/$name.code" ] || return 1
  done
}

# answer_without_python HOST: for each tool a line `@ NAME CODE`, then its lines after a bar, and
# those of stderr after an exclamation mark.
answer_without_python() {
  LC_ALL=C
  export LC_ALL
  scratch=$(mktemp -d) || exit 1
  names='' pids='' waited=0
  commands "$1" "$(uname -s)"
  until all_done || [ "$waited" -ge "$WITHIN_S" ]; do
    sleep 1
    waited=$((waited + 1))
  done
  printf '\n%s\nraw %s\n' "$BEGIN" "$(uname -s)"
  for name in $names; do
    if [ -s "$scratch/$name.code" ]; then
      printf '@ %s %s\n' "$name" "$(cat "$scratch/$name.code")"
      if [ -f "$scratch/$name.out" ]; then
        sed 's/^/| /' "$scratch/$name.out"
        echo
        sed 's/^/! /' "$scratch/$name.err"
        echo
      fi
    else
      printf '@ %s late\n' "$name"
    fi
  done
  printf '%s\n' "$END"
  for pid in $pids; do
    kill -KILL "$pid" 2>/dev/null
  done
  rm -rf "$scratch"
  exit 0
}
