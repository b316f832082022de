# What bench.sh launches.

setup() {
  load helper
  make_checkout
  stub_python
}

teardown() {
  end_processes
}

@test "--help prints the header; unknown arguments are usage errors" {
  run "$BENCH" --help
  [ "$status" -eq 0 ]
  says "Usage: bench.sh"
  for arguments in "--json" "--local" "--local 99" "--env x"; do
    # shellcheck disable=SC2086  # split on purpose
    run "$BENCH" $arguments
    [ "$status" -eq 2 ] || { echo "$arguments: $status"; return 1; }
  done
}

@test "local ranks: demo model, 128 tokens, no supervisor" {
  run "$BENCH" --local 2
  [ "$status" -eq 0 ]
  line=$(called "lib.launch.mlx_launch")
  case $line in
    *" --backend ring -n 2 "*" --env HF_HUB_OFFLINE=1 "*) ;;
    *) echo "$line"; return 1 ;;
  esac
  rank="-- $CHECKOUT/scripts/jaccl_tps_bench.py --model $CHECKOUT/models/Demo-1B"
  rank="$rank --prompt Write 5 sentences about Thunderbolt RDMA. --max-tokens 128"
  case $line in *"$rank") ;; *) echo "$line"; return 1 ;; esac
  run called lib.supervise
  [ "$status" -ne 0 ]
}

@test "arguments after -- go to the benchmark, behind ours, so that they win" {
  run "$BENCH" --local 2 --env A=1 -- --max-tokens 16 --json
  [ "$status" -eq 0 ]
  called "--max-tokens 128 --max-tokens 16 --json"
  called "--env A=1 --"
}

@test "a hostfile: its backend and 256 tokens" {
  hostfile studio.local.json
  stub_ssh
  MODEL_DIR=/models/Big-70B run "$BENCH"
  [ "$status" -eq 0 ]
  called "--backend jaccl --hostfile $CHECKOUT/hostfiles/studio.local.json --starting-port auto:32323"
  called "--model /models/Big-70B"
  called "--max-tokens 256"
}

@test "it does not take the devices of a running cluster server" {
  hostfile studio.local.json
  stub_ssh
  start_process some-run "$RUN_DIR/supervisor.pid"
  printf 'mac0\nmac1\n' >"$RUN_DIR/hosts"
  MODEL_DIR=/m/x run "$BENCH"
  [ "$status" -eq 1 ]
  says "a server runs on the cluster (pid $PROCESS)"
  printf '127.0.0.1\n127.0.0.1\n' >"$RUN_DIR/hosts"
  MODEL_DIR=/m/x run "$BENCH"
  [ "$status" -eq 0 ]
}

@test "--dry-run prints the commands and runs none" {
  unset PYTHON
  run "$BENCH" --local 2 --dry-run
  [ "$status" -eq 0 ]
  says "jaccl_tps_bench.py --model"
  [ ! -e "$CHECKOUT/.venv" ]
}
