"""What is planned together, the formats it may have, and the recipe that says which. Knows no loss and no budget.

A unit is all weights of one role in one layer, since that is what a rule of a recipe can name. Q, K and V are one unit, and gate
and up, so that products that read one activation stay alike; a tied embedding and head are one matrix already. Of a vocabulary
that was cut each range of tokens is a unit: frequent ones are worth more bits than rare ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.model_folder import Role
from aiasst.artifacts.recipe import FLOAT_ROLES, Recipe, Rule, WeightFormat
from aiasst.quantize.fitting import plan_weight
from aiasst.quantize.matrix import Matrix

FORMATS: tuple[WeightFormat, ...] = (
    WeightFormat(format="int2", block_size=128),
    WeightFormat(format="int2", block_size=64),
    WeightFormat(format="int4", block_size=256),
    WeightFormat(format="int4", block_size=128),
    WeightFormat(format="int4", block_size=128, zero_point=True),
    WeightFormat(format="int4", block_size=64),
    WeightFormat(format="int4", block_size=64, zero_point=True),
    WeightFormat(format="w8a8"),
    WeightFormat(format="int8", block_size=256),
    WeightFormat(format="int8", block_size=128),
    WeightFormat(format="fp16"),
    WeightFormat(format="fp32"),
)
"""What a planner may choose from, smallest first. Zero points take 2 to 6% off the error at 4 bits for 0.03 bits (story model) and
nothing at 2 bits; blocks of 32 have no fast kernel."""

# Of a vocabulary: 1/16, 1/8, 1/4 and 1/2 of it are worth a cut; fewer rows are not worth a node.
_MOST_CUTS, _FEWEST_ROWS = 4, 256

_TOGETHER: dict[Role, str] = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


@dataclass(frozen=True)
class Candidate:
    """A format that a unit may have."""

    spec: WeightFormat
    """What the recipe says."""
    chosen: tuple[WeightFormat, ...]
    """What each matrix of the unit gets by it (smaller blocks where K is small)."""
    nbytes: int
    """Of all matrices of the unit, scales and padding included."""

    @property
    def label(self) -> str:
        """Short name of the format."""
        return self.spec.label


@dataclass(frozen=True)
class Unit:
    """Weights that get one format."""

    role: str
    """Of all of them together: qkv, o, gate_up, down, lm_head, embed, …"""
    layer: int | None
    matrices: tuple[Matrix, ...]
    candidates: tuple[Candidate, ...]

    @property
    def title(self) -> str:
        """For messages and tables: `down 3`, `lm_head`, `lm_head 0-1024`."""
        if self.tokens is not None:
            return f"{self.role} {self.tokens[0]}-{self.tokens[1]}"
        return self.role if self.layer is None else f"{self.role} {self.layer}"

    @property
    def tokens(self) -> tuple[int, int] | None:
        """First token, and the one behind the last, of a piece of a vocabulary; None for everything else."""
        matrix = self.matrices[0]
        return None if matrix.vocabulary is None else (matrix.first_row, matrix.first_row + matrix.n)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles by which a recipe names it."""
        return tuple(dict.fromkeys(matrix.planned_role for matrix in self.matrices))

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return sum(matrix.elements for matrix in self.matrices)


def find_units(
    matrices: Iterable[Matrix], *, layers: int, opset: int, formats: Sequence[WeightFormat] = FORMATS
) -> tuple[Unit, ...]:
    """The units of a model of `layers` layers, in the order of their first weights. What always stays fp32 is in none."""
    groups: dict[tuple[str, int | None, int], list[Matrix]] = {}
    for matrix in matrices:
        role = matrix.planned_role
        if role not in FLOAT_ROLES:
            groups.setdefault((_TOGETHER.get(role, role), matrix.layer, matrix.first_row), []).append(matrix)
    return tuple(
        Unit(role, layer, tuple(group), _candidates(group, layers, opset, formats))
        for (role, layer, _), group in groups.items()
    )


def candidate_cuts(matrix: Matrix) -> tuple[int, ...]:
    """Where a vocabulary may be cut: each piece twice as long as the one before, the first at least `_FEWEST_ROWS`."""
    cuts: list[int] = []
    end = matrix.n
    while len(cuts) < _MOST_CUTS and end // 2 >= _FEWEST_ROWS:
        end //= 2
        cuts.append(end)
    return tuple(reversed(cuts))


def _candidates(
    group: Sequence[Matrix], layers: int, opset: int, formats: Sequence[WeightFormat]
) -> tuple[Candidate, ...]:
    """Each of `formats`, as the plan would have it; those that come to the same as one before are left out."""
    found: dict[tuple[WeightFormat, ...], Candidate] = {}
    for spec in formats:
        recipe = Recipe(name="candidate", description="", default=spec)
        weights = [plan_weight(recipe, matrix, layers=layers, opset=opset) for matrix in group]
        chosen = tuple(weight.chosen for weight in weights)
        size = sum(weight.bytes_after for weight in weights)
        # The plan's own name for it, where that is one: the recipe should say what will be done.
        named = chosen[0] if len(set(chosen)) == 1 else spec
        found.setdefault(chosen, Candidate(named, chosen, size))
    return tuple(found.values())


def sizes(units: Sequence[Unit], columns: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """(bytes, allowed), [units, columns] each; a column is a format's label, and a unit that lacks it is not allowed there."""
    nbytes = np.zeros((len(units), len(columns)), dtype=np.int64)
    allowed = np.zeros((len(units), len(columns)), dtype=np.bool_)
    for row, unit in enumerate(units):
        for candidate in unit.candidates:
            column = columns.index(candidate.label)
            nbytes[row, column], allowed[row, column] = candidate.nbytes, True
    return nbytes, allowed


def columns_of(units: Sequence[Unit]) -> tuple[str, ...]:
    """The labels of all candidates, in the order of `FORMATS`, what small matrices need between them."""
    labels = dict.fromkeys(spec.label for spec in FORMATS)
    for unit in units:
        labels |= dict.fromkeys(candidate.label for candidate in unit.candidates)
    used = {candidate.label for unit in units for candidate in unit.candidates}
    return tuple(label for label in labels if label in used)


def recipe_of(
    units: Sequence[Unit], chosen: Mapping[Unit, WeightFormat], *, name: str, description: str, algorithm: str
) -> Recipe:
    """The recipe that gives each unit its format, in as few rules as roles and layers allow."""
    default = _most_common(units, chosen)
    layerless = {role for unit in units if unit.layer is None for role in unit.roles}
    rules = [
        Rule(roles=unit.roles, use=chosen[unit])
        for unit in units
        if unit.layer is None and unit.tokens is None and chosen[unit] != default
    ]
    rules += _rules_of_rows([unit for unit in units if unit.tokens is not None], chosen, default)
    members: dict[tuple[tuple[Role, ...], WeightFormat], list[int]] = {}
    everywhere: dict[tuple[Role, ...], set[WeightFormat]] = {}
    for unit in units:
        if unit.layer is not None:
            members.setdefault((unit.roles, chosen[unit]), []).append(unit.layer)
            everywhere.setdefault(unit.roles, set()).add(chosen[unit])
    for (roles, spec), layers in members.items():
        shared = layerless.intersection(roles)
        if spec == default and not shared:
            continue
        whole = len(everywhere[roles]) == 1 and not shared
        rules.append(Rule(roles=roles, layers=None if whole else tuple(sorted(layers)), use=spec))
    return Recipe(name=name, description=description, algorithm=algorithm, default=default, rules=tuple(rules))


def _rules_of_rows(pieces: Sequence[Unit], chosen: Mapping[Unit, WeightFormat], default: WeightFormat) -> list[Rule]:
    """For each vocabulary the format of its last piece, then of ever fewer of its first rows; alike neighbours are one."""
    rules: list[Rule] = []
    for role in dict.fromkeys(unit.role for unit in pieces):
        above = default
        for unit in reversed([unit for unit in pieces if unit.role == role]):
            assert unit.tokens is not None
            last = unit.tokens[1] == unit.matrices[0].vocabulary
            if chosen[unit] != above:
                rules.append(Rule(roles=unit.roles, rows=None if last else f"first {unit.tokens[1]}", use=chosen[unit]))
            above = chosen[unit]
    return rules


def _most_common(units: Sequence[Unit], chosen: Mapping[Unit, WeightFormat]) -> WeightFormat:
    """The format of most weights."""
    share: dict[WeightFormat, int] = {}
    for unit in units:
        share[chosen[unit]] = share.get(chosen[unit], 0) + unit.elements
    return max(share, key=lambda spec: share[spec])
