#!/usr/bin/env bash
# One recipe for the scenes model on any machine: tokenizer, target, drafters, fitted pool, contact sheet, scores.
#
#   bash recipes/scenes.sh                           # two CPU cores: days; a killed step goes on where it stopped
#   DEVICE=cuda bash recipes/scenes.sh               # one GPU of 80 GB: about 25 minutes (planned, not measured)
#   DEVICE=cuda SHARE=0.01 TRAIN_ON=cpu bash recipes/scenes.sh   # that variant rehearsed on a CPU
#
# Pictures are drawn while training; nothing is downloaded. Needs: pip install -e '.[train]'
set -euo pipefail
DEVICE=${DEVICE:-cpu} RUNS=${RUNS:-runs/scenes} SHARE=${SHARE:-1}
TRAIN_ON=${TRAIN_ON:-$DEVICE}
of() { python -c "print(max(2, round($1 * $SHARE)))"; } # a step count at this share

if [ "$DEVICE" = cuda ]; then # 32x32 tokens, 60 M parameters
  SIDE=256 DIM=640 LAYERS=12 TOKENIZER_STEPS=$(of 3000) STEPS=$(of 8000) BATCH=128 LR=1e-3 IMAGES=$(of 4096)
  EXTRA=(--dtype bfloat16 --workers 14) COMPILE=(--compile)
else # 16x16 tokens, 7 M parameters
  SIDE=128 DIM=256 LAYERS=6 TOKENIZER_STEPS=$(of 2000) STEPS=$(of 40000) BATCH=16 LR=2e-3 IMAGES=$(of 2048)
  EXTRA=() COMPILE=()
fi
if [ "$TRAIN_ON" = cpu ]; then
  COMPILE=() BATCH=${CPU_BATCH:-16} EXTRA=()
fi
IMAGES=$((IMAGES < 64 ? 64 : IMAGES))

recipe() { python "$(dirname "$0")/endless.py" "$@"; }
recipe tokenizer "$RUNS/tokenizer" --side $SIDE --levels 8 8 8 8 --steps "$TOKENIZER_STEPS" --device "$TRAIN_ON"
recipe target "$RUNS/target" --side $SIDE --tokenizer "$RUNS/tokenizer" --dim $DIM --layers $LAYERS --steps "$STEPS" \
  --batch-size $BATCH --lr $LR --device "$TRAIN_ON" "${COMPILE[@]}" "${EXTRA[@]}"
recipe model "$RUNS/target" --tokenizer "$RUNS/tokenizer"
recipe captions "$RUNS/prompts.txt" --count "$IMAGES"
hawk train drafter --kind heads,spatial,feature --model "$RUNS/target/model" --prompts "$RUNS/prompts.txt" \
  --out "$RUNS/drafter" --images "$IMAGES" --device "$TRAIN_ON"
recipe sheet "$RUNS/target/model" "$RUNS/sheet.png"
recipe score "$RUNS/target/model"
