# What bench_compare.sh takes, refuses and starts. The measuring itself is in test_bench_compare.py.

setup() {
  load helper
  make_checkout
  COMPARE=$CHECKOUT/scripts/dev/bench_compare.sh
  stub_python
  # compare.py is stdlib alone, so --list and the check of the rows are the real ones.
  # shellcheck disable=SC2016  # for the stub to expand
  stub fakepython <<'STUB'
case "$1 $2 $3" in
  "-c "*) exit 0 ;;
  *"/module.py lib.model.demo_model "*) mkdir -p "$3/Demo-1B" && echo "$3/Demo-1B" ;;
  *"/module.py lib.bench.compare --list" | *"/module.py lib.bench.compare --check")
    exec "$REAL_PYTHON" "$@"
    ;;
esac
STUB
}

@test "--help prints the header" {
  run "$COMPARE" --help
  [ "$status" -eq 0 ]
  says "Usage: bench_compare.sh"
  says "--only ROW"
}

@test "--list names every row and needs no model" {
  run "$COMPARE" --list
  [ "$status" -eq 0 ]
  says "tiny-2-mixed   tiny, 2 ranks"
  says "memory         tiny, 1 rank: rank 0 over many requests (only when named)"
  run called lib.model.demo_model
  [ "$status" -ne 0 ]
}

@test "wrong arguments are usage errors that name the value" {
  for arguments in "--rounds" "--rounds 0" "--rounds x" "--rounds 100" "--only" "--what" \
    "--results /no/such/folder/x" "--write /no/such/file" "--peer-flag" \
    "--before /no/such/folder" "--only even-tiny-1-8"; do
    # shellcheck disable=SC2086  # split on purpose
    run "$COMPARE" $arguments
    [ "$status" -eq 2 ] || { echo "$arguments: $status"; return 1; }
  done
  run "$COMPARE" --rounds 0
  says "--rounds '0': must be a whole number from 1 to 99"
}

@test "a row that does not exist is found before anything is made" {
  run "$COMPARE" --only idle --only tiny-9
  [ "$status" -eq 2 ]
  says "--only tiny-9: must be one of bare-demo, "
  run called lib.model.demo_model
  [ "$status" -ne 0 ]
}

@test "the checkout that ours is held to goes to compare.py, whole" {
  : >"$CHECKOUT/server/openai_cluster_server.py"
  run "$COMPARE" --only even-tiny-1-8 --before "$CHECKOUT/server/.." --dry-run
  [ "$status" -eq 0 ]
  says "--before $CHECKOUT"
}

@test "the demo model, the rows and the flags go to compare.py" {
  mkdir -p "$CHECKOUT/docs"
  : >"$CHECKOUT/docs/performance.md"
  run "$COMPARE" --rounds 3 --only idle --only burst --peer-flag=--prompt-concurrency=32 --write
  [ "$status" -eq 0 ]
  line=$(called "--demo $CHECKOUT/models/Demo-1B")
  case $line in
    *" --rounds 3 --peer-flag=--prompt-concurrency=32 --write $CHECKOUT/docs/performance.md"*) ;;
    *) echo "$line"; return 1 ;;
  esac
  case $line in *" --only idle --only burst") ;; *) echo "$line"; return 1 ;; esac
}

@test "--quick is one round; another model takes the demo model's place" {
  mkdir -p "$BATS_TEST_TMPDIR/other"
  MODEL_DIR=$BATS_TEST_TMPDIR/other run "$COMPARE" --quick
  [ "$status" -eq 0 ]
  line=$(called "--quick --rounds 1")
  case $line in *" --demo $BATS_TEST_TMPDIR/other "*) ;; *) echo "$line"; return 1 ;; esac
}

@test "--dry-run prints the command and measures nothing" {
  run "$COMPARE" --dry-run --quick
  [ "$status" -eq 0 ]
  says "scripts/lib/module.py lib.bench.compare --python"
  run called "--quick"
  [ "$status" -ne 0 ]
}
