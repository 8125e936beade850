"""Which execution providers of ONNX Runtime really load. Asks the runtime; knows no hardware."""

from __future__ import annotations

from aiasst.artifacts.device import Provider
from aiasst.runtime import providers


def probe() -> tuple[Provider, ...]:
    """Every provider that the runtime knows, those that load first."""
    found: list[Provider] = []
    for name in providers.names():
        available, reason = providers.load(name).available()
        found.append(Provider(name=name, available=available, reason=reason))
    return tuple(sorted(found, key=lambda provider: not provider.available))
