#!/usr/bin/env bash
# What models would do on these hosts, before anybody downloads it.
#
# Usage: check_model.sh [--hosts HOST,HOST | --memory GB,GB] [--hostfile FILE] [--ranks N]
#                       [--revision REVISION] [--json] [--help] MODEL...
#
# MODEL is the folder of a model, or a Hugging Face repo such as mlx-community/Foo-4bit, of which
# only the small files are read, and the headers of the weights. Nothing is loaded or computed.
#
# It says whether mlx-lm has the architecture; how the model would run on 1 to 8 ranks; what each
# rank would hold of the weights, what a token and a request of KV cache take there, and which
# context fits; which format of tool calls and which marks of thinking the server knows it by; what
# its chat template leaves out; whether its tokenizer needs code to be run. run, the doctor and
# sync_model.sh refuse what this refuses.
#
# Of several, 8 at most, it also says which fit beside each other, with what loading the last takes
# at its peak and caches of 4,096 tokens for each; those that do not can take turns.
#
#   --hosts HOST,...     Whose memory, rank 0 first (those of the hostfile; without one this machine)
#   --memory GB,...      Macs with so much memory, that nobody need have. One number: any count
#                        of such Macs.
#   --hostfile FILE      HOSTFILE: the hosts of the cluster.
#   --ranks N            Judge this number of ranks (as many as hosts; without any, each)
#   --revision REVISION  Branch, tag or commit of the repo (its main branch)
#   --json               One JSON object on stdout in place of the text. Where there is nothing to
#                        report, it has model, ok (false, or null: not known) and error. Of
#                        several models it has `models`, and in `together` the largest sets that fit.
#
# Settings: PARALLEL, TRUST_REMOTE_CODE, KV_BUDGET_GB, KV_BITS, KV_BITS_FROM and CONTEXT_MAX, as the run
# script takes them, and DRAFT_MODEL_DIR, a folder of this machine: whether it may draft for the model,
# and rank 0 with its weights; HF_TOKEN and HF_ENDPOINT for repos.
#
# Exit codes: 0 it would run, 1 it would not, 2 usage, 3 that could not be found out: a tool or a file
# is missing or cannot be read, the hub cannot be reached, or it does not give the repo (there is
# none of that name, it is private, or it is gated).
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

main() {
  exec_verb lib.model.check_verb "$@"
}

main "$@"
