#!/usr/bin/env bash
# The paper's recipe (arXiv 2510.25739) for any target: draft heads, fitted on 6000 grids that the target draws for your
# prompts. The paper's own target is Lumina-mGPT 7B at 768 pixels; its published sampling (top-k 2000, temperature 1,
# CFG 3) is Hawk's default for that target. The same command again resumes a killed run. The file
# src/hawk/training/drafters/recipes/paper.yaml says which values are the paper's and which are ours.
set -euo pipefail
TARGET=${TARGET:?give a checkpoint folder or hub id}
PROMPTS=${PROMPTS:?give a file with one prompt a line; with 6000 prompts each has one grid}
OUT=${OUT:-runs/paper} GPUS=${GPUS:-1} CACHE_GB=${CACHE_GB:-20} DRAW_BATCH=${DRAW_BATCH:-8}

torchrun --no-python --nproc-per-node "$GPUS" hawk train drafter --recipe paper --kind heads \
  --target "$TARGET" --prompts "$PROMPTS" --out "$OUT" --device cuda --target-dtype bfloat16 \
  --cache-gb "$CACHE_GB" --draw-batch "$DRAW_BATCH"
