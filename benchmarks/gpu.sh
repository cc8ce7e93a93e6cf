#!/usr/bin/env bash
# Everything that a session with one GPU should run, in order; each part's output lies under $OUT
# (default benchmarks/results/gpu). A part that fails is noted, and the next one runs. Times are estimates for an
# H100, not measured: about 45 minutes in all. No command may take more than 10 minutes.
#
#     OUT=folder benchmarks/gpu.sh
set -uo pipefail
OUT=${OUT:-benchmarks/results/gpu}
mkdir -p "$OUT"
status=0

# part NAME COMMAND...: at most 10 minutes; standard output in NAME, errors in NAME.log.
part() {
  local name=$1
  shift
  echo "$(date +%T) $name"
  timeout 600 "$@" > "$OUT/$name" 2> "$OUT/$name.log" || { echo "$name: failed with status $?"; status=1; }
}

step() {
  part "step_$1.json" python -m efficient_mae bench step --device cuda --precision bf16 --json "${@:2}"
}

# 3 minutes
part pytest.txt python -m pytest -m gpu -q
# 3 minutes each
for size in base large; do
  model=mae_vit_${size}_patch16
  step "$size" --model "$model" --peers true --batch_size 256
  step "${size}_compiled" --model "$model" --peers true --batch_size 256 --compile true
done
# 4 minutes each
step huge --model mae_vit_huge_patch14 --batch_size 256
step huge_compiled --model mae_vit_huge_patch14 --batch_size 256 --compile true
# The loader of small images in memory; the step of the demo's model
part data.json python -m efficient_mae bench data --data fashion-mnist-sample --model mae_vit_tiny_patch4 \
  --img_size 28 --in_chans 1 --batch_size 1024 --device cuda --json
# What the limit cuts off goes on from its finished cells when the same is run again
part table4.txt python -m efficient_mae study table4 --preset gpu --data fashion-mnist --out "$OUT/study"
exit $status
