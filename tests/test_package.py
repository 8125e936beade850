"""The public face: its names, and what an import of it must not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import aiasst

# typer itself loads pydantic to show the options of a command.
HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "onnx_ir", "mobius", "optimum", "numpy", "huggingface_hub")


def loaded_by(code: str) -> set[str]:
    listing = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; sys.stderr.write(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(listing.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import aiasst",
        "import sys, aiasst.cli.app as a; sys.argv = ['aiasst', '--help']\ntry: a.main()\nexcept SystemExit: pass",
        "import sys, aiasst.cli.app as a; sys.argv = ['aiasst', 'quantize', '--help']\ntry: a.main()\nexcept SystemExit: pass",
    ],
    ids=["import", "help", "command help"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert loaded_by(code).isdisjoint(HEAVY)


def test_every_public_name_is_there() -> None:
    assert all(getattr(aiasst, name) is not None for name in aiasst.__all__)
    assert sorted(aiasst.__all__) == dir(aiasst)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        aiasst.nonsense  # noqa: B018


def test_a_stage_can_be_called_however_it_was_imported() -> None:
    """`aiasst.profile` is a module once anybody has imported it; it must go on being the function."""
    code = (
        "import aiasst.profile, aiasst.convert, aiasst.quantize\n"
        "from aiasst import convert, profile, quantize\n"
        "assert callable(convert) and callable(quantize)\n"
        "assert profile(measure=False).schema_version == 2\n"
        "assert aiasst.profile.quick_config is not None"
    )
    assert "aiasst.profile.decide" in loaded_by(code)


def test_the_light_runtime_needs_no_torch() -> None:
    """run, chat, profile, advise and inspect work in an installation without the extra `convert`."""
    block = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'onnx', 'onnx_ir', 'mobius', 'optimum', 'safetensors'}:\n"
        "            raise ImportError(f'{name} is not part of the light runtime')\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    modules = ("run", "chat", "profile.advise", "convert.sources.peek", "cli.advice_view", "engine.text", "evaluate")
    loaded = loaded_by(block + "".join(f"import aiasst.{module}\n" for module in modules))
    assert "aiasst.engine.text" in loaded
