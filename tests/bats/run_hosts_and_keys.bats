# run_openai_cluster_server.sh with a hostfile, an environment of conda, and API keys.

setup() {
  load helper
  make_checkout
  stub_python
}

teardown() {
  end_processes
}

@test "without --local and without a hostfile: exit 3 and how to make one" {
  run "$RUN"
  [ "$status" -eq 3 ]
  says "cp hostfiles/m3-ultra-jaccl.template.json hostfiles/m3-ultra-jaccl.local.json"
}

@test "a hostfile decides hosts, backend, address and port" {
  hostfile studio.local.json
  stub_ssh
  MODEL_DIR=/models/Big-70B run "$RUN"
  [ "$status" -eq 0 ]
  says "anyone who can reach 0.0.0.0:18431"
  called "--backend jaccl --hostfile $CHECKOUT/hostfiles/studio.local.json --starting-port auto:32323"
  called "--health-url http://192.0.2.1:18431/health"
  called "--env MODEL_DIR=/models/Big-70B --env MODEL_ID=Big-70B --env HTTP_HOST=0.0.0.0"
  called "lib.model.check_model /models/Big-70B 2 --parallel auto"
  called "--host mac0 --host mac1 --started-with RUN_ID="
  run called "--keys-to"
  [ "$status" -ne 0 ]
}

@test "a name by which the supervisor asks rank 0 is one that the server answers to" {
  hostfile studio.local.json
  sed 's/192.0.2.1/mac0.lan/; s/"ips": \[\]/"ips": ["mac1.lan"]/' \
    "$CHECKOUT/hostfiles/studio.local.json" >"$CHECKOUT/hostfiles/named.local.json"
  rm "$CHECKOUT/hostfiles/studio.local.json"
  stub_ssh
  BACKEND=ring ALLOWED_HOSTS=llm.example MODEL_DIR=/models/Big-70B run "$RUN"
  [ "$status" -eq 0 ]
  called "--health-url http://mac0.lan:18431/health"
  called "--env ALLOWED_HOSTS=llm.example,mac0.lan"
}

@test "several hostfiles: the usual name wins, else HOSTFILE must tell" {
  hostfile one.local.json
  hostfile two.local.json
  MODEL_DIR=/m/x run "$RUN" --dry-run
  [ "$status" -eq 2 ]
  says "two.local.json"
  HOSTFILE=$CHECKOUT/hostfiles/two.local.json MODEL_DIR=/m/x run "$RUN" --dry-run
  [ "$status" -eq 0 ]
  hostfile m3-ultra-jaccl.local.json
  MODEL_DIR=/m/x run "$RUN" --dry-run
  [ "$status" -eq 0 ]
  says "--hostfile $CHECKOUT/hostfiles/m3-ultra-jaccl.local.json"
}

@test "a template that was not filled in is refused before anything is asked of a host" {
  stub_ssh
  HOSTFILE=$CHECKOUT/hostfiles/m3-ultra-jaccl.template.json MODEL_DIR=/m/x run "$RUN"
  [ "$status" -eq 1 ]
  says "<RANK0_LAN_IP>"
  run called "ssh "
  [ "$status" -ne 0 ]
}

@test "a hostfile needs MODEL_DIR, and an interpreter that is on every host" {
  hostfile studio.local.json
  run "$RUN" --dry-run
  [ "$status" -eq 2 ]
  says "MODEL_DIR is not set"
  unset PYTHON
  stub_ssh
  MODEL_DIR=/m/x run "$RUN"
  [ "$status" -eq 3 ]
  says "no $CHECKOUT/.venv/bin/python"
}

@test "ENV_NAME takes the interpreter out of a conda environment, as an absolute path" {
  unset PYTHON
  stub conda <<STUB
echo "some notice"
echo "$STUBS/fakepython"
STUB
  ENV_NAME=mlxjccl run "$RUN" --local 2
  [ "$status" -eq 0 ]
  called "conda run -n mlxjccl python -c"
  called "--python $STUBS/fakepython"
  mv "$STUBS/conda" "$BATS_TEST_TMPDIR/other-conda"
  CONDA_EXE=$BATS_TEST_TMPDIR/other-conda ENV_NAME=mlxjccl run "$RUN" --local 2
  [ "$status" -eq 0 ]
}

@test "without conda, or without that environment, ENV_NAME exits 3" {
  unset PYTHON
  CONDA_EXE=/none/conda ENV_NAME=mlxjccl run "$RUN" --local 2
  [ "$status" -eq 3 ]
  stub conda <<'STUB'
echo "EnvironmentLocationNotFound: Not a conda environment" >&2
exit 1
STUB
  ENV_NAME=nope run "$RUN" --local 2
  [ "$status" -eq 3 ]
  says "ENV_NAME='nope'"
}

@test "API keys never show: not in a command, not in what is printed" {
  API_KEY=sk-secret run "$RUN" --local 2 --detach
  [ "$status" -eq 0 ]
  says 'Authorization: Bearer ${API_KEY%%,*}'
  [ "${output#*sk-secret}" = "$output" ]
  run called sk-secret
  [ "$status" -ne 0 ]
  grep -qx API_KEY=sk-secret "$CALLS.environment"
  run "$RUN" --local 2 --env API_KEY=sk-secret
  [ "$status" -eq 2 ]
  API_KEY=' ,' run "$RUN" --local 2
  [ "$status" -eq 2 ]
  says "API_KEY holds no key"
}

@test "for a remote rank 0 the supervisor has the keys in its environment, to bring them" {
  hostfile studio.local.json
  stub_ssh
  API_KEY=sk-one,sk-two MODEL_DIR=/m/x run "$RUN" --detach
  [ "$status" -eq 0 ]
  says 'Authorization: Bearer ${API_KEY%%,*}'
  called "--started-with API_KEY_FILE=$RUN_DIR/api_key --keys-to mac0 -- "
  called "--env API_KEY_FILE=$RUN_DIR/api_key"
  grep -qx API_KEY=sk-one,sk-two "$CALLS.environment"
  run called sk-one
  [ "$status" -ne 0 ]
}

@test "a dry run with keys prints no key and writes none" {
  hostfile studio.local.json
  API_KEY=sk-one MODEL_DIR=/m/x run "$RUN" --dry-run
  [ "$status" -eq 0 ]
  says "API_KEY_FILE=$RUN_DIR/api_key"
  [ "${output#*sk-one}" = "$output" ]
  [ ! -e "$RUN_DIR" ]
}

@test "API_KEY_FILE must be readable for rank 0" {
  API_KEY_FILE=/none/keys run "$RUN" --local 2
  [ "$status" -eq 2 ]
  says "API_KEY_FILE='/none/keys'"
  printf '\nsk-file ops team\n' >"$BATS_TEST_TMPDIR/keys"
  cd "$BATS_TEST_TMPDIR"
  API_KEY_FILE=keys run "$RUN" --local 2 --detach
  [ "$status" -eq 0 ]
  called "--env API_KEY_FILE=$BATS_TEST_TMPDIR/keys"
  # What is shown works as pasted: it is the key without its label.
  key=$(echo "$output" | sed -n 's/.*models -H \(".*"\)$/\1/p')
  [ "$(eval "echo $key")" = "Authorization: Bearer sk-file" ]
}

@test "a port open to the network without a key is warned of, a closed one is not" {
  HTTP_HOST=0.0.0.0 run "$RUN" --local 2
  says "set API_KEY or API_KEY_FILE"
  HTTP_HOST=0.0.0.0 API_KEY=k run "$RUN" --local 2
  [ "${output#*warning: anyone}" = "$output" ]
  run "$RUN" --local 2
  [ "${output#*warning: anyone}" = "$output" ]
}
