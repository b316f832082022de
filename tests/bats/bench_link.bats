# What bench_link.sh and link_check.sh launch. tests/scripts/link/test_link_tools.py runs them with real ranks.

setup() {
  load helper
  make_checkout
  stub_python
  BENCH_LINK=$CHECKOUT/scripts/bench_link.sh
  LINK_CHECK=$CHECKOUT/scripts/lib/link/link_check.sh
}

teardown() {
  end_processes
}

@test "--help prints the header; unknown arguments are usage errors" {
  run "$BENCH_LINK" --help
  [ "$status" -eq 0 ]
  says "Usage: bench_link.sh"
  run "$LINK_CHECK" --help
  [ "$status" -eq 0 ]
  says "Usage: link_check.sh smoke|link"
  for arguments in "--all" "--hidden 0" "--dtype int4" "--local" "--local 99" "--local 1" "--env x"; do
    # shellcheck disable=SC2086  # split on purpose
    run "$BENCH_LINK" $arguments
    [ "$status" -eq 2 ] || { echo "$arguments: $status"; return 1; }
  done
}

@test "local ranks: float32 as in the demo model, then the user's arguments" {
  run "$BENCH_LINK" --local 2 --env A=1 -- --max-mb 8
  [ "$status" -eq 0 ]
  called "--env A=1 -- $CHECKOUT/scripts/bench_link.py --ranks 2 --dtype float32 --max-mb 8"
  run "$BENCH_LINK" --max-mb 4 --local 2 --json
  [ "$status" -eq 0 ]
  called "--ranks 2 --dtype float32 --max-mb 4 --json"
}

@test "a hostfile: its backend, and the hidden state of MODEL_DIR's model" {
  hostfile studio.local.json
  stub_ssh
  MODEL_DIR=/models/Big-70B run "$BENCH_LINK"
  [ "$status" -eq 0 ]
  called "--backend jaccl --hostfile $CHECKOUT/hostfiles/studio.local.json --starting-port auto:32323"
  called "/scripts/bench_link.py --ranks 2 --model /models/Big-70B"
  MODEL_DIR=/models/Big-70B run "$BENCH_LINK" --hidden 8
  [ "$status" -eq 0 ]
  called "/scripts/bench_link.py --ranks 2 --hidden 8"
}

@test "the check knows the hosts by rank, and has a deadline" {
  hostfile studio.local.json
  stub_ssh
  run "$LINK_CHECK" link
  [ "$status" -eq 0 ]
  called "/scripts/lib/module.py lib.link.link_ranks link --hosts mac0,mac1 --deadline 180"
  run "$LINK_CHECK" smoke --deadline 9 --json
  [ "$status" -eq 0 ]
  called "/scripts/lib/module.py lib.link.link_ranks smoke --hosts mac0,mac1 --deadline 9 --json"
}

@test "neither takes the devices of a running cluster server" {
  hostfile studio.local.json
  stub_ssh
  start_process some-run "$RUN_DIR/supervisor.pid"
  printf 'mac0\nmac1\n' >"$RUN_DIR/hosts"
  for command in "$BENCH_LINK" "$LINK_CHECK smoke"; do
    # shellcheck disable=SC2086  # split on purpose
    run $command
    [ "$status" -eq 1 ]
    says "a server runs on the cluster (pid $PROCESS)"
  done
}

@test "a failed link is exit 1, and a launcher that fails is told with its cause" {
  stub launcher_says <<'STUB'
cat "$CALLS.says"
cat "$CALLS.cause" >&2
exit "$LAUNCHER_CODE"
STUB
  sed "s|^  \*/module.py:\*.supervise)|  */module.py:*.mlx_launch) exec $STUBS/launcher_says ;;\n&|" \
    "$STUBS/fakepython" >"$STUBS/python2"
  chmod +x "$STUBS/python2"
  export PYTHON=$STUBS/python2
  printf 'pass  rank 0 - rank 1\nfail  rank 0 - rank 2\n' >"$CALLS.says"
  : >"$CALLS.cause"
  LAUNCHER_CODE=0 run "$LINK_CHECK" link --local 3
  [ "$status" -eq 1 ]
  says "fail  rank 0 - rank 2"
  : >"$CALLS.says"
  printf 'link_ranks: rank %s of 2: waiting\n' 0 1 >"$CALLS.cause"
  echo "mlx_launch: cause: rank 1 on mac1 exited with code 78: no RDMA" >>"$CALLS.cause"
  LAUNCHER_CODE=78 run "$LINK_CHECK" smoke --local 2
  [ "$status" -eq 1 ]
  says "fail  smoke over ring on 2 ranks: rank 1 on mac1 exited with code 78: no RDMA"
}

@test "--dry-run prints the commands and runs none" {
  run "$BENCH_LINK" --local 2 --dry-run
  [ "$status" -eq 0 ]
  says "bench_link.py --ranks 2"
  run "$LINK_CHECK" smoke --local 2 --dry-run
  [ "$status" -eq 0 ]
  says "lib.link.link_ranks smoke"
  run called lib.launch.mlx_launch
  [ "$status" -ne 0 ]
}
