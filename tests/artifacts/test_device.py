"""device.json: what is written is read, what is unknown is refused, and every key is in the documentation."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from aiasst.artifacts import document
from aiasst.artifacts.device import DeviceConfig, load_device_config, refuse_existing_config, save_device_config
from aiasst.artifacts.document import Document
from aiasst.errors import ArtifactError, ResourceError
from aiasst.profile import quick_config

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "device.md"


@pytest.fixture(scope="module")
def config() -> DeviceConfig:
    return quick_config(None)


def keys(model: type[Document], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all values; [] behind what is a list."""
    for name, field in model.model_fields.items():
        yield from keys_of(field.annotation, prefix + name)


def keys_of(annotation: Any, path: str) -> Iterator[str]:
    inner = [part for part in get_args(annotation) if part not in (type(None), Ellipsis)]
    if isinstance(annotation, type) and issubclass(annotation, Document):
        yield from keys(annotation, f"{path}.")
    elif get_origin(annotation) is tuple:
        yield from keys_of(inner[0], f"{path}[]")
    elif inner and get_origin(annotation) is not None and str(get_origin(annotation)) != "typing.Literal":
        yield from keys_of(inner[0], path)
    else:
        yield path


def test_every_key_is_documented_and_no_other() -> None:
    documented = re.findall(r"^\| `([^`]+)` \|", DOCUMENTATION.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(keys(DeviceConfig))


def test_what_is_written_is_read(tmp_path: Path, config: DeviceConfig) -> None:
    save_device_config(tmp_path / "device.json", config)
    assert load_device_config(tmp_path / "device.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


def changed(tmp_path: Path, config: DeviceConfig, *path: str, value: Any) -> Path:
    """device.json with one value put at `path`."""
    data = config.model_dump(mode="json")
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = tmp_path / "device.json"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("decisions", "theads"), 3, "unknown key 'decisions.theads'"),
        (("turbo",), True, "unknown key 'turbo'"),
        (("decisions", "threads", "value"), 0, "'decisions.threads.value': Input should be greater than or equal to 1"),
        (("decisions", "slots", "value"), "many", "'decisions.slots.value'"),
        (("decisions", "affinity", "value"), [-1], "'decisions.affinity.value.0'"),
        (("hardware", "caches"), [{"level": 1}], "missing key 'hardware.caches.0.kind'"),
        (("schema_version",), 3, "has schema version 3, this program reads 1 and 2"),
    ],
)
def test_a_wrong_key_or_value_is_named(
    tmp_path: Path, config: DeviceConfig, path: tuple[str, ...], value: Any, said: str
) -> None:
    with pytest.raises(ArtifactError) as refused:
        load_device_config(changed(tmp_path, config, *path, value=value))
    assert said in refused.value.message
    assert "device.json" in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not valid JSON"), ("[]", "is no device config"), ("1", "is no device")]
)
def test_what_is_no_config(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "device.json"
    file.write_text(text)
    with pytest.raises(ArtifactError, match=said):
        load_device_config(file)
    with pytest.raises(ArtifactError, match="there is no device config"):
        load_device_config(tmp_path / "absent.json")


def test_an_edited_value_is_kept(tmp_path: Path, config: DeviceConfig) -> None:
    file = changed(tmp_path, config, "decisions", "threads", "value", value=3)
    assert load_device_config(file).decisions.threads.value == 3


def test_a_file_of_the_first_version_is_read(tmp_path: Path, config: DeviceConfig) -> None:
    data = config.model_dump(mode="json") | {"schema_version": 1}
    for key in ("attention", "overheads", "loading"):
        del data["costs"][key]
    for key in ("spinning", "chunk"):
        del data["decisions"][key]
    data["costs"]["matmul"] = [
        {
            "format": "int4-b128",
            "rows": 1,
            "k": 8,
            "n": 8,
            "threads": 1,
            "microseconds": 1,
            "gigamacs_per_second": 1,
            "noise": 0,
        }
    ]
    file = tmp_path / "device.json"
    file.write_text(json.dumps(data))
    read = load_device_config(file)
    assert read.schema_version == 2
    assert not read.costs.matmul[0].cached
    assert (read.decisions.spinning.value, read.decisions.chunk.value) == (True, 256)


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    refuse_existing_config(file, force=False)
    file.write_text("mine")
    with pytest.raises(ArtifactError, match="already exists"):
        refuse_existing_config(file, force=False)
    refuse_existing_config(file, force=True)
    with pytest.raises(ArtifactError, match="is a folder"):
        refuse_existing_config(tmp_path, force=True)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, config: DeviceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "device.json"
    file.write_text("old")

    def full(self: Path, *_: Any, **__: Any) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(document.Path, "write_text", full)
    with pytest.raises(ResourceError, match="disk is full"):
        save_device_config(file, config)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


def test_a_missing_folder_is_named(tmp_path: Path, config: DeviceConfig) -> None:
    with pytest.raises(ResourceError, match="there is no folder"):
        save_device_config(tmp_path / "absent" / "device.json", config)
