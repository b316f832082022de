#!/usr/bin/env bash
# Make what the tests need, then run them.
#
# Usage: test.sh [--help] [--all] [ARGUMENT...]
#
#   --all         Everything: without it, of sweeps (hostile requests, faults of real ranks, a random
#                 walk) and of tests with many cases a sample. CI asks for it.
#   ARGUMENT...   For pytest: -k NAME, -x, --durations=20, or files and folders instead of all of
#                 tests/.
#
# With nothing but options of two dashes it runs pytest twice, each time in several processes: first
# the tests without real ranks, then those with ("ranks").
#
# Makes .venv with requirements.txt and requirements-dev.txt. Some tests also use shellcheck,
# bats, sshd and coding agents (npm install in tests/agents) where they are installed, and are skipped,
# with the reason, where they aren't. With CI=true a missing one is a failure. On a Linux with a C
# compiler (cc) two groups of ranks run at once (tests/support/ring_waits.py).
#
# Exit codes: pytest's, but 3 if a tool or a file is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/venv.sh
. "$ROOT/scripts/lib/venv.sh"

run_pytest() {
  "$VENV/bin/python" -m pytest -c "$ROOT/tests/pytest.ini" "$@"
}

main() {
  local argument setting part code=0 paths=tests shared=true
  case ${1-} in
    -h | --help)
      usage
      exit 0
      ;;
  esac
  ensure_venv "$ROOT/requirements.txt" "$ROOT/requirements-dev.txt"
  while IFS= read -r setting; do
    export "${setting?}"
  done < <(blas_environment)
  # Else every process works out the assertions of all test files anew.
  unset PYTHONDONTWRITEBYTECODE
  for argument in "$@"; do
    [ ! -e "${argument%%::*}" ] || paths=
    case $argument in --*) ;; *) shared=false ;; esac
  done
  if "$shared"; then
    # How many processes: tests/conftest.py.
    for part in "not ranks" ranks; do
      run_pytest "$ROOT/tests" -m "$part" -n auto --dist loadfile --no-loadscope-reorder "$@" ||
        code=$?
      [ "$code" != 2 ] || exit 2 # Ctrl-C
    done
    exit "$code"
  fi
  # Paths are meant from where the user stands, so only the default one is made absolute.
  run_pytest ${paths:+"$ROOT/$paths"} "$@"
}

main "$@"
