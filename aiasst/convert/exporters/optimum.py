"""Exports with optimum-onnx, where it is importable: TorchScript, for those who hold to its export configurations.

optimum-onnx 0.1 needs transformers before 4.58, so it cannot stand beside the transformers exporter and is never
required. Knows optimum's calling, no attention and no finish.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from aiasst.convert.tracing import attention, operators, shapes, tidy, watching
from aiasst.errors import ExportError
from aiasst.progress import Progress, ProgressFn, silent

if TYPE_CHECKING:
    from aiasst.convert.sources import Checkpoint

_BEFORE = (4, 58)
"""The first transformers that optimum-onnx cannot work with."""
_FILE = "model.onnx"
_HINT = "try another exporter with --exporter"


def available() -> tuple[bool, str]:
    """Whether `optimum.exporters.onnx` can be imported, and what stands in its way."""
    if importlib.util.find_spec("optimum") is None:
        return False, "optimum is not installed"
    if (
        importlib.util.find_spec("optimum.exporters") is None
        or importlib.util.find_spec("optimum.exporters.onnx") is None
    ):
        return False, "optimum-onnx is not installed (it needs transformers before 4.58)"
    version = importlib.metadata.version("transformers")
    if tuple(int(part) for part in version.split(".")[:2]) >= _BEFORE:
        return False, f"optimum-onnx needs transformers before 4.58, {version} is installed"
    return True, f"optimum-onnx {importlib.metadata.version('optimum-onnx')} is installed"


def supports(checkpoint: Checkpoint, task: str) -> tuple[bool, str]:
    """Whether optimum has an export configuration for the model type and the task."""
    from optimum.exporters.tasks import TasksManager

    importlib.import_module("optimum.exporters.onnx.model_configs")  # registers what TasksManager then knows
    known, reason = watching.has_class(checkpoint, task)
    if not known:
        return known, reason
    name = checkpoint.model_type.replace("_", "-")
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(name, "onnx", library_name="transformers")
    except KeyError:
        return False, f"optimum has no export configuration for '{checkpoint.model_type}'"
    if task not in tasks:
        return False, f"optimum does not export '{checkpoint.model_type}' for {task}"
    return True, f"optimum knows '{checkpoint.model_type}' for {task}"


def export(checkpoint: Checkpoint, task: str, progress: ProgressFn = silent) -> ir.Model:
    """Load, export into a temporary folder, read back, tidy up.

    Raises:
        ExportError: optimum cannot export the model, or its attention is not what the graph can express.
    """
    decoder = task == watching.DECODER_TASK
    progress(Progress("export", 0, 3, "load"))
    with tempfile.TemporaryDirectory() as folder:
        with watching.watched(checkpoint, task) as watched:
            if watched.reach.switch is not None:
                raise ExportError(
                    "rotary frequencies that change with the length cannot be traced by TorchScript", _HINT
                )
            progress(Progress("export", 1, 3, "trace"))
            _script(watched.model, task, Path(folder) / _FILE)
        model = ir.load(Path(folder) / _FILE)
        # The temporary files go: their weights come into memory.
        ir.external_data.load_to_model(model)
    progress(Progress("export", 2, 3, "tidy up"))
    operators.restore_standard(model)
    tidy.keep_first_output(model.graph)
    tidy.tidy(model)
    shapes.tell(model.graph, watched.layers)
    tidy.settle(model)
    if decoder:
        attention.fuse(model, watched.layers, watched.reach, progress)
    tidy.drop_dead(model)
    progress(Progress("export", 3, 3, "done"))
    return model


def _script(model: Any, task: str, path: Path) -> None:
    """Trace `model` into the file `path`, with the inputs that optimum's export configuration names."""
    from optimum.exporters.onnx.convert import export_pytorch
    from optimum.exporters.tasks import TasksManager

    make = TasksManager.get_exporter_config_constructor("onnx", model, task=task, library_name="transformers")
    # Not optimum's `export`: that runs the result in ONNX Runtime, which does not know our markers.
    export_pytorch(model, make(model.config), opset=18, output=path, do_constant_folding=False)
