# What test.sh prepares and hands to pytest.

setup() {
  load helper
  make_checkout
  # A finished .venv whose python is a stub.
  mkdir -p "$CHECKOUT/.venv/bin"
  stub venvpython <<'STUB'
[ "${2-}" != pytest ] || { echo "preload ${LD_PRELOAD-}" >>"$CALLS"; exit "${PYTEST_CODE:-0}"; }
STUB
  cp "$STUBS/venvpython" "$CHECKOUT/.venv/bin/python"
  unset DRY_RUN
}

@test "--help prints the header" {
  run "$TEST" --help
  [ "$status" -eq 0 ]
  says "Usage: test.sh"
}

@test "all tests without arguments; both requirement files are installed once" {
  run "$TEST"
  [ "$status" -eq 0 ]
  called "-m pip install --disable-pip-version-check -r $CHECKOUT/requirements.txt -r $CHECKOUT/requirements-dev.txt"
  called "-m pytest -c $CHECKOUT/tests/pytest.ini $CHECKOUT/tests -m not ranks -n auto --dist loadfile --no-loadscope-reorder"
  called "-m pytest -c $CHECKOUT/tests/pytest.ini $CHECKOUT/tests -m ranks -n auto --dist loadfile --no-loadscope-reorder"
  : >"$CALLS"
  run "$TEST"
  run called "pip"
  [ "$status" -ne 0 ]
}

@test "--all is for both runs" {
  run "$TEST" --all
  called "-m pytest -c $CHECKOUT/tests/pytest.ini $CHECKOUT/tests -m ranks -n auto --dist loadfile --no-loadscope-reorder --all"
}

@test "arguments go to pytest; a path replaces the whole folder" {
  run "$TEST" -k queue -x
  called "-m pytest -c $CHECKOUT/tests/pytest.ini $CHECKOUT/tests -k queue -x"
  cd "$CHECKOUT"
  touch tests/test_x.py
  run "$TEST" tests/test_x.py::test_one
  called "-m pytest -c $CHECKOUT/tests/pytest.ini tests/test_x.py::test_one"
}

@test "pytest's verdict is the script's" {
  PYTEST_CODE=1 run "$TEST"
  [ "$status" -eq 1 ]
  called "-m pytest -c $CHECKOUT/tests/pytest.ini $CHECKOUT/tests -m ranks -n auto --dist loadfile --no-loadscope-reorder"
  PYTEST_CODE=1 run "$TEST" -k queue
  [ "$status" -eq 1 ]
}

@test "Ctrl-C ends all of it" {
  PYTEST_CODE=2 run "$TEST"
  [ "$status" -eq 2 ]
  run called "-m ranks"
  [ "$status" -ne 0 ]
}

@test "on Linux the tests get OpenBLAS if ldconfig knows it" {
  [ "$(uname -s)" = Linux ] || skip "Linux only"
  machine=$([ "$(uname -m)" = x86_64 ] && echo x86-64 || echo AArch64)
  # A real library, or every program from here on would complain.
  library=$(ls /lib/*/libm.so.6 | head -n 1)
  stub ldconfig <<STUB
echo "	libopenblas.so.0 (libc6,$machine) => $library"
STUB
  run "$TEST"
  called "preload $library"
}
