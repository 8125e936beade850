"""What calibrating, writing and proving take: memory, disk and time, from shapes alone, before any of the work.

Knows no graph and no weights. Of a calibration two moments count: a session that runs a batch through a layer while statistics
are gathered, and the rounding of a weight; of the proof the layers of the original, and the two models beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aiasst.evaluate.perplexity import PIECE, WINDOW
from aiasst.evaluate.texts import DEFAULT_TOKENS
from aiasst.quantize.algorithms import Need
from aiasst.quantize.calibrate.shapes import GroupShape, LayerShape, ModelShape
from aiasst.quantize.grid import Grid
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.phases import A_NUMBER, FLOAT, Estimate, Moment, Phase, peak

MOST_TOKENS = 4096
"""Tokens of a batch: more make the products no faster."""
PIECE_ELEMENTS = 1 << 24
"""Numbers of a weight that are worked on at once: 64 MB of float32, of which an algorithm makes a dozen copies."""

# Of a weight of one byte a number, with its scales.
_ROUNDED_BYTES = 1.15
# Matrices [K, K] beside the statistics: as scales are chosen, and as an algorithm factorizes.
_CHOOSING, _FACTORIZING = 7, 5
# Copies of a piece of a weight: as its target is corrected, as scales are searched, as its integers are refined; and of the
# equations of its scales.
_TARGET_COPIES, _SEARCHED_COPIES, _REFINED_COPIES, _EQUATION_COPIES = 5, 2.5, 11, 3
# Copies of the rows that are summed up at once, in float64 among them.
_SUMMED_ROWS, _SUMMED_COPIES = 4096, 3
# Of a number that is rounded by itself: mapped, its value, and packed for the file; of one that is packed alone.
_PLAIN_BYTES, _PACKED_BYTES = 6, 3

# As gptq has them: grids of more bits are left to a search of scales.
REFINED_BITS, ROUNDS, SWEEPS = 4, 2, 2
# What factorizations and updates of few channels take, in operations of products of the same size.
_SLOW = 3.0
# Rounding channel by channel: operations a number of the weight, whatever K.
_A_CHANNEL = 12_000
# Rows, and candidates, that scales are chosen by.
_SAMPLE, _CANDIDATES = 256, 4

# Through a layer at once as the scales of a cache are found: they are the same for any number, and half a batch is little slower.
_CACHE_TOKENS = 2048

_LARGE_PARAMETERS, _TOKENS_OF_LARGE = 300_000_000, 4096
# Of logits on disk: a vocabulary of 150,000 and the tokens of a large model.
_MOST_ANSWER_BYTES = 2_000_000_000
# Arrays of a piece of logits: of both models, those of the piece before, and what is on its way; then as many numbers in float64
# as are compared at once.
_LOGIT_COPIES, _COMPARED_NUMBERS, _COMPARED_COPIES = 5, 1 << 21, 7


@dataclass(frozen=True)
class Work:
    """All that the estimate of a calibration depends on."""

    shape: ModelShape
    sequences: int
    length: int
    need: Need
    compares: bool
    """Whether the float chain's inputs are kept beside the quantized chain's."""
    grids: Mapping[str, Grid | None] = field(default_factory=dict)
    """What the weights are rounded to, by name; None: a format in floating point."""

    @property
    def tokens(self) -> int:
        """Of the text."""
        return self.sequences * self.length


def estimate(
    work: Work, rest: Sequence[Phase] = (), max_ram: int | None = None, title: str = "calibration"
) -> Estimate:
    """What `work` and the phases after it take, with the largest batch that keeps it under `max_ram` bytes.

    The batch depends on the arguments alone, since the order of sums, and with it the last bit of the result, depends on it.

    Raises:
        BudgetRefused: even one sequence at a time takes more.
    """
    batch = max(1, min(work.sequences, MOST_TOKENS // work.length))
    while batch > 1 and max_ram is not None and memory(work, batch) > max_ram:
        batch //= 2
    kept = _finished_bytes(work)
    phases = (_calibration(work, batch, title), *(_beside(phase, kept) for phase in rest))
    found = Estimate(phases, batch)
    found.refuse(max_ram)
    return found


def memory(work: Work, batch: int) -> int:
    """Bytes resident at the peak of a calibration with `batch` sequences at once."""
    return peak(_moments(work, batch))


def operations(work: Work) -> list[tuple[float, float]]:
    """Operations of each layer, of its sessions and of its algebra: what its share of the time follows from."""
    return [(_runs(work, layer), _algebra(work, layer)) for layer in work.shape.layers]


# ---------------------------------------------------------------------- calibration


def _calibration(work: Work, batch: int, title: str) -> Phase:
    each = operations(work)
    return Phase(
        title,
        memory(work, batch),
        _disk(work),
        runs=sum(runs for runs, _ in each),
        algebra=sum(algebra for _, algebra in each),
        remedy=f"give a calibration file of shorter sequences than {work.length} tokens, or use --algorithm mse, "
        "which looks at no text",
    )


def _moments(work: Work, batch: int) -> Iterator[Moment]:
    """Everything that could be the peak."""
    yield Moment(_reading(work))
    for layer in work.shape.layers:
        yield _float_run(work, layer, batch)
        for group in layer.groups:
            yield _gathering(work, layer, group, batch)
            yield Moment(_rounding(work, layer, group))


def _reading(work: Work) -> float:
    """Embeddings: rounded one after the other, then written as what they stand for."""
    lookups = {matrix.name: matrix for layer in work.shape.layers for matrix in layer.lookups}
    rounded = [matrix.elements for name, matrix in lookups.items() if work.grids.get(name) is not None]
    return max(_ROUNDED_BYTES * sum(rounded), (FLOAT + _ROUNDED_BYTES) * max(rounded, default=0))


def _float_run(work: Work, layer: LayerShape, batch: int) -> Moment:
    """A session of the layer as it is, the inputs of all groups with what leaves it, and those of the batch before."""
    widths = sum(group.width for group in layer.groups) if work.compares else 0
    leaving = 2 * FLOAT * batch * work.length * (widths + work.shape.hidden)
    activations = work.shape.activations(layer, batch, work.length) + leaving
    return Moment(work.shape.mapped(layer, work.tokens), activations)


def _gathering(work: Work, layer: LayerShape, group: GroupShape, batch: int) -> Moment:
    """A session up to a group's input while that of the batch before is held, and the sums over both."""
    chains = 2 if work.compares else 1
    return Moment(
        work.shape.mapped(layer, work.tokens) + squares(work.need, group.width, chains),
        gathered_rows(work.shape, layer, group.width, batch, work.length, chains),
    )


def _rounding(work: Work, layer: LayerShape, group: GroupShape) -> float:
    """The weights of a group on their way to the grid, one after the other, with those of the layer that are done."""
    numbers = sum(matrix.elements for each in layer.groups for matrix in each.weights)
    done = FLOAT * layer.elements + _ROUNDED_BYTES * numbers
    choosing = squares(work.need, group.width, int(work.compares)) + choosing_bytes(work.need, group)
    weights = (
        rounding_bytes(
            matrix, work.grids.get(matrix.name), work.need, compares=work.compares, last=matrix is group.weights[-1]
        )
        for matrix in group.weights
    )
    return done + squares(work.need, group.width, 1) + max(choosing, *weights)


def _disk(work: Work) -> int:
    """Boundaries of both chains, the inputs of a layer's groups, finished weights."""
    boundaries = 2 * 2 * work.tokens * work.shape.hidden * FLOAT
    widest = max(sum(group.width for group in layer.groups) for layer in work.shape.layers)
    staged = work.tokens * FLOAT * widest if work.compares else 0
    return boundaries + staged + _finished_bytes(work)


def _finished_bytes(work: Work) -> int:
    """The finished weights on disk, until the new folder is whole."""
    matrices = work.shape.matrices
    looked_up = FLOAT * sum(matrix.elements for matrix in matrices if matrix.looks_up)
    return int(_ROUNDED_BYTES * sum(matrix.elements for matrix in matrices)) + looked_up


def _beside(phase: Phase, kept: int) -> Phase:
    return Phase(phase.name, phase.memory, phase.disk + kept, phase.runs, phase.algebra, phase.remedy)


def _runs(work: Work, layer: LayerShape) -> float:
    """Both chains through a layer; the quantized one once more up to every group, and the float one ahead of a tied head."""
    shape, tokens = work.shape, work.tokens
    whole = shape.running(layer, tokens, work.length)
    parts = sum(shape.part(layer, number, tokens, work.length) for number in range(len(layer.groups)))
    ahead = any(m.tied and refined(work.need, work.grids.get(m.name)) for m in shape.matrices)
    return (3 if ahead else 2) * whole + parts


def _algebra(work: Work, layer: LayerShape) -> float:
    count = sum(group_operations(work.need, group, work.tokens, 2 if work.compares else 1) for group in layer.groups)
    for group in layer.groups:
        count += sum(
            rounding_operations(matrix, work.grids.get(matrix.name), work.need, compares=work.compares)
            for matrix in group.weights
        )
    return count + A_NUMBER * sum(matrix.elements for matrix in layer.lookups)


# ---------------------------------------------------------------------- what planning counts by as well


def squares(need: Need, k: int, count: float) -> float:
    """Bytes of `count` matrices [K, K], where the algorithm wants any."""
    return count * FLOAT * k**2 if need == "hessian" else 0


def gathered_rows(shape: ModelShape, layer: LayerShape, k: int, sequences: int, length: int, chains: int) -> float:
    """Bytes of activations while the statistics of a group's input [tokens, K] are summed up, in `chains` chains."""
    rows = chains * FLOAT * sequences * length * k
    summed = _SUMMED_COPIES * FLOAT * min(sequences * length, _SUMMED_ROWS) * k
    return rows + max(shape.activations(layer, sequences, length), rows + summed)


def choosing_bytes(need: Need, group: GroupShape) -> float:
    """Bytes beside the statistics as scales are chosen."""
    return squares(need, group.width, _CHOOSING) if group.folds else 0


def factorizing_bytes(need: Need, k: int) -> float:
    """Bytes beside a Hessian [K, K] as it is factorized."""
    return squares(need, k, _FACTORIZING)


def rounding_bytes(matrix: Matrix, grid: Grid | None, need: Need, *, compares: bool, last: bool = True) -> float:
    """Bytes beside the Hessian as a weight is rounded piece by piece.

    Args:
        matrix: the weight.
        grid: what it is rounded to.
        need: of the algorithm.
        compares: whether targets are corrected by a second matrix.
        last: whether nobody needs that matrix after this weight.
    """
    rows = min(matrix.n, max(1, PIECE_ELEMENTS // matrix.k))
    piece = FLOAT * rows * matrix.k
    correcting, kept = float(piece), 0.0
    if compares:
        correcting = max(squares(need, matrix.k, 4) + piece, squares(need, matrix.k, 3) + _TARGET_COPIES * piece)
        # The second matrix, and what was factorized, serve the pieces and weights to come.
        kept = squares(need, matrix.k, 2 if rows < matrix.n else 0 if last else 1)
    if grid is None or not refined(need, grid):
        return max(correcting, kept + _SEARCHED_COPIES * piece)
    factorizing = factorizing_bytes(need, matrix.k) + _SEARCHED_COPIES * piece
    equations = _EQUATION_COPIES * FLOAT * rows * grid.blocks(matrix.k) ** 2
    refining = squares(need, matrix.k, 2) + _REFINED_COPIES * piece + equations
    return max(correcting, kept + max(factorizing, refining))


def refined(need: Need, grid: Grid | None) -> bool:
    """Whether the integers of a weight follow from a Hessian, and not from a search of scales alone."""
    return need == "hessian" and grid is not None and grid.bits <= REFINED_BITS


def group_operations(need: Need, group: GroupShape, tokens: int, matrices: int) -> float:
    """Operations of a group's statistics over `tokens`, and of the choice of scales that fold into the norm before it."""
    k = group.width
    count = float(A_NUMBER * tokens * k)
    if need != "hessian":
        return count
    count += 2 * matrices * tokens * k**2
    if group.folds:
        count += _CANDIDATES * sum(quick_operations(_SAMPLE, k) for _ in group.weights)
    return count


def quick_operations(rows: int, k: int) -> float:
    """Operations of rounding `rows` of a weight channel by channel, the factorization of its Hessian included."""
    return _SLOW * (4 / 3) * k**3 + rows * k * (k + _A_CHANNEL + A_NUMBER)


def quick_rounding_operations(matrix: Matrix, grid: Grid | None, need: Need) -> float:
    """Operations of rounding a whole weight without descent."""
    if not refined(need, grid):
        return A_NUMBER * matrix.elements
    return quick_operations(matrix.n, matrix.k)


def rounding_operations(matrix: Matrix, grid: Grid | None, need: Need, *, compares: bool) -> float:
    """Operations of rounding a whole weight: target, channels, and descent over integers and scales.

    A round of descent fits the scales (products with the Hessian of target and levels, a system of equations a row), begins with
    the gradient, and each sweep updates it: N * K^2 multiplications and additions each.
    """
    n, k = matrix.n, matrix.k
    if grid is None or not refined(need, grid):
        return A_NUMBER * matrix.elements
    products = ROUNDS * (3 + SWEEPS)
    descent = _SLOW * 2 * products * n * k**2 + ROUNDS * n * grid.blocks(k) ** 3
    target = 4 * n * k**2 + _SLOW / 3 * k**3 if compares else 0
    return target + quick_operations(n, k) + descent


# ---------------------------------------------------------------------- cache, writing and proof


def cache_sequences_at_once(length: int) -> int:
    """Sequences of `length` tokens that go through a layer at once as the scales of a cache are found."""
    return max(1, _CACHE_TOKENS // length)


def cache_scales(shape: ModelShape, text: tuple[int, ...], *, torch: bool) -> Phase:
    """A `text` [sequences, length] goes through the layers once, and their keys and values are looked at."""
    sequences, length = text
    at_once = min(sequences, cache_sequences_at_once(length))
    tokens = sequences * length
    # What enters and leaves, keys and values, of this batch and the one before.
    passing = 8 * FLOAT * at_once * length * shape.hidden
    moments = (
        Moment(shape.mapped(layer, tokens), shape.activations(layer, at_once, length) + passing)
        for layer in shape.layers
    )
    return Phase(
        "reading of the cache",
        peak(moments, torch=torch),
        2 * tokens * shape.hidden * FLOAT,
        runs=sum(shape.running(layer, tokens, length) for layer in shape.layers),
        remedy="leave out --cache int8",
    )


@dataclass(frozen=True)
class Folder:
    """What will be written."""

    nbytes: int
    largest: int
    """Bytes of its largest weight, which is there twice while the kernels pack it."""
    borrowed: int = 0
    """Of `nbytes`, what lies in another form's file."""

    @property
    def opened(self) -> int:
        """Bytes in memory of a session that runs it."""
        return self.nbytes + self.largest


def writing(matrices: Sequence[Matrix], folder: Folder, *, plainly: bool) -> Phase:
    """Packing one weight after the other, and opening what was written; `plainly`: rounding each by itself as well."""
    largest = max((matrix.elements for matrix in matrices), default=0)
    numbers = sum(matrix.elements for matrix in matrices)
    a_number = _PLAIN_BYTES if plainly else _PACKED_BYTES
    return Phase(
        "writing",
        peak([Moment(max(a_number * largest, folder.opened))], torch=not plainly),
        folder.nbytes - folder.borrowed,
        runs=0.5 * A_NUMBER * numbers if plainly else 0.1 * A_NUMBER * numbers,
        remedy="choose a recipe of fewer bits: the result is opened once to see that it runs",
    )


def beside(first: Phase, second: Phase) -> Phase:
    """One phase of two that follow each other, what both leave on disk at its end; the second's disk is its own."""
    largest = max(first, second, key=lambda phase: phase.memory)
    return replace(largest, name=first.name, disk=first.disk + second.disk, runs=first.runs + second.runs)


def proof_tokens(parameters: int) -> int | None:
    """Tokens that a model of so many parameters is proven on; None: as many as any card.

    A large model takes a while to read a text, and says the same with fewer tokens: its predictions are less noisy.
    """
    return _TOKENS_OF_LARGE if parameters > _LARGE_PARAMETERS else None


def answers_wait(tokens: int, vocabulary: int) -> bool:
    """Whether the original's logits for the scored half of `tokens` are kept on disk, until the new model is opened."""
    return _answer_bytes(tokens, vocabulary) <= _MOST_ANSWER_BYTES


def _answer_bytes(tokens: int, vocabulary: int) -> int:
    return FLOAT * (tokens // 2) * vocabulary


def proof_in_layers(
    shape: ModelShape,
    folder: Folder,
    *,
    parameters: int,
    context: int,
    torch: bool,
    twin: Folder | None = None,
    cached: int = 0,
) -> Phase:
    """A decoder beside its original, which answers layer by layer; and its second form, which is opened before the first.

    `cached` are the bytes of a token's keys and values, which the second form leaves on disk for the first.
    """
    window = min(WINDOW, context)
    tokens = proof_tokens(parameters) or DEFAULT_TOKENS
    at_once = max(1, MOST_TOKENS // window)
    passing = 2 * FLOAT * at_once * window * shape.hidden
    moments = [
        Moment(shape.mapped(layer, tokens), shape.activations(layer, at_once, window) + passing)
        for layer in shape.layers
    ]
    head = sum(matrix.elements for matrix in shape.head)
    logits = _LOGIT_COPIES * FLOAT * PIECE * shape.vocabulary
    compared = 2 * FLOAT * _COMPARED_COPIES * min(PIECE * shape.vocabulary, _COMPARED_NUMBERS)
    step = max(shape.activations(layer, 1, window // 2) for layer in shape.layers)
    waiting = answers_wait(tokens, shape.vocabulary)
    if waiting:
        moments.append(Moment(FLOAT * head, logits))
    forms = [folder] if twin is None else [folder, twin]
    opened = max(form.opened for form in forms)
    moments.append(Moment(opened + (0 if waiting else FLOAT * head), logits + compared + step))
    each = [shape.running(layer, tokens, window) for layer in shape.layers]
    scored = tokens // 2
    answers = scored * (2 * head + 2 * A_NUMBER * shape.vocabulary)
    written = sum(form.nbytes - form.borrowed for form in forms)
    contexts = 0 if twin is None else scored * cached
    # The original once, and the new model, whose kernels take about as long; the answers of a second form, and of both together,
    # where the first goes on from the second's contexts.
    runs = 2 * sum(each) + 2 * answers
    if twin is not None:
        runs += 1.5 * sum(each) + 2 * answers
    return Phase(
        "proof",
        peak(moments, torch=torch),
        written
        + contexts
        + 3 * tokens * shape.hidden * FLOAT
        + (_answer_bytes(tokens, shape.vocabulary) if waiting else 0),
        runs=runs,
        remedy="choose a recipe of fewer bits: the result is opened to be measured",
    )


def proof_of_whole(shape: ModelShape, folder: Folder, source: Folder, *, torch: bool) -> Phase:
    """An encoder beside its original, both opened."""
    each = [shape.running(layer, DEFAULT_TOKENS, 64) for layer in shape.layers]
    return Phase(
        "proof",
        peak([Moment(source.opened + folder.opened)], torch=torch),
        folder.nbytes,
        runs=2 * sum(each),
        remedy="choose a recipe of fewer bits: the result answers beside its original",
    )
