# The functions of scripts/lib/common.sh and venv.sh that can go wrong by themselves.

setup() {
  load helper
  make_checkout
  REAL_PYTHON=$(real_python)
  # with CODE: runs it as a script that has sourced both.
  with() {
    bash -c "set -euo pipefail; . '$CHECKOUT/scripts/lib/common.sh'; . '$CHECKOUT/scripts/lib/venv.sh'; $1" program
  }
}

teardown() {
  end_processes
}

# A python that makes a venv and "installs" by copying itself; INSTALL_CODE is pip's exit code.
stub_base_python() {
  # shellcheck disable=SC2016  # for the stub to expand
  stub python3.11 <<'STUB'
case "$*" in
  *"-m venv"*)
    for last; do :; done
    mkdir -p "$last/bin" && cp "$0" "$last/bin/python"
    ;;
  *"pip install"*)
    echo "Downloading mlx${SYSTEM_VERSION_COMPAT:+ for macOS 26}"
    exit "${INSTALL_CODE:-0}"
    ;;
  *is_available*) exit "${NO_JACCL:-0}" ;;
esac
STUB
}

@test "with_deadline passes on the command's output and exit code" {
  run with 'with_deadline 5 sh -c "echo out; exit 7"'
  [ "$status" -eq 7 ]
  [ "$output" = out ]
}

@test "with_deadline ends a command that hangs, and its output can be captured" {
  run with 'x=$(with_deadline 1 sleep 30) || echo "code $?"'
  [ "$output" = "code 124" ]
}

@test "die shows the program and exits with its code; nothing on stdout" {
  run with 'die 3 "no such thing" 2>/dev/null'
  [ "$status" -eq 3 ]
  [ -z "$output" ]
}

@test "quoted commands survive a remote shell" {
  run with 'bash -c "$(quote printf "%s|" "a b" "it'"'"'s" "" "\$HOME;x")"'
  [ "$output" = "a b|it's||\$HOME;x|" ]
}

@test "matches takes the whole value, not a part or one line of it" {
  run with 'matches 80 "[0-9]+" && ! matches 80x "[0-9]+" && ! matches "$(printf "1\n2")" "[0-9]+"'
  [ "$status" -eq 0 ]
}

@test "a relative path becomes absolute where one stands" {
  cd "$BATS_TEST_TMPDIR"
  run with 'absolute_path ./a/b; absolute_path /c'
  [ "$output" = "$(printf '%s\n/c' "$BATS_TEST_TMPDIR/a/b")" ]
}

@test "the run id must match as a whole for a pid to be ours" {
  start_process run-1234 "$BATS_TEST_TMPDIR/a.pid"
  run with "ours '$BATS_TEST_TMPDIR/a.pid' && echo \$OURS_PID"
  [ "$output" = "$PROCESS" ]
  printf '%s\nrun-123\n' "$PROCESS" >"$BATS_TEST_TMPDIR/a.pid"
  run with "ours '$BATS_TEST_TMPDIR/a.pid'"
  [ "$status" -eq 1 ]
  run with "ours '$BATS_TEST_TMPDIR/none'"
  [ "$status" -eq 1 ]
}

@test "a python that is too old, or does not start, is passed over" {
  # Not copies of the real one, which would look for its library beside them.
  for version in 11 12 13 14; do
    stub "python3.$version" <<<"exit 127"
  done
  stub python3 <<<"exit 0"
  run with find_python
  [ "$output" = "$STUBS/python3" ]
  stub python3 <<<"exit 1"
  run with find_python
  [ "$status" -eq 1 ]
  run with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$status" -eq 3 ]
  says "no Python 3.11 or later"
}

@test "Apple's python3 is not started on a Mac without the developer tools: it opens a window" {
  stub python3 <<<"exit 0"
  for minor in 11 12 13 14; do stub "python3.$minor" <<<"exit 1"; done
  stub uname <<<"echo Darwin"
  stub xcode-select <<<"exit 2"
  run with 'APPLE_PYTHON=$(command -v python3); find_python'
  [ "$status" -eq 1 ]
  run called "python3 "
  [ "$status" -ne 0 ]
  # With the tools, or where it is another one, it is.
  run with 'find_python'
  [ "$output" = "$STUBS/python3" ]
  stub xcode-select <<<"echo /Library/Developer/CommandLineTools"
  run with 'APPLE_PYTHON=$(command -v python3); find_python'
  [ "$output" = "$STUBS/python3" ]
}

@test "the version test itself refuses 3.10 and takes this one" {
  run with "runs_code '$REAL_PYTHON'"
  [ "$status" -eq 0 ]
  run with 'runs_code /none/python || exit 1'
  [ "$status" -ne 0 ]
}

@test "ensure_venv installs once; the second start runs no pip" {
  stub_base_python
  run with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$status" -eq 0 ]
  [ "${#lines[@]}" -eq 2 ] # which Python, and what is installed
  says "installing requirements.txt, once; this takes a few minutes (in full: logs/setup.log)"
  grep -q "Downloading mlx" "$CHECKOUT/logs/setup.log"
  [ "$(grep -c 'pip install' "$CALLS")" -eq 1 ]
  run with 'ensure_venv "$ROOT/requirements.txt"'
  [ -z "$output" ]
  [ "$(grep -c 'pip install' "$CALLS")" -eq 1 ]
}

@test "on a Mac pip is told the true version of macOS, and an MLX without JACCL is warned of" {
  stub_base_python
  stub uname <<<'echo Darwin'
  run with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$status" -eq 0 ]
  grep -q "for macOS 26" "$CHECKOUT/logs/setup.log"
  [[ $output != *JACCL* ]]
  echo "another==1" >>"$CHECKOUT/requirements.txt"
  NO_JACCL=1 run with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$status" -eq 0 ]
  says "warning: this MLX has no JACCL"
}

@test "what pip prints is progress, not a result" {
  stub_base_python
  run with 'ensure_venv "$ROOT/requirements.txt" 2>/dev/null'
  [ -z "$output" ]
}

@test "changed requirements, or another file of them, are installed" {
  stub_base_python
  with 'ensure_venv "$ROOT/requirements.txt"'
  echo "another==1" >>"$CHECKOUT/requirements.txt"
  with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$(grep -c 'pip install' "$CALLS")" -eq 2 ]
  with 'ensure_venv "$ROOT/requirements.txt" "$ROOT/requirements-dev.txt"'
  [ "$(grep -c 'pip install' "$CALLS")" -eq 3 ]
  with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$(grep -c 'pip install' "$CALLS")" -eq 3 ]
}

@test "an install that was cut short is not taken for a finished one" {
  stub_base_python
  INSTALL_CODE=1 run with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$status" -eq 1 ]
  says "start again to go on"
  run with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$status" -eq 0 ]
  [ "$(grep -c 'pip install' "$CALLS")" -eq 2 ]
  # Also when it had been finished before.
  echo "another==1" >>"$CHECKOUT/requirements.txt"
  INSTALL_CODE=1 run with 'ensure_venv "$ROOT/requirements.txt"'
  git_like=$(grep -v another "$CHECKOUT/requirements.txt")
  printf '%s\n' "$git_like" >"$CHECKOUT/requirements.txt"
  run with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$(grep -c 'pip install' "$CALLS")" -eq 4 ]
}

@test "a .venv whose python is gone is made anew" {
  stub_base_python
  with 'ensure_venv "$ROOT/requirements.txt"'
  echo "exit 127" >"$CHECKOUT/.venv/bin/python"
  run with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$status" -eq 0 ]
  [ "$(grep -c -- '-m venv --clear' "$CALLS")" -eq 2 ]
}

@test "no venv module: exit 3 with what to install" {
  stub python3.11 <<'STUB'
case "$*" in *"-m venv"*) exit 1 ;; esac
STUB
  run with 'ensure_venv "$ROOT/requirements.txt"'
  [ "$status" -eq 3 ]
  says "apt-get install python3-venv"
}

@test "a CPU that OpenBLAS does not know gets the best kernels that its flags allow" {
  wide="avx512f avx512dq avx512cd avx512bw avx512vl"
  run with "better_core Prescott 'fpu fma avx2 $wide vnni'"
  [ "$output" = SkylakeX ]
  run with 'better_core Prescott "fpu fma avx2 avx512f avx512cd avx512er avx512pf"'
  [ "$output" = Haswell ]
  for arguments in "Zen 'fma avx2'" "Prescott 'fpu sse3'" "Prescott avx2" "Prescott ''" "'' 'fma avx2'"; do
    run with "better_core $arguments"
    [ "$status" -eq 0 ]
    [ -z "$output" ] || { echo "$arguments: $output"; return 1; }
  done
}

@test "the installed OpenBLAS tells which kernels it takes; another library tells nothing" {
  [ "$(uname -s)" = Linux ] || skip "Linux only"
  run with "openblas_core $(ls /lib/*/libm.so.6 | head -n 1)"
  [ "$status" -eq 0 ]
  [ -z "$output" ]
  library=$(bash -c '. "$1/scripts/lib/common.sh"; find_openblas' - "$REPO")
  [ -n "$library" ] || skip "OpenBLAS is not installed"
  run with "openblas_core $library"
  printf '%s\n' "$output" | grep -qxE '[A-Za-z0-9]+'
  OPENBLAS_CORETYPE=Prescott run with "openblas_core $library"
  [ "$output" = Prescott ] || skip "this OpenBLAS has kernels for one CPU alone"
}

@test "what the user has set of OpenBLAS stays" {
  [ "$(uname -s)" = Linux ] || skip "Linux only"
  library=$(ls /lib/*/libm.so.6 | head -n 1)
  LD_PRELOAD=$library OPENBLAS_CORETYPE=Zen OPENBLAS_NUM_THREADS=3 run with blas_environment
  [ "${lines[*]}" = "LD_PRELOAD=$library OPENBLAS_CORETYPE=Zen OPENBLAS_NUM_THREADS=3" ]
}

@test "on macOS nothing is set for OpenBLAS" {
  echo 'echo Darwin' | stub uname
  run with blas_environment
  [ "$status" -eq 0 ]
  [ -z "$output" ]
}
