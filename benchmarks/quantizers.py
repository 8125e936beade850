"""What people quantize with today, and aiasst, on one checkpoint and one text: bits, accuracy, time and memory to quantize.

usage: quantizers.py CHECKPOINT WORK --heldout FILE --calibration FILE [--peers-python PYTHON]
                     [--models plain twin] [--only TEXT ...] [--windows 80] [--keep]

CHECKPOINT is a Hugging Face folder of the Llama type. A table is printed for it, and one for its hostile twin: the same
function in float32 with the outlier channels of a large model (hostile.py). The text is the first 400,000 bytes of the held-out
books, 80 windows of 512 tokens, the second half of each scored against the fp32 model. Whatever calibrates gets the same 128
sequences of 512 tokens of the calibration text, which must be another.

The peers run in an environment of their own, because they pin and pull much:
    python -m venv peers
    peers/bin/pip install -c constraints.txt onnxruntime onnx onnx-ir requests transformers safetensors gguf \
        olive-ai==0.13.0 auto-round==0.16.1 llama-cpp-python
Each is one script in peers/; what is not installed has a row that says so. Logits come from the tool's own runtime: ONNX Runtime
and llama.cpp round activations to int8 as they multiply; Olive's and AutoRound's weights run in torch with fp32 activations,
which is kinder than any runtime will be: little on a plain model, much on the twin, so compare rows of equal activations.
AutoRound's packed checkpoint is therefore also imported and run by ONNX Runtime.
"int8 head": the tool leaves embedding and head in floating point; here they are rounded to int8 to compare at equal size.
Bits per weight count everything that is stored: packed values, scales, zero points, embedding, head, norms.

Every quantizer is a process of its own. Its seconds begin with the start of Python and end with the file on disk; aiasst's end
with its accuracy card. Peak memory is the most that was resident at once (VmHWM), mapped files included. llama.cpp's package
cannot make an importance matrix: torch does it in the same process, so the rows without one show what llama.cpp itself takes.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy import read_text

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.evaluate.perplexity import PIECE, Comparison, Floats, Ids, compare
from aiasst.tokenizer import Tokenizer
from measure import aiasst, machine, print_table

HERE = Path(__file__).resolve().parent
WINDOW, WINDOWS = 512, 80
SEQUENCES = 128
NOTE = ".made.json"
"""Ends the name of the file beside a folder that says what making it took."""
PASSAGE_BYTES = 8192
"""Enough text for one calibration sequence."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    script: str = ""
    """The peer's, in peers/; none: aiasst itself."""
    module: str = ""
    """What must be importable for it."""
    variant: str = ""
    """Of the peer's script."""
    arguments: tuple[str, ...] = ()
    """Of `aiasst quantize`."""
    int8_head: bool = False
    imported: bool = False
    """The peer's packed checkpoint, converted by aiasst and run by ONNX Runtime."""

    @property
    def made(self) -> str:
        """Name of the folder it is made in; rows that differ only in scoring share it."""
        return f"{self.script}-{self.variant}".strip("-") if self.script else "aiasst" + "".join(self.arguments)

    @property
    def activations(self) -> str:
        """What the products read when the row is scored."""
        return "fp32" if self.script in (OLIVE, ROUND) and not self.imported else "int8"


ORT, OLIVE, ROUND, LLAMA = "onnxruntime_weights", "olive_gptq", "autoround", "llama_cpp_gguf"
ROWS = (
    Row("ONNX Runtime RTN, block 128, fp32 head", ORT, "onnx_ir", "rtn-128"),
    Row("ONNX Runtime RTN, block 128, int8 head", ORT, "onnx_ir", "rtn-128-head8"),
    Row("ONNX Runtime RTN, block 32, int8 head", ORT, "onnx_ir", "rtn-32-head8"),
    Row("ONNX Runtime k_quant, block 128, int8 head", ORT, "onnx_ir", "k_quant-128-head8"),
    Row("ONNX Runtime k_quant, block 32, int8 head", ORT, "onnx_ir", "k_quant-32-head8"),
    Row("Olive GPTQ, block 128, fp32 head", OLIVE, "olive"),
    Row("Olive GPTQ, block 128, int8 head", OLIVE, "olive", int8_head=True),
    Row("AutoRound, block 128, fp32 head", ROUND, "auto_round"),
    Row("AutoRound, block 128, int8 head", ROUND, "auto_round", int8_head=True),
    Row("AutoRound, block 128, int8 head, imported into ONNX", ROUND, "auto_round", imported=True),
    Row("llama.cpp Q4_K_M", LLAMA, "llama_cpp", "Q4_K_M"),
    Row("llama.cpp Q4_K_M, importance matrix", LLAMA, "llama_cpp", "Q4_K_M-imatrix"),
    Row("llama.cpp Q4_0", LLAMA, "llama_cpp", "Q4_0"),
    Row("llama.cpp Q4_0, importance matrix", LLAMA, "llama_cpp", "Q4_0-imatrix"),
    Row("llama.cpp Q3_K_M", LLAMA, "llama_cpp", "Q3_K_M"),
    Row("llama.cpp Q3_K_M, importance matrix", LLAMA, "llama_cpp", "Q3_K_M-imatrix"),
    Row("aiasst int4, round-to-nearest", arguments=("--recipe", "int4", "--algorithm", "rtn")),
    Row("aiasst int4, searched scales", arguments=("--recipe", "int4", "--algorithm", "mse")),
    Row("aiasst int4", arguments=("--recipe", "int4")),
    Row("aiasst int4-fast", arguments=("--recipe", "int4-fast")),
    Row("aiasst, plan for 5.07 bits", arguments=("--target-bpw", "5.07")),
    Row("aiasst, plan for 4.82 bits", arguments=("--target-bpw", "4.82")),
    Row("aiasst, plan for 4.50 bits", arguments=("--target-bpw", "4.5")),
    Row("aiasst, plan for 4.25 bits", arguments=("--target-bpw", "4.25")),
)
MODELS = {"plain": "The checkpoint", "twin": "Its hostile twin"}
COLUMNS = (
    "quantizer",
    "bits per weight",
    "activations",
    "perplexity",
    "mean KL",
    "top-1 agreement",
    "seconds",
    "peak MB",
    "version",
)


class BenchmarkError(Exception):
    """A row that cannot be had, and why."""


@dataclass(frozen=True)
class Made:
    """What quantizing took."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Bench:
    """One checkpoint and its texts, in one folder of work."""

    checkpoint: Path
    work: Path
    peers_python: Path | None

    @property
    def ids(self) -> Path:
        """Windows that are scored."""
        return self.work / "heldout.npz"

    @property
    def calibration(self) -> Path:
        """Sequences for whatever calibrates."""
        return self.work / "calibration.npz"

    @property
    def float_folder(self) -> Path:
        """The fp32 model folder: reference, and where aiasst and ONNX Runtime's quantizers begin."""
        return self.work / "fp32"

    def python(self, module: str) -> Path:
        """The peers' interpreter, where `module` is installed."""
        if self.peers_python is not None:
            code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
            if subprocess.run([self.peers_python, "-c", code], check=False).returncode == 0:
                return self.peers_python
        raise BenchmarkError("not installed")

    def notes(self) -> Iterator[Path]:
        """What quantizing took, one file for each folder that is made."""
        return self.work.glob(f"*{NOTE}")


def prepare(bench: Bench, heldout: Path, calibration: Path, windows: int, keep: bool) -> None:
    """Token ids, and the fp32 model folder with its logits; what an earlier run made is forgotten unless it is kept."""
    bench.work.mkdir(parents=True, exist_ok=True)
    for note in () if keep else list(bench.notes()):
        note.unlink()
    aiasst("convert", str(bench.checkpoint), "-o", str(bench.float_folder), "--force", "--quiet")
    tokenizer = Tokenizer.load(bench.float_folder)
    ids = np.array(tokenizer.encode(read_text(heldout))[: windows * WINDOW], np.int64)
    np.savez(bench.ids, input_ids=ids.reshape(-1, WINDOW))
    np.savez(bench.calibration, input_ids=np.array(list(sequences(calibration, tokenizer)), np.int64))
    folder_logits(bench, bench.float_folder, bench.work / "reference.npy")


def sequences(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The beginnings of passages that lie evenly in a text."""
    text = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    for index in range(SEQUENCES):
        start = index * max(len(text) - PASSAGE_BYTES, 0) // SEQUENCES
        passage = text[start : start + PASSAGE_BYTES].decode("utf-8", errors="ignore")
        yield tokenizer.encode(passage)[:WINDOW]


def run_isolated(*command: str | Path) -> Made:
    """Run a command that quantizes, measured."""
    ended = subprocess.run(
        [sys.executable, "-S", HERE / "isolated.py", *command], capture_output=True, text=True, errors="replace"
    )
    said, _, figures = ended.stderr.rstrip().rpartition("\n")
    if ended.returncode != 0:
        raise BenchmarkError(f"failed: {reason(ended.returncode, said)}")
    return Made(**json.loads(figures))


def reason(returncode: int, said: str) -> str:
    """Why a process ended badly: the signal that ended it (out of memory: SIGKILL), or else the last line it wrote."""
    number = -returncode % 256  # isolated.py passes -9 on as 247
    if number in set(signal.Signals):
        return f"ended by {signal.Signals(number).name}"
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), f"exit code {returncode}")[:200]


def make(bench: Bench, row: Row) -> Made:
    """Quantize as the row says, unless that was done in this run or is kept of an earlier one."""
    folder, note = bench.work / row.made, bench.work / f"{row.made}{NOTE}"
    if note.is_file():
        return Made(**json.loads(note.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder.with_name(f".{folder.name}.calibrating"), ignore_errors=True)  # resumed work would look fast
    if row.script:
        command: tuple[str | Path, ...] = (
            bench.python(row.module), HERE / "peers" / f"{row.script}.py", "quantize", "--variant", row.variant,
            "--checkpoint", bench.checkpoint, "--onnx", bench.float_folder, "--calibration", bench.calibration,
            "--output", folder,
        )  # fmt: skip
    else:
        command = (
            sys.executable, "-m", "aiasst", "quantize", bench.float_folder, "-o", folder, *row.arguments,
            "--calibration", bench.calibration, "--quiet",
        )  # fmt: skip
    made = run_isolated(*command)
    note.write_text(json.dumps(vars(made)))
    return made


def folder_logits(bench: Bench, folder: Path, output: Path) -> None:
    """Logits of a model folder, by ONNX Runtime alone."""
    run_logits(Path(sys.executable), "onnx_logits", bench, folder, output)


def run_logits(python: Path, script: str, bench: Bench, folder: Path, output: Path, *more: str) -> tuple[int, str]:
    """Let a script write its logits; the bytes of its weights and the peer's version."""
    command: list[str | Path] = [python, HERE / "peers" / f"{script}.py", "logits", *more]
    command += ["--model", folder, "--ids", bench.ids, "--output", output]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if ended.returncode != 0:
        raise BenchmarkError(f"scoring failed: {reason(ended.returncode, ended.stderr)}")
    told = json.loads(ended.stdout.strip().splitlines()[-1])
    return told["bytes"], told["version"]


@dataclass(frozen=True)
class Recorded:
    """A scorer that reads logits float32 [windows, scored, vocabulary] from a file; windows are known by their ids."""

    file: Floats
    windows: Ids

    @classmethod
    def open(cls, path: Path, bench: Bench) -> Recorded:
        """Mapped, not read."""
        with np.load(bench.ids) as archive:
            return cls(np.load(path, mmap_mode="r"), archive["input_ids"])

    def score(self, window: Ids) -> Iterator[tuple[Floats, Ids]]:
        """See `aiasst.evaluate.perplexity.Scorer`."""
        (index,) = np.flatnonzero((self.windows == window).all(axis=1))
        targets = window[len(window) // 2 :]
        for start in range(0, len(targets), PIECE):
            yield np.asarray(self.file[index, start : start + PIECE]), targets[start : start + PIECE]


def parameters(checkpoint: Path) -> int:
    """Weights of a checkpoint, from the headers of its safetensors files."""
    count = 0
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        count += sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
    return count


def score(bench: Bench, row: Row) -> tuple[float, Comparison, str]:
    """Bits per weight, the comparison with fp32, and the version of what was measured."""
    folder, output = bench.work / row.made, bench.work / "logits.npy"
    if row.imported:
        small = import_packed(bench, folder)
        folder_logits(bench, small, output)
        bits, version = bits_of(small), "aiasst"
    elif row.script:
        more = ("--int8-head",) if row.int8_head else ()
        taken, version = run_logits(bench.python(row.module), row.script, bench, folder, output, *more)
        bits = 8 * taken / parameters(bench.checkpoint)
    else:
        folder_logits(bench, folder, output)
        bits, version = bits_of(folder), "aiasst"
    ids = Recorded.open(output, bench).windows.ravel()
    reference, other = Recorded.open(bench.work / "reference.npy", bench), Recorded.open(output, bench)
    compared = compare(reference, other, ids, window=WINDOW)
    output.unlink()
    return bits, compared, version


def bits_of(folder: Path) -> float:
    """Bits per weight of a model folder that aiasst quantized."""
    quantization = ModelFolder.open(folder).manifest.quantization
    assert quantization is not None
    return quantization.bits_per_weight


def import_packed(bench: Bench, folder: Path) -> Path:
    """AutoRound's packed checkpoint as a model folder; embedding and head, which it leaves, rounded to int8."""
    converted = bench.work / "imported"
    run_isolated(
        sys.executable, "-m", "aiasst", "convert", folder, "-o", converted, "--rest", "int8", "--force", "--quiet"
    )
    return converted


def cells(bench: Bench, row: Row) -> tuple[str, ...]:
    """One line of the table."""
    try:
        made = make(bench, row)
        bits, compared, version = score(bench, row)
    except BenchmarkError as reason:
        return (row.name, str(reason).replace("|", "/"), *[""] * (len(COLUMNS) - 2))
    before, after = compared.reference.value, compared.other.value
    return (
        row.name, f"{bits:.2f}", row.activations, f"{after:.2f} ({after / before - 1:+.2%})", f"{compared.mean_kl:.4f}",
        f"{compared.top1_agreement:.2%}", f"{made.seconds:.1f}", f"{made.peak_bytes / 1e6:.0f}", version,
    )  # fmt: skip


def measure(bench: Bench, rows: list[Row]) -> list[tuple[str, ...]]:
    """The table of one model; each line is also told as soon as it is known."""
    table = []
    for row in rows:
        table.append(cells(bench, row))
        print(" · ".join(filter(None, table[-1])), file=sys.stderr, flush=True)
    return table


def checkpoint_of(model: str, original: Path, work: Path) -> Path:
    """The checkpoint itself, or its hostile twin, which is written by a process of its own so that this one stays small."""
    if model == "plain":
        return original
    twin = work / "twin-checkpoint"
    run_isolated(sys.executable, HERE / "hostile.py", original, twin)
    return twin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--heldout", type=Path, required=True, help="text to score on, .txt or .txt.xz")
    parser.add_argument("--calibration", type=Path, required=True, help="text to calibrate on, another one")
    parser.add_argument("--peers-python", type=Path, help="interpreter of the environment that has the peers")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="the checkpoint, its hostile twin"
    )
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name contains one of these")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of 512 tokens each, to score on")
    parser.add_argument(
        "--keep", action="store_true", help="take what an earlier run quantized, with its time and memory"
    )
    arguments = parser.parse_args()
    rows = [row for row in ROWS if any(text.lower() in row.name.lower() for text in arguments.only)]
    print(machine(), flush=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        checkpoint = checkpoint_of(model, arguments.checkpoint, arguments.work)
        bench = Bench(checkpoint, arguments.work / model, arguments.peers_python)
        prepare(bench, arguments.heldout, arguments.calibration, arguments.windows, arguments.keep)
        print(f"\n{MODELS[model]}, {arguments.windows} windows of {WINDOW} tokens\n", flush=True)
        print_table(COLUMNS, measure(bench, rows))


if __name__ == "__main__":
    main()
