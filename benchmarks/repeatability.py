"""How far two profiles of one quiet machine lie apart: the median and the worst difference of each kind of cost.

usage: repeatability.py [--full] [--keep FOLDER]          two profiles now
       repeatability.py --of FIRST.json SECOND.json       two that were written before
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiasst.artifacts.device import Costs, DeviceConfig, load_device_config, save_device_config
from aiasst.profile import profile
from measure import machine, print_table

WANTED = 0.10
_FIGURES = {"microseconds", "gigabytes_per_second", "load_gigabytes_per_second", "packed_gigabytes_per_second"}
_NO_KEY = _FIGURES | {"gigamacs_per_second", "noise"}


@dataclass(frozen=True)
class Difference:
    """One figure of both profiles."""

    kind: str
    name: str
    first: float
    second: float

    @property
    def share(self) -> float:
        """Of the smaller one: 0.1 is a tenth."""
        return max(self.first, self.second) / min(self.first, self.second) - 1


def differences(first: Costs, second: Costs) -> list[Difference]:
    """Of all figures that both have."""
    other = dict(figures(second))
    return [Difference(*key, value, other[key]) for key, value in figures(first) if key in other]


def figures(costs: Costs) -> Iterator[tuple[tuple[str, str], float]]:
    """((kind, name), value) of everything that was measured."""
    for kind, points in costs.model_dump().items():
        for point in points:
            name = " ".join(f"{key}={value}" for key, value in point.items() if key not in _NO_KEY)
            for figure in _FIGURES & point.keys():
                yield (kind, f"{name} {figure}"), point[figure]


def table(found: list[Difference]) -> list[list[str]]:
    """A row a kind of cost, and one of all."""
    kinds = list(dict.fromkeys(one.kind for one in found))
    rows = []
    for kind in (*kinds, "all"):
        of_kind = [one for one in found if kind in (one.kind, "all")]
        worst = max(of_kind, key=lambda one: one.share)
        within = sum(one.share < WANTED for one in of_kind)
        rows.append([
            kind, f"{len(of_kind)}", f"{statistics.median(one.share for one in of_kind):.1%}", f"{worst.share:.1%}",
            f"{within / len(of_kind):.1%}", f"{worst.name}: {worst.first:g}, {worst.second:g}",
        ])  # fmt: skip
    return rows


def measured(full: bool, keep: Path | None) -> list[DeviceConfig]:
    configs = []
    for number in (1, 2):
        began = time.perf_counter()
        configs.append(profile(full=full))
        print(f"profile {number}: {time.perf_counter() - began:.1f} s", flush=True)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            save_device_config(keep / f"device-{number}.json", configs[-1])
    return configs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the two device configs")
    parser.add_argument("--of", nargs=2, type=Path, metavar="FILE")
    parser.add_argument("--worst", type=int, default=0, help="name so many figures")
    arguments = parser.parse_args()
    print(machine())
    configs = [load_device_config(path) for path in arguments.of or ()] or measured(arguments.full, arguments.keep)
    found = differences(*(config.costs for config in configs))
    columns = ["cost", "figures", "median", "worst", f"below {WANTED:.0%}", "the worst: first, second"]
    print_table(columns, table(found))
    for one in sorted(found, key=lambda one: one.share, reverse=True)[: arguments.worst]:
        print(f"{one.share:.1%} {one.kind} {one.name}: {one.first:g}, {one.second:g}")


if __name__ == "__main__":
    main()
