"""Puts the integers of a checkpoint that others quantized into its converted graph, bit for bit. Knows no checkpoint.

Convert dequantized the checkpoint exactly and left a fingerprint of every row (artifacts.grids). Whatever an exporter did with
the rows (fused Q, K and V, split, reordered, transposed), each is found by its fingerprint and brought back to its integers by
dividing by its scale; what does not come back to the very same float32 is not taken. Nothing is rounded: a weight whose grid no
format here has stays floating point, and so does what the checkpoint left unquantized (in float16 where that loses nothing),
unless the user wants that rounded as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aiasst.artifacts.grids import ImportedGrids, ModuleEntry, ModuleGrid, row_digests
from aiasst.artifacts.model_folder import (
    GRAPH_NAME,
    WEIGHTS_NAME,
    Manifest,
    ModelFolder,
    Quantization,
    copy_travelling_files,
    record_files,
    refuse_existing,
    require_free_disk,
    staged_folder,
    write_manifest,
)
from aiasst.artifacts.recipe import BLOCK_SIZES, INT2_BLOCK_SIZES, FormatName, Recipe, WeightFormat
from aiasst.errors import ExportError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize import algorithms, formats
from aiasst.quantize.calibrate.contents import FloatVector, round_weight, weight_rows
from aiasst.quantize.check import check_runs
from aiasst.quantize.fitting import FP32, PlannedWeight
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.inventory import Found, Inventory, take_inventory
from aiasst.quantize.matrix import ByteMatrix, FloatMatrix, copy_matrix
from aiasst.quantize.plan import Plan, make_plan
from aiasst.quantize.ranges import InputRange
from aiasst.quantize.rewrite import rewrite
from aiasst.quantize.source import QuantizeSource, open_source
from aiasst.quantize.tables import other_rows, planned_rows, unnamed_bytes
from aiasst.quantize.weights_file import WeightsFile
from aiasst.version import __version__

RECIPE = "imported"
STAGE = "find integers"

_FP16 = WeightFormat(format="fp16")
# Grid of the checkpoint → format; three bits lie within four.
_FORMATS: dict[int, FormatName] = {2: "int2", 3: "int4", 4: "int4", 8: "int8"}
_FORMAT_BITS: dict[FormatName, int] = {"int2": 2, "int4": 4, "int8": 8}
# As in plan: beyond this a smaller block takes fewer bytes.
_MOST_PADDING = 1.25
# Weights worked on at once; a row of a transposed weight is a column of the file, so not too few rows.
_CHUNK_ELEMENTS = 1 << 20
_FEWEST_ROWS = 64
# For what the checkpoint left unquantized, where the user wants it smaller.
_ROUNDING = "mse"
_NOWHERE = -1
_SPARE_BYTES = 32 << 20


@dataclass(frozen=True)
class Origin:
    """Where the rows of a weight were found."""

    modules: tuple[ModuleEntry, ...]
    module: npt.NDArray[np.int64]
    """Index into `modules` of each row, int64 [N]; _NOWHERE for a row of zeros that an exporter added."""
    row: npt.NDArray[np.int64]
    """Row of that module, int64 [N]."""


@dataclass(frozen=True)
class Kept:
    """The integers of one weight, and the format that holds them."""

    spec: WeightFormat
    origin: Origin
    order: npt.NDArray[np.int32] | None = None
    """Its inputs in the order of their groups, int32 [K], where that is not their own."""


@dataclass(frozen=True)
class NotKept:
    """A weight that the checkpoint quantized and no format here can hold."""

    reason: str


def restore(
    source: ModelFolder | Path,
    grids: Path,
    output: Path,
    *,
    rest: WeightFormat | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> ModelFolder:
    """Write the folder `output`: the graph of `source` with the integers that its float32 weights stand for.

    Args:
        source: The converted folder of the dequantized checkpoint.
        grids: The file that convert left beside its weights.
        output: The folder to write.
        rest: What becomes of the matrices that have no integers (embedding, head); None: they stay floating point.
        force: Replace `output` if it exists.
        progress: Told about each weight.

    Raises:
        ArtifactError: the source or the grids are missing or damaged; `output` exists.
        ExportError: no weight of the graph is one of the checkpoint's, or the result does not run.
        ResourceError: the disk is full, or would be.
    """
    refuse_existing(output, force=force)
    opened = open_source(source)
    inventory = take_inventory(opened.model.graph, opened.table)
    file = ImportedGrids(grids)
    kept, reasons = _found_integers(inventory, file, opened.opset, progress)
    plan = _plan(opened, inventory, kept, reasons, file.method, rest)
    require_free_disk(output, plan.bytes_after + _SPARE_BYTES)
    with staged_folder(output, force=force) as staging:
        _fill(staging, opened, inventory, plan, ImportedContents(file, plan, kept), progress)
    return ModelFolder.open(output)


@dataclass(frozen=True)
class ImportedContents:
    """The `Contents` of an import: integers where the checkpoint has them, else the weight in the format that is planned."""

    grids: ImportedGrids
    plan: Plan
    kept: Mapping[str, Kept]
    vectors: Mapping[str, FloatVector] = field(default_factory=dict)
    ranges: Mapping[str, InputRange] = field(default_factory=dict)

    def matrix(self, found: Found) -> Quantized | FloatMatrix | None:
        """See `Contents`.

        Raises:
            ExportError: the weight does not come back to the same numbers from its integers.
        """
        rows = weight_rows(found)
        kept = self.kept.get(found.matrix.name)
        if kept is None:
            spec = self.plan.format_of(found.matrix.name)
            return None if spec == FP32 else round_weight(rows, spec, algorithms.load(_ROUNDING))
        taken = _on_its_grid(found.matrix.name, rows, kept, self.grids)
        if kept.order is None:
            return taken
        return replace(taken, values=np.ascontiguousarray(taken.values[:, kept.order]))


def _found_integers(
    inventory: Inventory, grids: ImportedGrids, opset: int, progress: ProgressFn
) -> tuple[dict[str, Kept], dict[str, str]]:
    """What can be kept, by weight, and why the rest of what the checkpoint quantized cannot."""
    lookup = _Lookup(grids)
    total, done = sum(found.matrix.elements for found in inventory.found), 0
    kept: dict[str, Kept] = {}
    reasons: dict[str, str] = {}
    for found in inventory.found:
        progress(Progress(STAGE, done, total, found.matrix.name))
        origin = lookup.find(weight_rows(found))
        if origin is not None:
            chosen = _kept(found, origin, grids, opset)
            if isinstance(chosen, Kept):
                kept[found.matrix.name] = chosen
            else:
                reasons[found.matrix.name] = chosen.reason
        done += found.matrix.elements
    if not kept:
        why = next(iter(reasons.values()), "its rows are not those of the checkpoint")
        raise ExportError(
            f"no weight of the converted graph can keep the checkpoint's integers: {why}",
            "try another --exporter, or --dequantize for a float32 model folder",
        )
    progress(Progress(STAGE, total, total, f"{len(kept)} weights keep their integers"))
    return kept, reasons


class _Lookup:
    """Rows of all modules by fingerprint."""

    def __init__(self, grids: ImportedGrids) -> None:
        self._modules = grids.modules
        digests = [grids.digests(module) for module in grids.modules]
        counts = [len(each) for each in digests]
        flat = np.concatenate(digests)
        # Stable: of equal rows the first module's come first.
        order = np.argsort(flat, kind="stable")
        self._digests = flat[order]
        self._module = np.repeat(np.arange(len(counts)), counts)[order]
        self._row = np.concatenate([np.arange(count) for count in counts])[order]

    def find(self, rows: FloatMatrix) -> Origin | None:
        """Where the rows of float32 [N, K] come from; None where one of them (but for zeros) is nobody's."""
        module = np.full(len(rows), _NOWHERE, dtype=np.int64)
        row = np.zeros(len(rows), dtype=np.int64)
        several: list[tuple[int, range]] = []
        for part, chunk in _chunks(rows):
            digests = row_digests(chunk)
            first = np.searchsorted(self._digests, digests, side="left")
            last = np.searchsorted(self._digests, digests, side="right")
            absent = first == last
            if chunk[absent].any():
                return None
            here = np.minimum(first, len(self._digests) - 1)
            module[part] = np.where(absent, _NOWHERE, self._module[here])
            row[part] = np.where(absent, 0, self._row[here])
            equal = np.flatnonzero(last - first > 1)
            several += [(part.start + int(index), range(first[index], last[index])) for index in equal]
        self._decide(several, module, row)
        used = sorted(set(module.tolist()) - {_NOWHERE})
        if not used:
            return None
        renumbered = np.full(len(self._modules) + 1, _NOWHERE, dtype=np.int64)
        renumbered[used] = np.arange(len(used))
        return Origin(tuple(self._modules[index] for index in used), renumbered[module], row)

    def _decide(
        self, several: Sequence[tuple[int, range]], module: npt.NDArray[np.int64], row: npt.NDArray[np.int64]
    ) -> None:
        """Of equal rows (of zeros, mostly) take the one that stands between its neighbours, else one of a module that is used."""
        open_rows = {index for index, _ in several}
        used = {int(m) for index, m in enumerate(module) if index not in open_rows} if several else set()
        for index, places in several:
            candidates = [(int(self._module[place]), int(self._row[place])) for place in places]
            wanted = [
                (int(module[near]), int(row[near]) - step)
                for near, step in ((index - 1, -1), (index + 1, 1))
                if 0 <= near < len(module) and near not in open_rows
            ]
            fitting = [c for c in candidates if c in wanted] or [c for c in candidates if c[0] in used] or candidates
            module[index], row[index] = fitting[0]
            open_rows.discard(index)


def _chunks(rows: FloatMatrix) -> Iterator[tuple[slice, FloatMatrix]]:
    """Some rows after the other, each a contiguous copy."""
    n, k = rows.shape
    step = max(_FEWEST_ROWS, _CHUNK_ELEMENTS // k)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        chunk = np.empty((part.stop - part.start, k), dtype=np.float32)
        copy_matrix(rows[part], chunk)
        yield part, chunk


def _smallest_float(rows: FloatMatrix) -> WeightFormat:
    """fp16 where every number is one (checkpoints store what they do not quantize in 16 bits), else fp32."""
    with np.errstate(over="ignore"):
        exact = all(np.array_equal(chunk.astype(np.float16).astype(np.float32), chunk) for _, chunk in _chunks(rows))
    return _FP16 if exact else FP32


def _kept(found: Found, origin: Origin, grids: ImportedGrids, opset: int) -> Kept | NotKept:
    """The format that holds the grids of all rows, or why there is none."""
    modules = [grids.grid(module) for module in origin.modules]
    k = found.matrix.k
    name = _FORMATS[max(grid.bits for grid in modules)]
    allowed = INT2_BLOCK_SIZES if name == "int2" else BLOCK_SIZES
    fitting = [size for size in allowed if all(g.group_size >= k or g.group_size % size == 0 for g in modules)]
    if not fitting:
        sizes = ", ".join(sorted({str(grid.group_size) for grid in modules}))
        return NotKept(f"no kernel for groups of {sizes} inputs")
    block = fitting[-1]
    while block > fitting[0] and -(-k // block) * block > k * _MOST_PADDING:
        block //= 2
    orders = [None if grid.groups is None else np.argsort(grid.groups, kind="stable") for grid in modules]
    if not all(_same(order, orders[0]) for order in orders):
        return NotKept("its parts group their inputs in different orders")
    if orders[0] is not None and found.matrix.looks_up:
        return NotKept("an embedding cannot be read with its inputs in another order")
    spec = WeightFormat(format=name, block_size=block, zero_point=not all(grid.symmetric for grid in modules))
    reason = formats.load(name).unfit(spec, found.matrix, opset)
    if reason:
        return NotKept(reason)
    return Kept(spec, origin, None if orders[0] is None else orders[0].astype(np.int32))


def _same(one: npt.NDArray[np.intp] | None, other: npt.NDArray[np.intp] | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _on_its_grid(name: str, rows: FloatMatrix, kept: Kept, grids: ImportedGrids) -> Quantized:
    """The integers of float32 [N, K], inputs in their own order, with the grid in the blocks of the format."""
    origin, spec = kept.origin, kept.spec
    assert spec.block_size is not None
    n, k = rows.shape
    grid = Grid(_FORMAT_BITS[spec.format], spec.block_size, spec.zero_point)
    first_inputs = np.minimum(np.arange(grid.blocks(k)) * spec.block_size, k - 1)
    modules = [grids.grid(module) for module in origin.modules]
    values = np.empty((n, k), dtype=np.uint8)
    scales = np.ones((n, grid.blocks(k)), dtype=np.float32)
    zeros = np.full(scales.shape, 0 if spec.zero_point else grid.middle, dtype=np.uint8)
    for part, chunk in _chunks(rows):
        # Rows of zeros that an exporter added lie on any grid.
        values[part] = 0 if spec.zero_point else grid.middle
        for index, module in enumerate(modules):
            mine = np.flatnonzero(origin.module[part] == index)
            if not len(mine):
                continue
            place, theirs = part.start + mine, origin.row[part][mine]
            shift = 0 if spec.zero_point else grid.middle - (1 << (module.bits - 1))
            values[place] = _integers(name, chunk[mine], module, theirs) + np.uint8(shift)
            groups = first_inputs // module.group_size
            scales[place] = module.scales[theirs][:, groups]
            zeros[place] = module.zero_points[theirs][:, groups] + np.uint8(shift)
    return Quantized(grid, values, scales, zeros if spec.zero_point else None)


def _integers(name: str, weights: FloatMatrix, module: ModuleGrid, rows: npt.NDArray[np.int64]) -> ByteMatrix:
    """The values that dequantize to `weights` [rows, K], uint8; ExportError where there are none."""
    groups = module.group_of_inputs(weights.shape[1])
    scales = module.scales[rows][:, groups]
    zeros = module.zero_points[rows][:, groups].astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint(weights / scales)
    # A block of zeros may have a scale of zero: then any integer stands for its weights.
    steps[scales == 0] = 0
    values = steps + zeros
    exact = np.array_equal(steps * scales, weights) and values.min() >= 0 and values.max() < 1 << module.bits
    if not exact:
        raise ExportError(
            f"the weight {name} does not come back from its integers", "this is a fault of aiasst: report it"
        )
    found: ByteMatrix = values.astype(np.uint8)
    return found


def _plan(
    source: QuantizeSource,
    inventory: Inventory,
    kept: Mapping[str, Kept],
    reasons: Mapping[str, str],
    method: str,
    rest: WeightFormat | None,
) -> Plan:
    plan = make_plan(
        Recipe(name=RECIPE, description="the integers of the checkpoint", algorithm=method, default=rest or FP32),
        [found.matrix for found in inventory.found],
        layers=source.shape.layers if source.shape else inventory.layers,
        opset=source.opset,
        others=other_rows(source, inventory),
        table_bytes=unnamed_bytes(source, inventory),
        left_alone=inventory.left_alone,
    )
    values = {found.matrix.name: found for found in inventory.found}
    planned = []
    for weight in plan.weights:
        name = weight.matrix.name
        if name in kept:
            planned.append(_planned(weight, kept[name].spec, kept[name].order))
        elif weight.chosen == FP32:
            planned.append(_planned(weight, _smallest_float(weight_rows(values[name])), None, reasons.get(name, "")))
        else:
            planned.append(weight)
    return replace(plan, weights=tuple(planned))


def _planned(
    weight: PlannedWeight, spec: WeightFormat, order: npt.NDArray[np.int32] | None, reason: str = ""
) -> PlannedWeight:
    size = formats.load(spec.format).nbytes(spec, weight.matrix) + (0 if order is None else order.nbytes)
    return replace(weight, wanted=spec, chosen=spec, reason=reason, bytes_after=size)


def _fill(
    staging: Path,
    source: QuantizeSource,
    inventory: Inventory,
    plan: Plan,
    contents: ImportedContents,
    progress: ProgressFn,
) -> None:
    model = source.model
    others = other_rows(source, inventory)
    _order_inputs(model.graph, inventory.found, contents.kept)
    with WeightsFile(staging / WEIGHTS_NAME) as file:
        rewrite(model.graph, inventory.found, plan, contents, file, progress=progress)
    ir.save(model, staging / GRAPH_NAME)
    progress(Progress("check", 0, 1, "running a few tokens"))
    check_runs(staging / GRAPH_NAME, source.graph_path)
    progress(Progress("check", 1, 1))
    copy_travelling_files(source.folder, staging)
    manifest = Manifest(
        aiasst_version=__version__,
        task=source.task,
        exporter=source.exporter,
        source=source.source,
        shape=source.shape,
        tokens=source.tokens,
        encoding=source.encoding,
        weights=planned_rows(plan, others),
        quantization=Quantization(
            recipe=RECIPE,
            algorithm=f"{plan.recipe.algorithm} ({RECIPE})",
            bits_per_weight=round(plan.bits_per_weight, 4),
        ),
        files=record_files(staging),
    )
    write_manifest(staging, manifest)


def _order_inputs(graph: ir.Graph, weights: Sequence[Found], kept: Mapping[str, Kept]) -> None:
    """Put a Gather before each product whose weight has its inputs in another order: kernels want a group's side by side."""
    gathered: dict[tuple[int, bytes], ir.Value] = {}
    for found in weights:
        order = kept[found.matrix.name].order if found.matrix.name in kept else None
        if order is None:
            continue
        for use in found.uses:
            x = use.node.inputs[0]
            assert x is not None
            key = (id(x), order.tobytes())
            if key not in gathered:
                gathered[key] = _gather(graph, use.node, x, order, found.matrix.name)
            use.node.replace_input_with(0, gathered[key])


def _gather(graph: ir.Graph, before: ir.Node, x: ir.Value, order: npt.NDArray[np.int32], weight: str) -> ir.Value:
    name = f"{weight}.order"
    tensor = ir.tensor(order, name=name)
    indices = ir.Value(name=name, shape=ir.Shape(order.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(indices)
    node = ir.node("Gather", [x, indices], {"axis": -1}, name=f"{weight}.reorder")
    node.outputs[0].name = f"{weight}.reordered"
    node.outputs[0].shape, node.outputs[0].type = x.shape, x.type
    graph.insert_before(before, node)
    return node.outputs[0]
