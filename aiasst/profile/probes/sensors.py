"""Which readings of energy, heat and clocks there are, and which are missing and why. Reads no value."""

from __future__ import annotations

from pathlib import Path

from aiasst.artifacts.device import SensorFact
from aiasst.profile.host import Host
from aiasst.sensors import Place, find
from aiasst.sensors.reading import installed


def probe(host: Host) -> tuple[SensorFact, ...]:
    """What can be read first."""
    # Libraries tell of this machine only, not of a tree of fixtures.
    here = host.root == Path("/")
    found = find(Place(host.root, installed if here else lambda _: None))
    there = [SensorFact(source=s.source, kind=s.kind, name=s.name, available=True) for s in found.sensors]
    missing = [SensorFact(source=m.source, name=m.name, available=False, reason=m.reason) for m in found.missing]
    return (*there, *missing)
