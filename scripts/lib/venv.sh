# shellcheck shell=bash
# The checkout's own environment, .venv: made once, with a bar, of what requirements pin. Sourced after
# common.sh, never run.

# sha256 FILE: prints its digest.
sha256() {
  if command -v sha256sum >/dev/null 2>&1; then
    sha256sum <"$1" | awk '{ print $1 }'
  else
    shasum -a 256 <"$1" | awk '{ print $1 }' # macOS
  fi
}

# ensure_venv REQUIREMENTS...: $VENV exists and holds what these files pin.
#
# A stamp for each file, written when pip has finished, holds the file's digest; while it is
# right nothing is started but one python, and no network is touched. An interrupted install
# has no stamp, so the next start goes on where it stopped.
ensure_venv() {
  local file base stale='' arguments
  arguments=()
  for file in "$@"; do
    arguments+=(-r "$file")
    if [ "$(sha256 "$file")" != "$(cat "$(stamp_of "$file")" 2>/dev/null)" ]; then
      stale=1
    fi
  done
  if runs_code "$VENV/bin/python" && [ -z "$stale" ]; then
    ensure_openblas
    return 0
  fi
  if ! runs_code "$VENV/bin/python" || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    base=$(find_python) || no_python
    tell "making $VENV with $base"
    quiet_at_interrupt "$base" -m venv --clear "$VENV" ||
      die 3 "$base could not make a virtual environment (Debian: apt-get install python3-venv)"
  fi
  tell "installing ${*##*/}, once; this takes a few minutes (in full: ${SETUP_LOG#"$ROOT/"})"
  for file in "$@"; do
    [ -n "$DRY_RUN" ] || rm -f "$(stamp_of "$file")"
  done
  arguments=("$VENV/bin/python" -m pip install --disable-pip-version-check "${arguments[@]}")
  # To a Python that was built with an older SDK macOS 26 is "16.0", for which pip takes the wheel
  # of macOS 15, which has no JACCL.
  [ "$(uname -s)" != Darwin ] || arguments=(env SYSTEM_VERSION_COMPAT=0 "${arguments[@]}")
  if [ -n "$DRY_RUN" ]; then
    run "${arguments[@]}"
    return 0
  fi
  mkdir -p "${SETUP_LOG%/*}"
  : >"$SETUP_LOG"
  run_logged "$(cat "$@" | grep -c '^[A-Za-z0-9]')" "${arguments[@]}" || {
    tail -n 5 "$SETUP_LOG" | sed 's/^/  | /' >&2
    die 1 "the installation failed; start again to go on with it"
  }
  for file in "$@"; do
    sha256 "$file" >"$(stamp_of "$file")"
  done
  [ "$(uname -s)" != Darwin ] || has_jaccl "$VENV/bin/python" || warn_of_jaccl
  ensure_openblas
}

# ensure_openblas: where a Linux has no OpenBLAS, one is made in .venv. It is tried once; the ranks run without
# it, so a failure is a warning.
ensure_openblas() {
  local file=$ROOT/requirements-openblas.txt stamp
  [ "$(uname -s)" = Linux ] && [ -z "${LD_PRELOAD-}" ] && [ -f "$file" ] || return 0
  [ -z "$(find_openblas)" ] || return 0
  stamp=$(stamp_of "$file")
  [ "$(sha256 "$file")" != "$(cat "$stamp" 2>/dev/null)" ] || return 0
  case $OWN_OPENBLAS in
    *[\ :]*)
      warn "an OpenBLAS cannot be preloaded from $VENV, as that path has a blank or a colon"
      return 0
      ;;
  esac
  tell "making an OpenBLAS in ${VENV#"$ROOT/"}, once: this machine has none"
  if [ -n "$DRY_RUN" ]; then
    run "$VENV/bin/python" "$ROOT/scripts/lib/module.py" lib.openblas "$OWN_OPENBLAS"
    return 0
  fi
  mkdir -p "${SETUP_LOG%/*}"
  run_logged 2 "$VENV/bin/python" "$ROOT/scripts/lib/module.py" lib.openblas "$OWN_OPENBLAS" || {
    tail -n 3 "$SETUP_LOG" | sed 's/^/  | /' >&2
    warn "that failed, and is not tried again before $stamp is removed"
  }
  sha256 "$file" >"$stamp" # not where Ctrl-C has ended it
}

# has_jaccl PYTHON: its MLX was built with JACCL.
has_jaccl() {
  "$1" -c 'import mlx.core as mx, sys; sys.exit(not mx.distributed.is_available("jaccl"))' 2>/dev/null
}

warn_of_jaccl() {
  tell "warning: this MLX has no JACCL, so Macs cannot be joined by RDMA (ranks on this one can):"
  tell "  docs/operations.md, MLX without JACCL"
}

# quiet_at_interrupt COMMAND...: Ctrl-C ends it in one line, without what it would say itself.
quiet_at_interrupt() {
  local status=0 pid
  if [ -n "$DRY_RUN" ]; then
    run "$@"
    return 0
  fi
  "$@" >&2 </dev/null &
  pid=$!
  trap 'kill -TERM "$pid" 2>/dev/null || true; die 130 "interrupted; start again to go on"' INT TERM
  wait "$pid" || status=$?
  trap - INT TERM
  return "$status"
}

SETUP_LOG=$ROOT/logs/setup.log
LINES_A_PACKAGE=16 # that pip prints for one that is asked for, with what it needs itself

# run_logged PACKAGES COMMAND...: what it prints goes to the end of SETUP_LOG, and on a terminal a bar shows
# how far it has come. Ctrl-C ends it, in one line.
run_logged() {
  local most=$(($1 * LINES_A_PACKAGE + 1)) pid status=0 lines=0 before=0 since=$SECONDS
  shift
  [ ! -f "$SETUP_LOG" ] || before=$(wc -l <"$SETUP_LOG")
  # In the background it hears no Ctrl-C, and says nothing of it.
  PYTHONUNBUFFERED=1 "$@" >>"$SETUP_LOG" 2>&1 </dev/null &
  pid=$!
  trap 'end_bar; kill -TERM "$pid" 2>/dev/null || true; die 130 "interrupted; start again to go on"' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    lines=$(($(wc -l <"$SETUP_LOG") - before))
    draw_bar "$((lines < most ? lines : most - 1))" "$most" "$((SECONDS - since)) s"
    sleep 0.3
  done
  trap - INT TERM
  end_bar
  wait "$pid" || status=$?
  return "$status"
}

# draw_bar DONE MOST WORDS: over the last one, where there is a terminal.
draw_bar() {
  local full
  [ -t 2 ] || return 0
  full=$((30 * $1 / $2))
  printf '\r[%s%s] %s%% %s ' "$(repeat "$full" '#')" "$(repeat "$((30 - full))" '.')" \
    "$((100 * $1 / $2))" "$3" >&2
}

end_bar() {
  [ ! -t 2 ] || printf '\r\033[K' >&2
}

# repeat COUNT CHARACTER
repeat() {
  local text=''
  while [ "${#text}" -lt "$1" ]; do text="$text$2"; done
  printf '%s' "$text"
}

stamp_of() {
  printf '%s\n' "$VENV/.installed-${1##*/}.sha256"
}
