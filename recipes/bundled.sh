#!/usr/bin/env bash
# The recipe of the bundled model, src/hawk/weights/bundled: tokenizer, target, drafters, contact sheets, scores.
#
#   bash recipes/bundled.sh                              # two CPU cores: days
#   DEVICE=cuda bash recipes/bundled.sh                  # one GPU of 80 GB, 16 CPU cores: 10.5 minutes and the drafters
#   DEVICE=cuda TRAIN_ON=cpu SHARE=0.001 CPU_BATCH=2 bash recipes/bundled.sh   # that recipe rehearsed on a CPU
#
# The same command again resumes a killed run. Pictures are drawn while training, and nothing is downloaded.
# START=FOLDER lets the tokenizer start from the weights of another model's. Needs: pip install -e '.[train]'
set -euo pipefail
DEVICE=${DEVICE:-cpu} RUNS=${RUNS:-runs/bundled} SHARE=${SHARE:-1} START=${START:-}
TRAIN_ON=${TRAIN_ON:-$DEVICE}
of() { python -c "print(max($2, round($1 * $SHARE)))"; } # this share of a number, but at least the second number
minutes() { python -c "print($1 * $SHARE)"; }

TOKENIZER=(--levels 8,8,8,8 --device "$TRAIN_ON") TARGET=(--blind 0.05 --hazy 0.05 --device "$TRAIN_ON")
if [ "$DEVICE" = cuda ]; then # 16x16 tokens, 18 M parameters
  TOKENIZER+=(--steps "$(of 4000 2)" --minutes "$(minutes 1.5)" --lr 6e-4 --ema 0.995 --whole)
  TARGET+=(--dim 384 --layers 8 --steps "$(of 12000 2)" --minutes "$(minutes 9)" --lr 2e-3 --muon --weight-decay 0.05)
  TARGET+=(--warmup "$(of 200 1)" --ema 0.998)
  TOKENIZER+=(--save-every 500 --evaluate-every 1000) TARGET+=(--save-every 400 --evaluate-every 1000) # steps are short
  BATCHES=(64 256) IMAGES=$(of 4096 64)
else # 16x16 tokens, 7 M parameters
  TOKENIZER+=(--steps "$(of 2000 2)")
  TARGET+=(--dim 256 --layers 6 --steps "$(of 40000 2)")
  BATCHES=(16 16) IMAGES=$(of 2048 64)
fi
if [ "$TRAIN_ON" = cuda ]; then
  TOKENIZER+=(--dtype bfloat16 --workers 11) TARGET+=(--dtype bfloat16 --compile --workers 14)
else
  BATCHES=("${CPU_BATCH:-16}" "${CPU_BATCH:-16}") TOKENIZER+=(--dtype float32) TARGET+=(--dtype float32)
fi
[ -z "$START" ] || TOKENIZER+=(--start "$START")
DRAFTER=(--images "$IMAGES" --device "$TRAIN_ON")
[ "$SHARE" = 1 ] || DRAFTER+=(--steps "$(of 2000 2)" --draw-batch 8) # a rehearsal of all kinds takes minutes

MODEL=$RUNS/target/model
hawk train tokenizer --out "$RUNS/tokenizer" "${TOKENIZER[@]}" --batch-size "${BATCHES[0]}"
hawk train target --out "$RUNS/target" --tokenizer "$RUNS/tokenizer" "${TARGET[@]}" --batch-size "${BATCHES[1]}"
hawk train drafter --kind heads,spatial,feature --target "$MODEL" --out "$RUNS/drafter" "${DRAFTER[@]}"
rm -rf "$MODEL/drafters"
mkdir "$MODEL/drafters"
cp -r "$RUNS/drafter/drafter" "$MODEL/drafters/heads"
rm "$MODEL/drafters/heads/README.md" # the model's own card describes its drafter
here=$(dirname "$0")
python "$here/contact_sheet.py" "$RUNS/sheet.png" 0 "$MODEL"
python "$here/contact_sheet.py" "$RUNS/seeds.png" 0 "$MODEL" seeds
python "$here/scores.py" "$MODEL" "$(of 96 4)"

# How the weights in the repository were really made, on one H100 with 16 CPU cores, in 14 minutes of machine time (1.3
# million pictures in all). The recipe above is one run from fresh weights in place of these, and is not measured:
# - tokenizer: as above, with --minutes 1.2, started from the weights of the bundled model before it (hawk-sprites):
#   2,122 steps; PSNR 31.8 dB, 60 % of the 4,096 codes used.
# - target, first part: as above, but cut off; the averaged weights of step 1,600 were used (`hawk train model`). At step
#   1,000 it had 0.363 nats a token on held-out scenes.
# - target, second part: from these weights (--start), with --seed 1 --warmup 100 --minutes 5.5: 3,445 steps. 0.144 nats
#   a token on held-out scenes, 0.664 on held-out pairs of thing and colour, 0.284 without captions.
