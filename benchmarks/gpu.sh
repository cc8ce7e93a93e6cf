#!/usr/bin/env bash
# What a session with one GPU should run, in three groups; on an H100 the second took 5.5 minutes. A part that fails,
# or is cut off, is noted, and the next one runs. Outputs lie under $OUT (default benchmarks/results/gpu), each whole by
# itself. benchmarks/readme_tables.py makes the README's table of them.
#
#     OUT=folder benchmarks/gpu.sh correctness | speed | rest
#
# It needs python3 with PyTorch and torchvision of CUDA, timm and transformers. Where PyPI is out of reach, bring these
# as wheels: annotated-types beartype braceexpand docstring-parser importlib-resources jsonargparse lazy-loader
# typeshed-client wadler-lindig (pip download --no-deps --only-binary=:all: --python-version 3.12 NAME...).
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/gpu}
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$OUT"
status=0

# part NAME SECONDS COMMAND...: standard output in NAME, and what else was said if it failed.
part() {
  local name=$1 seconds=$2 log
  shift 2
  log=$(mktemp)
  echo "$(date +%T) $name"
  timeout "$seconds" "$@" > "$OUT/$name" 2> "$log" || { echo "$name: status $?"; tail -n 20 "$log"; status=1; }
  rm -f "$log"
}

# step NAME MODEL FLAG...
step() {
  part "step_$1.json" 200 python3 -m efficient_mae bench step --device cuda --precision bf16 --batch_size 256 --json \
    --model "mae_vit_$2" "${@:3}"
}

fast=(--compile true --cuda_graphs true)

correctness() {
  part doctor.txt 60 python3 -m efficient_mae doctor --device cuda --data fashion-mnist-sample
  part pytest.txt 440 python3 -m pytest -m gpu -q --disable-warnings $(grep -rlE "mark\.gpu|marks=pytest\.mark\.gpu" tests --include "test_*.py")
}

speed() {
  for size in base large; do
    step "$size" "${size}_patch16" --peers true
    step "${size}_compiled" "${size}_patch16" "${fast[@]}"
  done
  part attention.json 60 python3 benchmarks/attention_gpu.py
}

rest() {
  step huge_compiled huge_patch14 "${fast[@]}" --rounds 3
  part data.json 100 python3 -m efficient_mae bench data --data fashion-mnist-sample --model mae_vit_tiny_patch4 \
    --img_size 28 --in_chans 1 --batch_size 1024 --device cuda --json
  part high_ratios.json 300 python3 benchmarks/high_ratios.py
}

case "${1:-}" in
  correctness | speed | rest) "$1" ;;
  *) echo "usage: benchmarks/gpu.sh correctness | speed | rest" >&2; exit 2 ;;
esac
exit $status
