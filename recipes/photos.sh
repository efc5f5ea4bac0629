#!/usr/bin/env bash
# The recipe of hawk-photos: a small target whose tokens are about as hard to draft as those of large models. It is for
# measuring, not for show: 26 photographs, 16x16 tokens, 7 M parameters. Its weights (25 MB) are not in the repository.
#
#   DEVICE=cuda bash recipes/photos.sh    # one GPU, 16 CPU cores: about four minutes and the drafters
#   bash recipes/photos.sh                # two CPU cores: a day or more
#   SHARE=0.001 BATCH=2 bash recipes/photos.sh   # a rehearsal
#
# The same command again resumes a killed run. PHOTOS is a folder with the photographs; they are fetched into a new one
# (by apt-get). Needs: pip install -e '.[train]'
set -euo pipefail
DEVICE=${DEVICE:-cpu} RUNS=${RUNS:-runs/photos} PHOTOS=${PHOTOS:-runs/photos/pictures} SHARE=${SHARE:-1}
BATCH=${BATCH:-256}
of() { python -c "print(max($2, round($1 * $SHARE)))"; } # this share of a number, but at least the second number
FIT=(--photos "$PHOTOS" --device "$DEVICE" --dtype float32)
[ "$DEVICE" = cpu ] || FIT=(--photos "$PHOTOS" --device "$DEVICE" --dtype bfloat16 --workers 8)
MODEL=$RUNS/target/model

hawk train tokenizer --out "$RUNS/tokenizer" --start "$(python -c 'from hawk.models.folder import BUNDLED; print(BUNDLED)')" \
  "${FIT[@]}" --steps "$(of 525 2)" --batch-size "$((BATCH / 4 > 0 ? BATCH / 4 : 1))" --lr 6e-4 --ema 0.99 --whole
hawk train target --out "$RUNS/target" --tokenizer "$RUNS/tokenizer" --dim 256 --layers 6 "${FIT[@]}" \
  --steps "$(of 556 2)" --batch-size "$BATCH" --lr 2e-3 --muon --weight-decay 0.05 --warmup "$(of 100 1)" --ema 0.995
python - > "$RUNS/prompts.txt" <<'END'
from hawk.training.photos.sources import SUBJECTS

for subject in SUBJECTS.values():
    print(*(f"{view}{subject}" for view in ("a photo of ", "a close view of ", "a wide view of ", "")), sep="\n")
END
DRAFTER=(--images "$(of 2048 64)" --device "$DEVICE" --prompts "$RUNS/prompts.txt")
[ "$SHARE" = 1 ] || DRAFTER+=(--steps "$(of 2000 2)" --draw-batch 8) # a rehearsal takes minutes
hawk train drafter --kind heads,spatial,feature --target "$MODEL" --out "$RUNS/drafter" "${DRAFTER[@]}"
