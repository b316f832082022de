# What .ci/run installs, and that its verdict is that of the tests.

setup() {
  load helper
  make_checkout
  cp -R "$REPO/.ci" "$CHECKOUT/"
  printf '#!/bin/sh\necho "test.sh $*" >>"$CALLS"\nexit "${TESTS_CODE:-0}"\n' >"$TEST"
  # A machine that has these programs and no others.
  mkdir "$BATS_TEST_TMPDIR/machine"
  for tool in awk bash cat dirname env sh touch tr uname; do
    ln -s "$(command -v "$tool")" "$BATS_TEST_TMPDIR/machine/$tool"
  done
  MACHINE=$STUBS:$BATS_TEST_TMPDIR/machine
  stub id <<<"echo 0"
}

@test "without apt-get nothing is installed, and the tests run" {
  PATH=$MACHINE run "$CHECKOUT/.ci/run" -x
  [ "$status" -eq 0 ]
  says "no apt-get here"
  called "test.sh --all -x"
}

@test "what is missing is installed, after an update" {
  stub apt-get </dev/null
  PATH=$MACHINE run "$CHECKOUT/.ci/run"
  [ "$status" -eq 0 ]
  [ "$(grep -n 'apt-get update' "$CALLS" | cut -d: -f1)" -lt \
    "$(grep -n 'apt-get install' "$CALLS" | cut -d: -f1)" ]
  for package in shellcheck bats procps python3 python3-venv; do
    called "apt-get install" | grep -q " $package\b"
  done
  called "test.sh --all"
}

@test "a user who is not root installs through sudo" {
  stub apt-get </dev/null
  stub id <<<"echo 1000"
  stub sudo <<<'"$@"'
  PATH=$MACHINE run "$CHECKOUT/.ci/run"
  [ "$status" -eq 0 ]
  called "sudo apt-get update"
  called "sudo env DEBIAN_FRONTEND=noninteractive apt-get install"
}

@test "coding agents are installed where npm is, and again when others are pinned" {
  agents=$CHECKOUT/tests/agents
  mkdir -p "$agents/node_modules"
  echo >"$agents/package.json"
  stub npm <<<'echo "in $PWD" >>"$CALLS"; touch node_modules/.package-lock.json'
  touch -t 202601010000 "$agents/package.json"
  PATH=$MACHINE run "$CHECKOUT/.ci/run"
  called "npm install"
  called "in $agents"
  : >"$CALLS"
  PATH=$MACHINE run "$CHECKOUT/.ci/run"
  [ "$(grep -c "npm install" "$CALLS")" -eq 0 ]
  touch -t 203601010000 "$agents/package.json"
  PATH=$MACHINE run "$CHECKOUT/.ci/run"
  called "npm install"
}

@test "a failed install or a failed test fails the run" {
  TESTS_CODE=1 PATH=$MACHINE run "$CHECKOUT/.ci/run"
  [ "$status" -eq 1 ]
  stub apt-get <<<"exit 100"
  PATH=$MACHINE run "$CHECKOUT/.ci/run"
  [ "$status" -ne 0 ]
}
