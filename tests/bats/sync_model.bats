# What sync_model.sh does with its arguments and settings; the copying itself has tests in python.

setup() {
  load helper
  make_checkout
  SYNC=$CHECKOUT/scripts/sync_model.sh
  stub_ssh
  stub rsync <<<'exit 12'
  PYTHON=$(real_python)
  export PYTHON HF_HUB_OFFLINE=1
  hostfile studio.local.json
  MODEL=$BATS_TEST_TMPDIR/models/Tiny
  mkdir -p "$MODEL"
  echo '{}' | tee "$MODEL/config.json" >"$MODEL/tokenizer.json"
  # An empty safetensors file: the length of its header, and the header.
  printf '\002\000\000\000\000\000\000\000{}' >"$MODEL/model.safetensors"
}

@test "--help prints the header" {
  run "$SYNC" --help
  [ "$status" -eq 0 ]
  says "Usage: sync_model.sh"
  says "Exit codes:"
}

@test "no model, an unknown option, an option without its value: usage errors" {
  run "$SYNC"
  [ "$status" -eq 2 ]
  says "MODEL is missing"
  run "$SYNC" ''
  [ "$status" -eq 2 ]
  run "$SYNC" --force "$MODEL"
  [ "$status" -eq 2 ]
  says "unknown argument '--force'"
  run "$SYNC" "$MODEL" --revision
  [ "$status" -eq 2 ]
  says "--revision needs a value"
}

@test "a model that is neither a folder nor a repo is named with what is allowed" {
  for model in nowhere ../x/y a/b/c 'org/na me' /none/there -; do
    run "$SYNC" --dry-run "$model"
    [ "$status" -eq 2 ]
  done
  run "$SYNC" --dry-run a/b/c
  says "MODEL is 'a/b/c': neither a folder that is there nor a Hugging Face repo (ORG/NAME)"
}

@test "--revision and --to are for repos" {
  run "$SYNC" --revision main "$MODEL"
  [ "$status" -eq 2 ]
  says "is a folder: --revision and --to are for repos"
}

@test "a folder that is no whole model is refused before any host is asked" {
  rm "$MODEL/tokenizer.json"
  run "$SYNC" "$MODEL"
  [ "$status" -eq 1 ]
  says "not a whole model"
  says "has no tokenizer"
  run called "ssh "
  [ "$status" -ne 0 ]
}

@test "--dry-run prints the copies and asks no host" {
  run "$SYNC" --dry-run "$MODEL"
  [ "$status" -eq 0 ]
  says "mac0:./"
  says "mac1:./"
  says "$MODEL.partial"
  run "$SYNC" --dry-run mlx-community/Foo-4bit mac3
  [ "$status" -eq 0 ]
  says "+ download mlx-community/Foo-4bit to $CHECKOUT/models/Foo-4bit"
  run called "ssh "
  [ "$status" -ne 0 ]
}

@test "every host is tried, and those that failed are named last" {
  mkdir -p "$REMOTE/mac0"
  touch "$REMOTE/mac0/down"
  # mac1 is this machine in this test: the stub runs its commands here.
  run "$SYNC" "$MODEL"
  [ "$status" -eq 1 ]
  echo "$output" | grep -Eq '^fail +mac0 +cannot be reached: .*Connection refused'
  echo "$output" | grep -Eq '^ok +mac1 +this machine, or shares its disk'
  says "sync_model.sh: failed on mac0"
}

@test "a wrong SYNC_TIMEOUT is named with what is allowed" {
  SYNC_TIMEOUT=0 run "$SYNC" "$MODEL"
  [ "$status" -eq 2 ]
  says "SYNC_TIMEOUT='0': must be seconds from 1"
}

@test "without a hostfile and a host the model is for this machine alone" {
  rm "$CHECKOUT"/hostfiles/*.local.json
  run "$SYNC" "$MODEL"
  [ "$status" -eq 0 ]
  says "no hostfile and no HOST: it is for this machine alone"
  says "ok 127.0.0.1 $MODEL"
  run "$SYNC" --hostfile /nowhere.json "$MODEL"
  [ "$status" -eq 3 ]
  says "no such file"
}

@test "--all takes the models of the settings, and a folder of models those below it" {
  run "$SYNC" --all
  [ "$status" -eq 2 ]
  says "none of MODEL_DIR, MODELS and MODELS_DIR is set"
  MODELS_DIR=/none run "$SYNC" --all
  [ "$status" -eq 2 ]
  says "MODELS_DIR='/none': must lead to a folder"
  other="$BATS_TEST_TMPDIR/other disk, two/Big"
  mkdir -p "${other%/*}"
  cp -R "$MODEL" "$other"
  MODEL_DIR=$MODEL MODELS="big=$other" run "$SYNC" --all --dry-run mac7
  [ "$status" -eq 0 ]
  says "+ cd $MODEL"
  says "+ cd '$other'"
  says "mac7:./"
  run "$SYNC" --revision main --all
  [ "$status" -eq 2 ]
  cp -R "$MODEL" "${MODEL%/*}/Two"
  run "$SYNC" --dry-run "${MODEL%/*}" mac7
  says "+ cd $MODEL"
  says "+ cd ${MODEL%/*}/Two"
  run called "ssh "
  [ "$status" -ne 0 ]
}
