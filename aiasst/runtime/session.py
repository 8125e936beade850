"""Sessions: a graph that runs (GraphSession), and a causal decoder whose cache is bound by pointer (DecoderSession).

Knows names of inputs and outputs from `signature` alone; knows no request, no sampling and no tokenizer.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import ArtifactError, ResourceError
from aiasst.runtime import pages, providers
from aiasst.runtime.foreign import translated
from aiasst.runtime.settings import SessionSettings, session_options, settings_from

__all__ = ["DecoderSession", "GraphSession", "SessionSettings", "settings_from"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
# Builds of ONNX Runtime for Windows report events to their vendor unless told not to; on other systems this does nothing.
ort.disable_telemetry_events()

_shared: weakref.WeakValueDictionary[tuple[str, str, SessionSettings], GraphSession] = weakref.WeakValueDictionary()
_opening = threading.Lock()

_LARGE = 16 * 2**20
"""Bytes that a session must have taken before it is worth a look at where they lie."""
_MAX_BINDINGS = 64
"""Prepared bindings that are kept: one a row for prefill and one a number of active rows, for up to 32 rows."""


class GraphSession:
    """A graph opened in ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession, name: str, weights: Mapping[str, Array] | None = None) -> None:
        self.session = session
        self.name = name
        self._weights = dict(weights or {})
        self._inputs = {i.name: i for i in session.get_inputs() if i.name not in self._weights}
        self._optional = {i.name: i for i in session.get_overridable_initializers()}
        self._outputs = {o.name: o for o in session.get_outputs()}

    @classmethod
    def open(
        cls,
        model: Path | bytes,
        settings: SessionSettings | None = None,
        weights: Mapping[str, Array] | None = None,
        *,
        settled: bool = False,
    ) -> GraphSession:
        """Open the graph at a path (its external weights are memory-mapped), or one in memory.

        Args:
            model: A file, or the bytes of one.
            settings: What to run on.
            weights: Inputs of the graph that get the same C-contiguous arrays at every run, memory-mapped ones as well.
                They are neither copied nor packed: float products run a tenth slower, and memory holds nothing twice.
                (External initializers handed over as arrays are copied by ONNX Runtime 1.31, and then packed.)
            settled: Return when the weights lie where they will stay (see `pages`); else they are moved beside the first runs.

        Raises:
            ArtifactError: no graph, or one that ONNX Runtime refuses.
            ResourceError: the execution provider does not load, or memory is short.
        """
        settings = settings or SessionSettings()
        provider = providers.load(settings.provider)
        if provider.NAME not in ort.get_available_providers():
            raise _not_here(settings.provider, provider)
        name = model.name if isinstance(model, Path) else "the graph in memory"
        before = pages.resident_bytes()
        with translated(name):
            session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                session_options(settings),
                providers=_with_fallback(provider.NAME, provider.options(settings)),
            )
        if session.get_providers()[0] != provider.NAME:
            raise _not_here(settings.provider, provider)
        if settings.prepack and pages.resident_bytes() - before >= _LARGE:
            if settled:
                pages.move_to_huge_pages()
            else:
                pages.move_later()
        return cls(session, name, weights)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs that must be fed."""
        return tuple(self._inputs)

    @property
    def optional_names(self) -> tuple[str, ...]:
        """Inputs with a default (overridable initializers)."""
        return tuple(self._optional)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Outputs."""
        return tuple(self._outputs)

    def input_shape(self, name: str) -> tuple[int | str | None, ...]:
        """Shape of an input; a dimension is a number, a symbol's name or None (unknown)."""
        return tuple((self._inputs | self._optional)[name].shape)

    def output_shape(self, name: str) -> tuple[int | str | None, ...]:
        """Shape of an output; see `input_shape`."""
        return tuple(self._outputs[name].shape)

    def input_dtype(self, name: str) -> np.dtype[Any]:
        """Element type of an input."""
        return _dtype((self._inputs | self._optional)[name].type)

    def output_dtype(self, name: str) -> np.dtype[Any]:
        """Element type of an output."""
        return _dtype(self._outputs[name].type)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Run once; arrays in, arrays out, in the order of `outputs` (None: all, in the graph's order).

        Raises:
            ArtifactError: the graph refuses the feeds or fails.
            ResourceError: memory is short.
        """
        with translated(self.name):
            results: list[Array] = self.session.run(
                None if outputs is None else list(outputs), {**self._weights, **feeds}
            )
        return results

    def end_profiling(self) -> Path:
        """Switch the profiler off that `SessionSettings.profile` asked for; the file with its profile."""
        return Path(self.session.end_profiling())


@dataclass
class _Binding:
    """A prepared IOBinding and the arrays it points into, held weakly: a cache that was replaced must not stay in memory."""

    io: ort.IOBinding
    arrays: tuple[weakref.ref[Array], ...]

    def points_to(self, arrays: Sequence[Array]) -> bool:
        return len(self.arrays) == len(arrays) and all(ref() is a for ref, a in zip(self.arrays, arrays, strict=True))


class DecoderSession:
    """A causal decoder, step by step, on a cache that the caller owns. Not safe for two threads at once.

    Past and present of every layer are bound to the same memory, so that a step writes the new tokens' keys and values
    behind those that are there and copies nothing.
    """

    def __init__(self, graph: GraphSession, *, context_length: int, vocab_size: int = 0, weight_bytes: int = 0) -> None:
        """Wrap an open graph; `vocab_size` is needed only where the graph does not tell it. Raises ArtifactError: no decoder."""
        self.graph = graph
        self.context_length = context_length
        self.weight_bytes = weight_bytes
        """Bytes of the weights on disk."""
        self.layers = _count_layers(graph)
        shape = graph.input_shape(signature.past_key(0))
        self.kv_heads, self.head_dim = _fixed(shape[1], graph.name), _fixed(shape[3], graph.name)
        self.cache_dtype = graph.input_dtype(signature.past_key(0))
        self._logits_dtype = graph.output_dtype(signature.LOGITS)
        self.vocab_size = vocab_size or _fixed(graph.output_shape(signature.LOGITS)[2], graph.name)
        self._can_prune = signature.ALL_LOGITS in graph.optional_names
        self._pairs = signature.cache_pairs(self.layers)
        self._positions = np.arange(context_length, dtype=np.int64)
        self._true = np.array(True)
        self._bindings: dict[tuple[int, bool], _Binding] = {}
        self._logits = np.empty((0, 1, self.vocab_size), self._logits_dtype)

    @classmethod
    def open(
        cls, folder: ModelFolder, settings: SessionSettings | None = None, *, twin: bool = False
    ) -> DecoderSession:
        """Open the decoder of a model folder, or its second form where `twin`.

        While one is open, another of the same folder and settings shares its weights: a cache and bindings of its own, run
        from a thread of its own, and nothing in memory twice.

        Raises:
            ArtifactError: the folder is no causal decoder, has no second form, or the graph is damaged.
            ResourceError: the execution provider does not load, or memory is short.
        """
        shape = folder.manifest.shape
        if shape is None:
            raise ArtifactError(f"{folder.path} holds a foreign graph, no text generator", _HINT)
        if twin and folder.manifest.twin is None:
            raise ArtifactError(f"{folder.path} has no second form", "write one: aiasst quantize DIR --bits 4 --twin")
        return cls(
            _open_shared(folder, folder.twin_graph if twin else folder.graph, settings or SessionSettings()),
            context_length=shape.context_length,
            vocab_size=shape.vocab_size,
            weight_bytes=folder.twin_weight_bytes if twin else folder.weight_bytes,
        )

    def step(self, ids: Ids, lengths: Sequence[int], cache_rows: Sequence[Array], all_logits: bool = False) -> Floats:
        """Run the new tokens of some rows through the model.

        Args:
            ids: int64 [rows, new]; several new tokens of several rows only where all rows begin (nothing in the cache).
            lengths: tokens of each row, the new ones included.
            cache_rows: per cache tensor (order of `signature.cache_pairs`) a C-contiguous array
                [rows, kv_heads, capacity, head_dim]; written to. Pass the same array objects again and the binding is reused.
            all_logits: for every new token, not only the last of each row.

        Returns:
            float32 [rows, vocabulary], valid until the next step; with `all_logits` a new array [rows, new, vocabulary].

        Raises:
            ValueError: the lengths contradict the ids (a mistake of the caller).
            ArtifactError: the graph fails.
            ResourceError: memory is short.
        """
        rows, new = ids.shape
        longest = max(lengths)
        if longest > cache_rows[0].shape[2] or min(lengths) < new or (rows > 1 and new > 1 and longest > new):
            raise ValueError(
                f"lengths {list(lengths)} do not go with ids {ids.shape} and a cache of {cache_rows[0].shape}"
            )
        ids = np.ascontiguousarray(ids, np.int64)
        mask = (self._positions[:longest] < np.asarray(lengths, np.int64)[:, None]).astype(np.int64)
        io = self._binding(cache_rows, all_logits).io
        with translated(self.graph.name):
            _bind(io.bind_input, signature.INPUT_IDS, ids)
            _bind(io.bind_input, signature.ATTENTION_MASK, mask)
            logits = self._logits_for(rows, new, all_logits)
            _bind(io.bind_output, signature.LOGITS, logits)
            self.graph.session.run_with_iobinding(io)
        wanted = logits if all_logits else logits[:, -1]
        return wanted.astype(np.float32, copy=False)

    def _logits_for(self, rows: int, new: int, all_logits: bool) -> Array:
        """The array that the step writes its logits into: reused while the shape stays, new for the caller to keep otherwise."""
        shape = (rows, new if all_logits or not self._can_prune else 1, self.vocab_size)
        if all_logits:
            return np.empty(shape, self._logits_dtype)
        if self._logits.shape != shape:
            self._logits = np.empty(shape, self._logits_dtype)
        return self._logits

    def _binding(self, cache_rows: Sequence[Array], all_logits: bool) -> _Binding:
        key = (id(cache_rows[0]), all_logits)
        binding = self._bindings.get(key)
        if binding is not None and binding.points_to(cache_rows):
            return binding
        if len(self._bindings) >= _MAX_BINDINGS:
            self._bindings.clear()
        io = self.graph.session.io_binding()
        with translated(self.graph.name):
            for (past, present), array in zip(self._pairs, cache_rows, strict=True):
                _bind(io.bind_input, past, array)
                _bind(io.bind_output, present, array)
            if all_logits and self._can_prune:
                # By pointer: binding it as an array fails, because ONNX Runtime looks among the required inputs only.
                _bind(io.bind_input, signature.ALL_LOGITS, self._true)
        binding = _Binding(io, tuple(weakref.ref(array) for array in cache_rows))
        self._bindings[key] = binding
        return binding


def _open_shared(folder: ModelFolder, path: Path, settings: SessionSettings) -> GraphSession:
    """The graph of a folder that is open already (runs of one session do not disturb each other), or a new one."""
    key = (str(path.resolve()), folder.identity, settings)
    with _opening:
        graph = _shared.get(key)
        if graph is None:
            graph = _shared[key] = GraphSession.open(path, settings)
        return graph


_HINT = "convert a checkpoint that generates text: aiasst convert MODEL --task text-generation"


def _bind(bind: Any, name: str, array: Array) -> None:
    if not array.flags.c_contiguous:
        raise ValueError(f"the array for {name} is not contiguous")
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _count_layers(graph: GraphSession) -> int:
    inputs, outputs = set(graph.input_names), set(graph.output_names)
    layers = 0
    while signature.past_key(layers) in inputs:
        layers += 1
    known = {signature.INPUT_IDS, signature.ATTENTION_MASK, *(past for past, _ in signature.cache_pairs(layers))}
    wanted = {signature.LOGITS, *(present for _, present in signature.cache_pairs(layers))}
    if layers == 0 or inputs != known or not wanted <= outputs:
        raise ArtifactError(f"{graph.name} is no causal decoder with a cache", _HINT)
    return layers


def _fixed(size: int | str | None, name: str) -> int:
    if not isinstance(size, int):
        raise ArtifactError(f"{name} does not tell the size of its cache or vocabulary", _HINT)
    return size


def _dtype(text: str) -> np.dtype[Any]:
    if text not in _DTYPES:
        raise ArtifactError(f"the graph uses {text}, which this program does not know", "convert the checkpoint again")
    return np.dtype(_DTYPES[text])


def _with_fallback(name: str, options: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    # Nodes that a provider does not know run on the CPU.
    chosen = [(name, options)]
    return chosen if name == "CPUExecutionProvider" else [*chosen, ("CPUExecutionProvider", {})]


def _not_here(name: str, provider: providers.ProviderModule) -> ResourceError:
    _, reason = provider.available()
    return ResourceError(
        f"the execution provider '{name}' cannot be used: {reason}", "aiasst profile shows what loads here"
    )
