#!/usr/bin/env bash
# Measure our server beside mlx_lm.server, on this machine, and judge each figure by its target.
#
# Usage: bench_compare.sh [--rounds N] [--quick] [--only ROW]... [--results FILE]
#                         [--write [FILE]] [--peer-flag FLAG]... [--before DIR] [--list]
#                         [--dry-run] [--help]
#
#   --rounds N        Rounds of each measurement; the figures are medians (5, at most 99).
#   --quick           One round of the shortest measurements: shows that all works, no more.
#   --only ROW        Only this row. May be repeated. See --list.
#   --results FILE    Keep the measurements there, and make the table of all it holds.
#   --write [FILE]    Put the table into docs/performance.md (or FILE), between its two marks.
#   --peer-flag FLAG  One more argument for mlx_lm.server, as --peer-flag=--prompt-concurrency=32.
#   --before DIR      Another checkout of this project, for the rows that hold ours to it.
#   --list            Name the rows.
#   --dry-run         Print what would be run, and run nothing.
#
# Both servers run the same model on the same ranks under the same launcher, warm, and are measured
# in turn in each round; the one that is not measured is stopped as it stands. All of the usual rows
# take about 25 minutes; the row `memory`, which sends 10,000 requests, runs only when named. Use
# a machine that does nothing else. docs/performance.md defines every figure.
#
# The table goes to stdout, with one line of JSON last; progress goes to stderr.
#
# The interpreter is that of PYTHON or ENV_NAME, else .venv, which is made if it must. MODEL_DIR takes
# another model in place of the demo model; the other settings are for our side alone.
#
# Exit codes: 0 all targets met, 1 one was missed or could not be measured, 2 usage, 3 a tool or
# a file is missing.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

COMPARE=("$ROOT/scripts/lib/module.py" lib.bench.compare)
# choose_model reads it: the demo model is for ranks on this machine.
# shellcheck disable=SC2034
LOCAL=2
LIST=''
ARGUMENTS=()
ROWS=()
BEFORE=()

take_option() {
  case $1 in
    --rounds)
      matches "$2" '[1-9][0-9]?' || die 2 "--rounds '$2': must be a whole number from 1 to 99"
      ARGUMENTS+=("$1" "$2")
      ;;
    --quick) ARGUMENTS+=(--quick --rounds 1) ;;
    --only) ROWS+=("$1" "$2") ;;
    --results)
      [ -d "$(dirname "$2")" ] || die 2 "--results '$2': there is no such folder"
      ARGUMENTS+=("$1" "$2")
      ;;
    --write)
      local file=${2:-$ROOT/docs/performance.md}
      [ -f "$file" ] || die 2 "--write '$file': there is no such file"
      ARGUMENTS+=("$1" "$file")
      ;;
    --before)
      [ -f "$2/server/openai_cluster_server.py" ] ||
        die 2 "--before '$2': must be the folder of a checkout of this project"
      BEFORE=("$1" "$(cd "$2" && pwd)")
      ;;
    --peer-flag) ARGUMENTS+=("--peer-flag=$2") ;;
    --list) LIST=1 ;;
  esac
}

main() {
  read_options "$@"
  check_settings
  choose_python
  choose_any_python
  if [ -n "$LIST" ]; then
    exec "$ANY_PYTHON" "${COMPARE[@]}" --list
  fi
  # Before anything is made: a row that does not exist is found now.
  ROWS+=(${BEFORE[@]+"${BEFORE[@]}"})
  "$ANY_PYTHON" "${COMPARE[@]}" --check ${ROWS[@]+"${ROWS[@]}"} || exit "$?"
  prepare_python
  choose_model
  local command setting
  command=("$PY" "${COMPARE[@]}" --python "$PY" --demo "$MODEL_DIR")
  while IFS= read -r setting; do
    command+=(--env "$setting")
  done < <(blas_environment)
  command+=(${ARGUMENTS[@]+"${ARGUMENTS[@]}"} ${ROWS[@]+"${ROWS[@]}"})
  if [ -n "$DRY_RUN" ]; then
    show "${command[@]}"
    exit 0
  fi
  exec "${command[@]}"
}

main "$@"
