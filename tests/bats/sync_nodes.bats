# What sync_nodes.sh does with its arguments and settings; the copying itself has tests in python.

setup() {
  load helper
  make_checkout
  SYNC=$CHECKOUT/scripts/sync_nodes.sh
  stub_ssh
  stub rsync <<<'exit 12'
  PYTHON=$(real_python)
  export PYTHON
  hostfile studio.local.json
}

@test "--help prints the header" {
  run "$SYNC" --help
  [ "$status" -eq 0 ]
  says "Usage: sync_nodes.sh"
  says "Exit codes:"
}

@test "unknown options and host names that ssh would take for options are usage errors" {
  run "$SYNC" --all
  [ "$status" -eq 2 ]
  says "unknown argument '--all'"
  run "$SYNC" 'mac0;rm'
  [ "$status" -eq 2 ]
  says "'mac0;rm': not a name that ssh takes"
  run "$SYNC" ''
  [ "$status" -eq 2 ]
}

@test "a wrong SYNC_TIMEOUT is named with what is allowed" {
  SYNC_TIMEOUT=soon run "$SYNC"
  [ "$status" -eq 2 ]
  says "SYNC_TIMEOUT='soon': must be seconds from 1"
}

@test "no hostfile: exit 3 with a hint; named hosts need none" {
  rm "$CHECKOUT"/hostfiles/*.local.json
  run "$SYNC" --checkout-only
  [ "$status" -eq 3 ]
  says "no hostfile"
  run "$SYNC" --checkout-only --dry-run mac7
  [ "$status" -eq 0 ]
  says "mac7:./"
}

@test "without an environment it says how to make one" {
  unset PYTHON
  run "$SYNC"
  [ "$status" -eq 3 ]
  says "no $CHECKOUT/.venv/bin/python"
}

@test "--dry-run prints the copies and asks no host" {
  run "$SYNC" --checkout-only --dry-run
  [ "$status" -eq 0 ]
  says "mac0:./"
  says "mac1:./"
  run called "ssh "
  [ "$status" -ne 0 ]
}

@test "every host is tried, and those that failed are named last" {
  mkdir -p "$REMOTE/mac0"
  touch "$REMOTE/mac0/down"
  # mac1 is this machine in this test: the stub runs its commands here.
  run "$SYNC" --checkout-only
  [ "$status" -eq 1 ]
  echo "$output" | grep -Eq '^fail +mac0 +cannot be reached: .*Connection refused'
  echo "$output" | grep -Eq '^ok +mac1 +this machine, or shares its disk'
  says "sync_nodes.sh: failed on mac0"
}
