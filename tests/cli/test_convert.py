"""`aiasst convert` as a person meets it: what it prints, and every bad input with its message and nothing left behind."""

from __future__ import annotations

import errno
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.cli import app
from tests import checkpoints
from tests.convert.imports import packers


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build("llama_tied", tmp_path_factory.mktemp("checkpoint") / "tiny-llama")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the program in this process: (exit code, stdout, stderr with its line breaks flattened)."""

    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["aiasst", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), printed.out, " ".join(printed.err.split())

    return start


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_shows_what_was_written_and_what_to_type_next(program: Any, llama: Path, tmp_path: Path) -> None:
    code, out, err = program("convert", llama, "-o", tmp_path / "out")
    assert code == 0
    for words in ("text-generation", "mobius", "largest difference", "100.0% of 256 tokens"):
        assert words in out
    assert f"aiasst quantize {tmp_path / 'out'} --bits 4" in err
    assert listing(tmp_path) == ["out"]


def test_json_is_one_document_on_stdout(program: Any, llama: Path, tmp_path: Path) -> None:
    code, out, err = program("convert", llama, "-o", tmp_path / "out", "--json", "--quiet")
    said = json.loads(out)
    assert code == 0
    assert err == ""
    assert (said["exporter"], said["task"], said["folder"]) == ("mobius", "text-generation", str(tmp_path / "out"))
    assert said["verification"]["max_abs_diff"] < 1e-4
    assert said["bytes"] == ModelFolder.open(tmp_path / "out").weight_bytes
    assert "weights" not in said


def test_the_output_is_named_after_the_model(
    program: Any, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert program("convert", llama, "-q")[0] == 0
    assert listing(tmp_path) == ["tiny-llama-onnx"]


def test_an_existing_output_is_replaced_only_by_force(program: Any, llama: Path, tmp_path: Path) -> None:
    assert program("convert", llama, "-o", tmp_path / "out", "-q")[0] == 0
    stamp = (tmp_path / "out" / "model.onnx").stat().st_mtime_ns
    code, _, err = program("convert", llama, "-o", tmp_path / "out", "-q")
    assert code == 1
    assert "already exists" in err
    assert "--force" in err
    assert (tmp_path / "out" / "model.onnx").stat().st_mtime_ns == stamp
    assert program("convert", llama, "-o", tmp_path / "out", "-q", "--force")[0] == 0
    assert (tmp_path / "out" / "model.onnx").stat().st_mtime_ns != stamp
    assert listing(tmp_path) == ["out"]


def test_force_spares_a_folder_that_is_not_ours(program: Any, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    code, _, err = program("convert", llama, "-o", tmp_path / "photos", "--force", "-q")
    assert code == 1
    assert "is not a model folder" in err
    assert listing(tmp_path / "photos") == ["one.jpg"]


def test_no_such_folder(program: Any, tmp_path: Path) -> None:
    code, _, err = program("convert", tmp_path / "absent", "-o", tmp_path / "out", "-q")
    assert code == 1
    assert "absent" in err
    assert listing(tmp_path) == []


def test_an_unknown_model_type_is_named_with_what_can_be_done(program: Any, llama: Path, tmp_path: Path) -> None:
    strange = shutil.copytree(llama, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    config |= {"model_type": "lamma", "architectures": ["LammaForCausalLM"]}
    (strange / "config.json").write_text(json.dumps(config))
    code, _, err = program("convert", strange, "-o", tmp_path / "out", "-q")
    assert code == 1
    assert "the model type 'lamma'" in err
    assert "mobius does not know" in err
    assert "known and near: llama" in err
    assert "upgrade" in err
    assert listing(tmp_path) == ["strange"]


def test_a_task_the_model_has_not(program: Any, llama: Path, tmp_path: Path) -> None:
    code, _, err = program(
        "convert", llama, "--task", "text-classification", "--exporter", "mobius", "-o", tmp_path / "out", "-q"
    )
    assert code == 1
    assert "nothing here exports the model type 'llama' for text-classification" in err
    assert "--task" in err


def test_an_unknown_exporter(program: Any, llama: Path, tmp_path: Path) -> None:
    code, _, err = program("convert", llama, "--exporter", "magic", "-o", tmp_path / "out", "-q")
    assert code == 1
    assert "no exporter 'magic'" in err
    assert "mobius" in err


def test_a_tolerance_exceeded_leaves_nothing(program: Any, llama: Path, tmp_path: Path) -> None:
    code, out, err = program(
        "convert", llama, "--tolerance", "1e-12", "--exporter", "mobius", "-o", tmp_path / "out", "-q"
    )
    assert (code, out) == (1, "")
    assert "differs from the original by" in err
    assert "nothing was written" in err
    assert listing(tmp_path) == []


def test_a_full_disk_is_found_before_the_work(
    program: Any, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, err = program("convert", llama, "-o", tmp_path / "deep" / "out", "-q")
    assert code == 1
    assert "free" in err
    assert "-o" in err
    assert listing(tmp_path) == []


def test_a_disk_that_fills_while_writing_leaves_nothing(
    program: Any, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("onnx_ir.save", full)
    code, _, err = program("convert", llama, "-o", tmp_path / "out", "-q")
    assert code == 1
    assert "the disk is full" in err
    assert listing(tmp_path) == []


def test_a_quantized_checkpoint_keeps_its_integers(program: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 192}
    folder = checkpoints.build("llama", tmp_path / "tiny-gptq", dtype="float16", **sizes)
    told = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
    packers.pack(folder, told, partial(packers.gptq_tensors, v1=True))
    code, out, err = program("convert", folder, "-o", tmp_path / "out", "--rest", "int8")
    assert code == 0
    for words in ("gptq (imported)", "8 int4-b32", "2 int8-b64"):
        assert words in out
    assert f"aiasst chat {tmp_path / 'out'}" in err
    code, out, _ = program("convert", folder, "-o", tmp_path / "float", "--dequantize", "--json", "-q")
    assert json.loads(out)["quantization"] is None
    code, _, err = program("convert", folder, "-o", tmp_path / "odd", "--rest", "fp4")
    assert code == 1
    assert "int8, int4" in err
    assert listing(tmp_path) == ["float", "out", "tiny-gptq"]
