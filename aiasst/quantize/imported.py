"""Puts the integers of a checkpoint that others quantized into its converted graph, bit for bit. Knows no checkpoint.

Convert dequantized the checkpoint exactly and left a fingerprint of every row (artifacts.grids). Whatever an exporter did with
the rows (fused Q, K and V, split, reordered, transposed), each is found by its fingerprint and brought back to its integers by
dividing by its scale; what does not come back to the very same float32 is not taken. Nothing is rounded: a weight whose grid no
format here has stays floating point, and so does what the checkpoint left unquantized (in float16 where that loses nothing).
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
from aiasst.quantize import formats
from aiasst.quantize.calibrate.contents import FloatVector, weight_rows
from aiasst.quantize.check import check_runs
from aiasst.quantize.grid import Grid, Quantized
from aiasst.quantize.inventory import Found, Inventory, take_inventory
from aiasst.quantize.matrix import ByteMatrix, FloatMatrix, copy_matrix
from aiasst.quantize.plan import FP32, Plan, PlannedWeight, make_plan
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
class Target:
    """What becomes of one weight."""

    spec: WeightFormat
    origin: Origin | None = None
    """None: it stays floating point."""
    order: npt.NDArray[np.int32] | None = None
    """Its inputs in the order of their groups, int32 [K], where that is not their own."""
    reason: str = ""
    """Why it stays floating point though the checkpoint quantized it."""


def restore(
    source: ModelFolder | Path, grids: Path, output: Path, *, force: bool = False, progress: ProgressFn = silent
) -> ModelFolder:
    """Write the folder `output`: the graph of `source` with the integers that its float32 weights stand for.

    Args:
        source: The converted folder of the dequantized checkpoint.
        grids: The file that convert left beside its weights.
        output: The folder to write.
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
    targets = _targets(inventory, file, opened.opset, progress)
    plan = _plan(opened, inventory, targets, file.method)
    require_free_disk(output, plan.bytes_after + _SPARE_BYTES)
    with staged_folder(output, force=force) as staging:
        _fill(staging, opened, inventory, plan, ImportedContents(file, targets), progress)
    return ModelFolder.open(output)


@dataclass(frozen=True)
class ImportedContents:
    """The `Contents` of an import: integers where the checkpoint has them, else the weight as it is."""

    grids: ImportedGrids
    targets: Mapping[str, Target]
    vectors: Mapping[str, FloatVector] = field(default_factory=dict)

    def matrix(self, found: Found) -> Quantized | FloatMatrix | None:
        """See `Contents`.

        Raises:
            ExportError: the weight does not come back to the same numbers from its integers.
        """
        target = self.targets[found.matrix.name]
        rows = weight_rows(found)
        if target.origin is None:
            return None if target.spec == FP32 else rows
        taken = _on_its_grid(found.matrix.name, rows, target, self.grids)
        if target.order is None:
            return taken
        return replace(taken, values=np.ascontiguousarray(taken.values[:, target.order]))


def _targets(inventory: Inventory, grids: ImportedGrids, opset: int, progress: ProgressFn) -> dict[str, Target]:
    lookup = _Lookup(grids)
    total, done = sum(found.matrix.elements for found in inventory.found), 0
    targets: dict[str, Target] = {}
    for found in inventory.found:
        progress(Progress(STAGE, done, total, found.matrix.name))
        rows = weight_rows(found)
        origin = lookup.find(rows)
        target = Target(_smallest_float(rows)) if origin is None else _target(found, origin, grids, opset)
        if target.origin is None and origin is not None:
            target = replace(target, spec=_smallest_float(rows))
        targets[found.matrix.name] = target
        done += found.matrix.elements
        del rows
    if not any(target.origin for target in targets.values()):
        raise ExportError(
            "no weight of the converted graph is one of those that the checkpoint quantized",
            "try another --exporter, or --dequantize for a float32 model folder",
        )
    progress(Progress(STAGE, total, total))
    return targets


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


def _target(found: Found, origin: Origin, grids: ImportedGrids, opset: int) -> Target:
    """The format that holds the grids of all rows; floating point with a reason where there is none."""
    modules = [grids.grid(module) for module in origin.modules]
    k = found.matrix.k
    name = _FORMATS[max(grid.bits for grid in modules)]
    allowed = INT2_BLOCK_SIZES if name == "int2" else BLOCK_SIZES
    fitting = [size for size in allowed if all(g.group_size >= k or g.group_size % size == 0 for g in modules)]
    if not fitting:
        sizes = ", ".join(sorted({str(grid.group_size) for grid in modules}))
        return Target(FP32, reason=f"no kernel for groups of {sizes} inputs")
    block = fitting[-1]
    while block > fitting[0] and -(-k // block) * block > k * _MOST_PADDING:
        block //= 2
    orders = [None if grid.groups is None else np.argsort(grid.groups, kind="stable") for grid in modules]
    if not all(_same(order, orders[0]) for order in orders):
        return Target(FP32, reason="its parts group their inputs in different orders")
    if orders[0] is not None and found.matrix.looks_up:
        return Target(FP32, reason="an embedding cannot be read with its inputs in another order")
    spec = WeightFormat(format=name, block_size=block, zero_point=not all(grid.symmetric for grid in modules))
    reason = formats.load(name).unfit(spec, found.matrix, opset)
    if reason:
        return Target(FP32, reason=reason)
    return Target(spec, origin, None if orders[0] is None else orders[0].astype(np.int32))


def _same(one: npt.NDArray[np.intp] | None, other: npt.NDArray[np.intp] | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _on_its_grid(name: str, rows: FloatMatrix, target: Target, grids: ImportedGrids) -> Quantized:
    """The integers of float32 [N, K], inputs in their own order, with the grid in the blocks of the target's format."""
    origin, spec = target.origin, target.spec
    assert origin is not None and spec.block_size is not None
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


def _plan(source: QuantizeSource, inventory: Inventory, targets: Mapping[str, Target], method: str) -> Plan:
    recipe = Recipe(name=RECIPE, description="integers of the checkpoint", algorithm=method, default=FP32)
    plan = make_plan(
        recipe,
        [found.matrix for found in inventory.found],
        layers=source.shape.layers if source.shape else inventory.layers,
        opset=source.opset,
        others=other_rows(source, inventory),
        table_bytes=unnamed_bytes(source, inventory),
        left_alone=inventory.left_alone,
    )
    planned = []
    for weight in plan.weights:
        target = targets[weight.matrix.name]
        size = formats.load(target.spec.format).nbytes(target.spec, weight.matrix)
        size += 0 if target.order is None else target.order.nbytes
        planned.append(PlannedWeight(weight.matrix, target.spec, target.spec, target.reason, weight.bytes_before, size))
    return replace(plan, weights=tuple(planned))


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
    _order_inputs(model.graph, inventory.found, contents.targets)
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
        weights=planned_rows(plan, others),
        quantization=Quantization(
            recipe=RECIPE,
            algorithm=f"{plan.recipe.algorithm} ({RECIPE})",
            bits_per_weight=round(plan.bits_per_weight, 4),
        ),
        files=record_files(staging),
    )
    write_manifest(staging, manifest)


def _order_inputs(graph: ir.Graph, weights: Sequence[Found], targets: Mapping[str, Target]) -> None:
    """Put a Gather before each product whose weight has its inputs in another order: kernels want a group's side by side."""
    gathered: dict[tuple[int, bytes], ir.Value] = {}
    for found in weights:
        order = targets[found.matrix.name].order
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
