#!/usr/bin/env bash
# What a model remembers by the kind of its memory: docs/memory.md. Makes conversations of the codes of sentences, trains
# models of one size on them, asks them. bench/memory.sh [FOLDER] [options of recall], with a build for a GPU in build/gpu.
#
# VARIANTS=linear,local and SEEDS=1,2,3 choose what is trained.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$root/build/memory}
shift $(($# < 1 ? $# : 1))
bin=$root/build/gpu/bin
cmake --build "$root/build/gpu" --target example_make_data example_recall

make() { # NAME, options
  local name=$1
  shift
  [[ -e $folder/$name/train.jsonl ]] ||
    "$bin/make_data" memory --output "$folder/$name" --codec "$root/assets/mimi_small.safetensors" \
      --tokenizer "$root/assets/speech_tokenizer.model" --voices 2 --people 3 --attributes 4 --echo 1 --chat 0 "$@"
}
make near --hours 70 --facts 3:4 --delays 3:12
make far --hours 50 --facts 6:8 --delays 5:160 --length 200
make near_test --hours 0.25 --first 900000 --facts 3:4 --delays 3:12
make far_test --hours 3 --first 910000 --facts 8:8 --delays 5,10,20,40,80,160,320,600

"$bin/recall" --only "${VARIANTS:-linear,mlp,local,full}" --seeds "${SEEDS:-1}" --frames-a-step 5120 \
  --stage "$folder/near/train.jsonl:640:700" --stage "$folder/far/train.jsonl:640:700" \
  --test "near:$folder/near_test/train.jsonl" --test "far:$folder/far_test/train.jsonl" \
  --look-every 350 --looked-at 6 --output "$folder/results.jsonl" "$@"
