# shellcheck shell=bash
# Small functions that every script shares. Sourced, never run; it does nothing by itself.
#
# Results go to stdout, all that is said to people to stderr. Exit codes: 0 done, 1 a host or a
# check failed, 2 usage, 3 a tool or a file is missing. bash 3.2 and 5.

unset CDPATH # with it set, cd prints where it went into $(cd ... && pwd)
# shellcheck disable=SC2034  # used by the scripts
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV=$ROOT/.venv
PROGRAM=${0##*/}
DRY_RUN=${DRY_RUN-} # --dry-run sets it to 1

log() {
  printf '%s: %s\n' "$PROGRAM" "$*" >&2
}

# tell MESSAGE...: of what is about to be done, so not with --dry-run.
tell() {
  [ -n "$DRY_RUN" ] || log "$@"
}

warn() {
  log "warning: $*"
}

# die CODE MESSAGE...
die() {
  local code=$1
  shift
  log "$*"
  exit "$code"
}

# The help of a script is its header comment, and the settings it reads where it reads any.
usage() {
  awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
  if type list_settings >/dev/null 2>&1; then
    list_settings
  fi
}

# needs_value OPTION COUNT [VALUE]: usage error unless one is behind the option, and is not empty
# where it is given here.
needs_value() {
  if [ "$2" -lt 2 ] || [ -z "${3-not looked at}" ]; then
    die 2 "$1 needs a value; see --help"
  fi
}

# need TOOL HINT: the tool is on PATH, else exit 3.
need() {
  command -v "$1" >/dev/null 2>&1 || die 3 "$1 is not installed: $2"
}

# need_ssh: where one of $HOSTS is another machine. Slim containers have no client.
need_ssh() {
  ! printf '%s\n' "$HOSTS" | grep -qvx 127.0.0.1 || need ssh "$HAS_SSH"
}

HAS_SSH="macOS has it (Debian: apt-get install openssh-client)"

# show COMMAND...: the command as it could be pasted, after a plus sign.
show() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}

# run COMMAND...: runs it, its output being progress; with --dry-run prints it instead.
run() {
  if [ -n "$DRY_RUN" ]; then
    show "$@"
  else
    "$@" >&2
  fi
}

# quote WORD...: the words as one line of shell, for a command that ssh hands to a remote shell.
quote() {
  local line
  line=$(printf ' %q' "$@")
  printf '%s' "${line# }"
}

# matches VALUE EXTENDED-REGEX: the whole value does.
matches() {
  local pattern="^($2)\$"
  [[ $1 =~ $pattern ]]
}

# absolute_path PATH: the same, from the root. It need not exist.
absolute_path() {
  case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/${1#./}" ;;
  esac
}

# with_deadline SECONDS COMMAND...: the command's exit code, or 124 when it had to be ended.
# macOS has no timeout(1). COMMAND is a program, not a function: its own process is ended.
with_deadline() {
  local tenths=$(($1 * 10)) pid status=0
  shift
  "$@" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$tenths" -le 0 ]; then
      kill -TERM "$pid" 2>/dev/null || true
      sleep 1
      kill -KILL "$pid" 2>/dev/null || true
      wait "$pid" 2>/dev/null || true
      return 124
    fi
    sleep 0.1
    tenths=$((tenths - 1))
  done
  wait "$pid" || status=$?
  return "$status"
}

# host_command HOST COMMAND: sets HOST_COMMAND to what runs this line of shell there. Only the
# literal 127.0.0.1 is this machine, as it is for mlx.launch. After check_settings.
host_command() {
  if [ "$1" = 127.0.0.1 ]; then
    HOST_COMMAND=(bash -c "$2")
  else
    # shellcheck disable=SC2206  # a list, of hosts/reach.py
    HOST_COMMAND=(ssh -n $SSH_OPTIONS "$1" "$2")
  fi
}

# on_host HOST COMMAND: runs it there. 255: the host could not be reached.
on_host() {
  host_command "$1" "$2"
  "${HOST_COMMAND[@]}" </dev/null
}

# ours PIDFILE: the process recorded there (line 1 pid, line 2 run id) lives and is the one that
# wrote it. Leaves both in OURS_PID and OURS_RUN.
ours() {
  OURS_PID='' OURS_RUN=''
  [ -f "$1" ] || return 1
  { IFS= read -r OURS_PID && IFS= read -r OURS_RUN; } <"$1" || [ -n "$OURS_RUN" ] || return 1
  matches "$OURS_PID" '[1-9][0-9]*' && matches "$OURS_RUN" '[A-Za-z0-9._-]+' || return 1
  is_run "$OURS_PID" "$OURS_RUN"
}

# is_run PID RUN_ID: a pid alone may by now be somebody else's, so its command line must tell.
is_run() {
  is_of_run "$(command_of "$1")" "$2"
}

# command_of PID: prints its command line; nothing if there is no such process. Slim containers have no
# ps, or one that does not take this; there Linux's /proc tells.
command_of() {
  ps -ww -p "$1" -o command= 2>/dev/null || tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" || true
}

# state_of PID: prints the letter, as ps shows it; on macOS there may be more behind it.
state_of() {
  local state
  state=$(ps -p "$1" -o state= 2>/dev/null) ||
    state=$(sed -n '$s/.*) \(.\).*/\1/p' "/proc/$1/stat" 2>/dev/null) || state=
  printf '%s' "${state// /}"
}

# need_processes: what runs here can be seen, else exit 3: a server could be started, but neither watched nor
# ended, and whether one runs could not be told.
need_processes() {
  [ -n "$(command_of "$$")" ] || die 3 "no process can be seen here: $SEES_NO_PROCESS"
}

SEES_NO_PROCESS="install ps (Debian: apt-get install procps), or mount /proc"

# is_of_run COMMAND RUN_ID: the command line is that of a process of this run.
is_of_run() {
  [ -n "$2" ] || return 1
  case " $1 " in
    *" --run-id $2 "*) return 0 ;;
  esac
  return 1
}

# is_stopped PID: by a signal, as Ctrl-Z sends it: it does nothing, and hears no SIGTERM, until it is
# continued.
is_stopped() {
  case "$(state_of "$1")" in
    T*) return 0 ;;
  esac
  return 1
}

# end_gently PID: SIGTERM, and SIGCONT, without which a stopped process would not hear it.
end_gently() {
  kill -TERM "$1" 2>/dev/null || true
  kill -CONT "$1" 2>/dev/null || true
}

APPLE_PYTHON=/usr/bin/python3

# opens_window PROGRAM: it is Apple's python3 on a Mac without Apple's developer tools, where it is but
# a window that offers to install them.
opens_window() {
  [ "$(command -v "$1" 2>/dev/null)" = "$APPLE_PYTHON" ] && [ "$(uname -s)" = Darwin ] &&
    ! xcode-select -p >/dev/null 2>&1
}

# runs_code PYTHON: it starts and is one that the pinned packages exist for.
runs_code() {
  ! opens_window "$1" || return 1
  # mlx for macOS is built for arm64 alone; a python under Rosetta finds no wheel.
  "$1" -c 'import platform, sys
ok = sys.version_info >= (3, 11) and (sys.platform, platform.machine()) != ("darwin", "x86_64")
sys.exit(not ok)' >/dev/null 2>&1
}

# By name, oldest first: the pinned packages are surely built for the oldest of them.
PYTHON_NAMES="python3.11 python3.12 python3.13 python3.14"

# find_python: prints a Python of at least 3.11, or fails.
find_python() {
  local name
  for name in $PYTHON_NAMES python3; do
    if runs_code "$name"; then
      command -v "$name"
      return 0
    fi
  done
  return 1
}

no_python() {
  die 3 "no Python 3.11 or later found: install one (macOS: brew install python@3.12," \
    "Debian: apt-get install python3 python3-venv), or name one with PYTHON=/path/to/python"
}

# exec_verb MODULE ARGUMENT...: a verb that is Python and needs no package: any Python will do.
exec_verb() {
  local python=$VENV/bin/python
  runs_code "$python" || python=$(find_python) || python=$(kept_python) || no_python
  # With exec, so that Ctrl-C has one process to end.
  exec "$python" "$ROOT/scripts/lib/module.py" "$@"
}

# kept_python: prints the one that settings name for the ranks, where no other is new enough.
kept_python() {
  # shellcheck source=scripts/lib/cluster_env.sh
  . "$ROOT/scripts/lib/cluster_env.sh"
  check_settings
  choose_python
  runs_code "$PY" && printf '%s\n' "$PY"
}

OWN_OPENBLAS=$VENV/openblas/libopenblas.so # of ensure_openblas

# find_openblas: prints the path of Debian's OpenBLAS, or of the one in .venv, or nothing. Linux only: the wheel
# for macOS uses Accelerate, the one for Linux a BLAS thirty times slower than these.
find_openblas() {
  local found
  [ "$(uname -s)" = Linux ] || return 0
  found=$(find_system_openblas) || true # without ldconfig, say
  [ -n "$found" ] || [ ! -f "$OWN_OPENBLAS" ] || found=$OWN_OPENBLAS
  printf '%s' "$found"
}

# find_system_openblas: prints the path of Debian's, or nothing.
find_system_openblas() {
  # A user's PATH on Debian lacks sbin. Reads to the end: closing the pipe early is an error.
  PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | awk -v machine="$(uname -m)" '
    BEGIN { wanted = machine == "x86_64" ? "x86-64" : "AArch64" }
    $1 == "libopenblas.so.0" && index($0, wanted) && !path { path = $NF }
    END { if (path) print path }'
}

# blas_environment: prints what makes MLX's matrix products fast on a Linux CPU, NAME=VALUE a line;
# what the user has set stays. Elsewhere nothing.
blas_environment() {
  local blas core
  [ "$(uname -s)" = Linux ] || return 0
  blas=${LD_PRELOAD:-$(find_openblas)}
  if [ -n "$blas" ]; then
    printf 'LD_PRELOAD=%s\n' "$blas"
    core=${OPENBLAS_CORETYPE:-$(better_core "$(openblas_core "$blas")" "$(cpu_flags)")}
    [ -z "$core" ] || printf 'OPENBLAS_CORETYPE=%s\n' "$core"
  else
    warn "there is no OpenBLAS, so the ranks will be slow" \
      "(Debian: apt-get install libopenblas0-pthread)"
  fi
  # Several ranks on few cores: more threads each would only get in each other's way.
  printf 'OPENBLAS_NUM_THREADS=%s\n' "${OPENBLAS_NUM_THREADS:-1}"
}

# openblas_core LIBRARY: prints the name of the kernels that an OpenBLAS takes on this CPU, or
# nothing if it doesn't tell.
openblas_core() {
  # env is a program, which loads the library; true alone would be a builtin.
  LD_PRELOAD=$1 OPENBLAS_VERBOSE=2 env true 2>&1 | sed -n '1s/^Core: //p'
}

cpu_flags() {
  sed -n '/^flags[^:]*:/{s///p;q;}' /proc/cpuinfo
}

# better_core CORE FLAGS: prints kernels that a CPU with these flags runs as well, if CORE is what
# OpenBLAS falls back to on a CPU that is newer than itself: SSE3 from 2004, a quarter as fast.
better_core() {
  local flag
  [ "$1" = Prescott ] || return 0
  for flag in avx512f avx512cd avx512bw avx512dq avx512vl; do
    case " $2 " in *" $flag "*) ;; *) flag='' && break ;; esac
  done
  if [ -n "$flag" ]; then
    echo SkylakeX
    return 0
  fi
  case " $2 " in *" avx2 "*) ;; *) return 0 ;; esac
  case " $2 " in *" fma "*) echo Haswell ;; esac
}
