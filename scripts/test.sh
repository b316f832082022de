#!/usr/bin/env bash
# Make what the tests need, then run them.
#
# Usage: test.sh [--help] [ARGUMENT...]
#
#   ARGUMENT...   For pytest: -k NAME, -x, or files and folders instead of all of tests/.
#
# Without arguments it runs pytest twice: a process on each core for the tests that need none to
# themselves, then the others ("ranks"), one after another.
#
# Makes .venv with requirements.txt and requirements-dev.txt. Some tests also use shellcheck,
# bats and sshd where they are installed, and are skipped, with the reason, where they aren't.
# With CI=true a missing one is a failure.
#
# Exit codes: pytest's, but 3 if a tool or a file is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

run_pytest() {
  "$VENV/bin/python" -m pytest -c "$ROOT/tests/pytest.ini" "$@"
}

main() {
  local argument setting code=0 paths=tests
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
  if [ $# = 0 ]; then
    run_pytest "$ROOT/tests" -m "not ranks" -n auto --dist loadfile || code=$?
    [ "$code" != 2 ] || exit 2 # Ctrl-C
    run_pytest "$ROOT/tests" -m ranks || code=$?
    exit "$code"
  fi
  for argument in "$@"; do
    [ ! -e "${argument%%::*}" ] || paths=
  done
  # Paths are meant from where the user stands, so only the default one is made absolute.
  run_pytest ${paths:+"$ROOT/$paths"} "$@"
}

main "$@"
