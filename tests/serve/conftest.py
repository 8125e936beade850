"""Model folders to serve: the shipped story model, the same with chat templates, and tiny random ones in fp32."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aiasst.artifacts.model_folder import ModelFolder, record_files, write_manifest
from aiasst.artifacts.shipped import default_model
from aiasst.errors import ArtifactError

PLAIN = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% if polite %}Please.\n{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def with_template(source: Path, folder: Path, template: str) -> Path:
    """A copy of a model folder with a chat template."""
    shutil.copytree(source, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    manifest = ModelFolder.open(folder).manifest
    write_manifest(folder, manifest.model_copy(update={"files": record_files(folder)}))
    return folder


@pytest.fixture(scope="session")
def story() -> Path:
    try:
        return default_model()
    except ArtifactError as absent:
        pytest.skip(absent.message)


@pytest.fixture(scope="session")
def chatty(story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story model with a template that knows messages alone."""
    return with_template(story, tmp_path_factory.mktemp("chatty") / "chatty", PLAIN)


@pytest.fixture(scope="session")
def tooled(story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story model with a template that knows tools, and a switch."""
    return with_template(story, tmp_path_factory.mktemp("tooled") / "tooled", TOOLS)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder in fp32, whose answers do not depend on their company."""
    from aiasst.convert import convert
    from tests import checkpoints

    place = tmp_path_factory.mktemp("tiny")
    return convert(checkpoints.build("llama_tied", place / "checkpoint", chat_template=True), place / "tiny").path


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder in fp32."""
    from aiasst.convert import convert
    from tests import checkpoints

    place = tmp_path_factory.mktemp("bert")
    return convert(checkpoints.build("bert", place / "checkpoint"), place / "bert").path
