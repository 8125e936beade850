"""The recipe: which weight gets which format, and by which algorithm. Knows no packing and no graph.

A recipe is a YAML file (`recipes/*.yaml`, or the user's own): a default and rules by role and layer; the last rule that
matches a weight decides. `plan` in the quantize stage turns it into one `WeightFormat` a weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from aiasst.artifacts.document import Document, read_yaml
from aiasst.artifacts.model_folder import Role
from aiasst.artifacts.shipped import data_folder
from aiasst.errors import ArtifactError

FormatName = Literal["fp32", "fp16", "int8", "int4", "int2", "w8a8", "w8a8_static"]
# Of these the inputs of products are rounded to ranges that a calibration text tells.
RANGED_FORMATS = frozenset({"w8a8_static"})
CacheFormat = Literal["float", "int8"]
"""How keys and values of earlier tokens are kept: float is as the graph has it."""
BLOCK_FORMATS = frozenset({"int8", "int4", "int2"})
BLOCK_SIZES = (32, 64, 128, 256)
INT2_BLOCK_SIZES = (32, 64, 128)
# A padded weight takes bytes and time like any other: beyond this, a smaller block is both smaller and faster.
_MOST_PADDING = 1.25
# Read by other operators than products and embedding lookups: these stay fp32 whatever a recipe says.
_STUCK_ROLES: frozenset[Role] = frozenset({"norm", "bias", "rotary"})
# Small: these stay fp32 unless a rule names them.
FLOAT_ROLES: frozenset[Role] = _STUCK_ROLES | {"position_embed", "type_embed"}
# Matrices with a row for each token: a rule may speak of some of the rows.
VOCABULARY_ROLES: frozenset[Role] = frozenset({"embed", "lm_head"})


class WeightFormat(Document):
    """One precision: the format's name and, for the blockwise ones, the block size along K and the kind of zero point."""

    format: FormatName
    block_size: int | None = None
    zero_point: bool = False
    """False: symmetric. True: a uint8 zero point a block."""

    @model_validator(mode="after")
    def _consistent(self) -> WeightFormat:
        if self.format not in BLOCK_FORMATS:
            if self.block_size is not None or self.zero_point:
                raise ValueError(f"{self.format} has neither block_size nor zero_point")
            return self
        allowed = INT2_BLOCK_SIZES if self.format == "int2" else BLOCK_SIZES
        if self.block_size not in allowed:
            raise ValueError(
                f"{self.format} needs a block_size of {', '.join(map(str, allowed))}, not {self.block_size}"
            )
        return self

    @property
    def label(self) -> str:
        """Short name for tables and the manifest: int4-b128, int4-b128-zp, w8a8."""
        if self.block_size is None:
            return self.format
        return f"{self.format}-b{self.block_size}" + ("-zp" if self.zero_point else "")

    def padded(self, k: int) -> int:
        """What `k` inputs become in whole blocks."""
        return k if self.block_size is None else -(-k // self.block_size) * self.block_size

    def fitting(self, k: int) -> WeightFormat:
        """The same format, with blocks so small that `k` inputs are not padded by more than a quarter."""
        spec = self
        while spec.block_size is not None and spec.block_size > BLOCK_SIZES[0] and spec.padded(k) > k * _MOST_PADDING:
            spec = spec.model_copy(update={"block_size": spec.block_size // 2})
        return spec


class Rule(Document):
    """Weights of these roles (all when empty) in these layers (all when None) get this format."""

    roles: tuple[Role, ...] = ()
    layers: str | tuple[int, ...] | None = None
    """'first N', 'last N', 'first N and last M', or a list of layer numbers (negative ones count from the end)."""
    rows: str | None = None
    """'first N' or 'first P%': of embedding and head only the rows of the tokens with the smallest ids, in most vocabularies the
    most frequent ones. The matrix is cut there."""
    use: WeightFormat

    @field_validator("layers")
    @classmethod
    def _readable(cls, value: str | tuple[int, ...] | None) -> str | tuple[int, ...] | None:
        if isinstance(value, str):
            _parse_layers(value)
        return value

    @field_validator("roles")
    @classmethod
    def _quantizable(cls, value: tuple[Role, ...]) -> tuple[Role, ...]:
        stuck = [role for role in value if role in _STUCK_ROLES]
        if stuck:
            raise ValueError(f"weights of role {', '.join(stuck)} always stay fp32: remove them from the rule")
        return value

    @model_validator(mode="after")
    def _of_a_vocabulary(self) -> Rule:
        if self.rows is not None:
            _parse_rows(self.rows, 1)
            if not self.roles or not VOCABULARY_ROLES.issuperset(self.roles) or self.layers is not None:
                raise ValueError(
                    "rows are those of embed and lm_head: name one or both of them in roles, and no layers"
                )
        return self

    def last_row(self, vocabulary: int) -> int:
        """Behind which row of a matrix of `vocabulary` rows the rule ends."""
        return vocabulary if self.rows is None else _parse_rows(self.rows, vocabulary)

    def matches(self, role: str, layer: int | None, layers: int, rows: tuple[int, int] | None = None) -> bool:
        """Whether a weight falls under this rule.

        Args:
            role: of the weight.
            layer: that it is in; None outside the layers.
            layers: how many there are.
            rows: (end of its own rows, of all rows of the vocabulary); None where it has no row for each token.
        """
        if self.roles and role not in self.roles:
            return False
        if self.rows is not None and (rows is None or rows[0] > self.last_row(rows[1])):
            return False
        if self.layers is None:
            return True
        if layer is None:
            return False
        if isinstance(self.layers, str):
            first, last = _parse_layers(self.layers)
            return layer < first or layer >= layers - last
        return layer in {n % layers if n < 0 else n for n in self.layers}


class Recipe(Document):
    """A complete description of a quantization; the same recipe and checkpoint give the same bytes."""

    schema_version: Literal[1] = 1
    name: str
    description: str
    algorithm: str = "rtn"
    default: WeightFormat
    rules: tuple[Rule, ...] = ()
    cache: CacheFormat = "float"

    def format_of(self, role: str, layer: int | None, layers: int, rows: tuple[int, int] | None = None) -> WeightFormat:
        """The format of a weight: the last matching rule's, else the default; see `Rule.matches`.

        One of FLOAT_ROLES stays fp32 unless a rule names its role.
        """
        small = role in FLOAT_ROLES
        chosen = WeightFormat(format="fp32") if small else self.default
        for rule in self.rules:
            if rule.matches(role, layer, layers, rows) and (role in rule.roles or not small):
                chosen = rule.use
        return chosen

    @property
    def needs_ranges(self) -> bool:
        """Whether some format rounds inputs to ranges that only a calibration text tells."""
        return any(spec.format in RANGED_FORMATS for spec in (self.default, *(rule.use for rule in self.rules)))

    def row_cuts(self, role: str, vocabulary: int) -> tuple[int, ...]:
        """Where a matrix of `role` with `vocabulary` rows is cut so that the rules can be followed; inner cuts, rising."""
        ends = {rule.last_row(vocabulary) for rule in self.rules if rule.rows is not None and role in rule.roles}
        return tuple(sorted(end for end in ends if 0 < end < vocabulary))


def _parse_layers(text: str) -> tuple[int, int]:
    counts = {"first": 0, "last": 0}
    for part in text.split(" and "):
        words = part.split()
        if len(words) != 2 or words[0] not in counts or not words[1].isdigit():
            raise ValueError(f"layers '{text}' is not 'first N', 'last N' or 'first N and last M'")
        counts[words[0]] = int(words[1])
    return counts["first"], counts["last"]


def _parse_rows(text: str, vocabulary: int) -> int:
    words = text.split()
    number = words[-1].removesuffix("%")
    if len(words) != 2 or words[0] != "first" or not number.isdigit():
        raise ValueError(f"rows '{text}' is not 'first N' or 'first P%'")
    if not words[1].endswith("%"):
        return min(int(number), vocabulary)
    return min(int(number), 100) * vocabulary // 100


def shipped_recipes() -> dict[str, Path]:
    """Name → path of the recipes that come with the program."""
    return {path.stem: path for path in sorted(data_folder("recipes").glob("*.yaml"))}


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe by its shipped name, or from a YAML file.

    Raises:
        ArtifactError: no such recipe, or one with an unknown key or value.
    """
    shipped = shipped_recipes()
    path = shipped.get(name_or_path, Path(name_or_path))
    hint = f"the recipes that come with aiasst: {', '.join(shipped)}; or give the path of a YAML file"
    if name_or_path not in shipped and path.suffix not in {".yaml", ".yml"}:
        raise ArtifactError(f"there is no recipe '{name_or_path}'", hint)
    return Recipe.parse(read_yaml(path, "recipe", hint), str(path))
