"""The committed messages are what the interface gives, and the packages of gRPC are named where they are missing."""

from __future__ import annotations

import asyncio
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from grpc_tools import protoc

from aiasst.errors import MissingExtraError
from aiasst.serve import rpc
from aiasst.serve.service import Caller
from aiasst.serve.settings import ServeSettings
from tests.serve.fakes import FakeService

ROOT = Path(__file__).parents[3]
PROTO = "aiasst/serve/rpc/aiasst.proto"
WRITTEN = ("aiasst_pb2.py", "aiasst_pb2.pyi", "aiasst_pb2_grpc.py")


def test_the_messages_are_those_of_the_interface(tmp_path: Path) -> None:
    committed = (ROOT / PROTO).parent
    by = re.search(r"GRPC_GENERATED_VERSION = '(.*)'", (committed / "aiasst_pb2_grpc.py").read_text())
    assert by is not None
    if by[1] != version("grpcio-tools"):
        pytest.skip(f"written by grpcio-tools {by[1]}, which is not installed")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{ROOT}", *outputs, str(ROOT / PROTO)]) == 0
    for name in WRITTEN:
        assert (tmp_path / PROTO).with_name(name).read_bytes() == (committed / name).read_bytes(), "run `make proto`"


@pytest.mark.parametrize(("module", "package"), [("grpc", "grpcio"), ("grpc_health", "grpcio-health-checking")])
def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    for name in [
        name for name in sys.modules if name.partition(".")[0] == module or name.startswith("aiasst.serve.rpc.")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    with pytest.raises(MissingExtraError) as caught:
        asyncio.run(rpc.start(ServeSettings(grpc_port=0), FakeService(), lambda authorization, address: Caller()))
    assert caught.value.package == package
    assert "aiasst[serve]" in caught.value.hint
