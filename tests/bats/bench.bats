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
  for arguments in "--all" "--local" "--local 99" "--env x" "--env API_KEY=k" "--max-tokens" \
    "--max-tokens 0" "--json=1" "16"; do
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
  rank="$rank --max-tokens 128"
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

@test "they need no --, and may stand anywhere among our own" {
  expected="--max-tokens 128 --max-tokens 16 --json --prompt a b"
  for arguments in "--local 2 --max-tokens 16 --json" "--max-tokens 16 --json --local 2" \
    "--max-tokens 16 --local=2 --json" "--max-tokens 16 --env A=1 --json --local 2"; do
    : >"$CALLS"
    # shellcheck disable=SC2086  # split on purpose
    run "$BENCH" $arguments --prompt "a b"
    [ "$status" -eq 0 ] || { echo "$arguments: $output"; return 1; }
    called "$expected"
    called " -n 2 "
  done
  run "$BENCH" --local 2 --prompt="--local 8"
  called " -n 2 "
  called "--prompt=--local 8"
}

@test "a wrong one is refused before anything is made or started" {
  run "$BENCH" --local 2 --max-token 16
  [ "$status" -eq 2 ]
  says "bench.sh: unknown argument '--max-token': the nearest known one is --max-tokens; see --help"
  run "$BENCH" --local 2 --max-tokens many
  says "bench.sh: --max-tokens 'many': must be a whole number from 1 to 1000000000; see --help"
  run "$BENCH" --local 2 --max-tokens
  says "bench.sh: --max-tokens needs a value; see --help"
  [ "$status" -eq 2 ]
  [ ! -s "$CALLS" ]
}

@test "a hostfile, named or found: its backend and the benchmark's own number of tokens" {
  hostfile studio.local.json
  stub_ssh
  MODEL_DIR=/models/Big-70B run "$BENCH"
  [ "$status" -eq 0 ]
  called "--backend jaccl --hostfile $CHECKOUT/hostfiles/studio.local.json --starting-port auto:32323"
  called "--model /models/Big-70B"
  if called "--max-tokens"; then return 1; fi
  hostfile other.local.json
  run "$BENCH" --hostfile "$CHECKOUT/hostfiles/other.local.json" --model /models/Big-70B --parallel pipeline
  [ "$status" -eq 0 ]
  called "--hostfile $CHECKOUT/hostfiles/other.local.json"
  called "--env PARALLEL=pipeline"
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
