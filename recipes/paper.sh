#!/usr/bin/env bash
# The paper's recipe (arXiv 2510.25739) for any target: draft heads, 6000 grids that the target draws for your prompts.
# Its target is Lumina-mGPT 7B at 768 pixels, whose published settings (top-k 2000, temperature 1, CFG 3) are its own.
# The same command again resumes a killed run. What is the paper's and what is ours: src/hawk/training/recipes/paper.yaml.
set -euo pipefail
TARGET=${TARGET:?a checkpoint folder or hub id}
PROMPTS=${PROMPTS:?a file with one prompt a line, 6000 for one grid each}
OUT=${OUT:-runs/paper} GPUS=${GPUS:-1} CACHE_GB=${CACHE_GB:-20} DRAW_BATCH=${DRAW_BATCH:-8}

torchrun --no-python --nproc-per-node "$GPUS" hawk train drafter --recipe paper --kind heads \
  --target "$TARGET" --prompts "$PROMPTS" --out "$OUT" --device cuda --target-dtype bfloat16 \
  --cache-gb "$CACHE_GB" --draw-batch "$DRAW_BATCH"
