"""What the prompts of jobs begin with in common, kept between them: one file a model folder. Knows no rows and no format.

    DIR/NAME.kv    NAME is the model folder's; a folder of that name with other contents is told by its hash

A file that cannot be used is told of in one line, and its beginnings are computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from aiasst.errors import AiasstError, ArtifactError, ResourceError


class Keeper(Protocol):
    """What is needed of an engine; `TextEngine` is the real one."""

    def load_prefixes(self, path: Path) -> int:
        """Take keys and values from a file, or raise ArtifactError; gives the tokens."""

    def save_shared(self, path: Path) -> int:
        """Write what more than one request has begun with; gives the bytes, 0 where there is nothing new."""


def folder_for(path: Path) -> Path:
    """Make the folder, before work begins.

    Raises:
        ArtifactError: it is a file.
        ResourceError: it cannot be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise ArtifactError(f"{path} is no folder", "name a folder with --prefix-cache") from None
    except OSError as error:
        raise ResourceError(f"may not make the folder {path}: {error.strerror}", "choose another place") from error
    return path


@contextmanager
def kept(engine: Keeper, folder: Path | None, model: str, note: Callable[[str], None]) -> Iterator[None]:
    """Load what earlier jobs kept, and when the block ends, however it does, keep what is new. `folder` None: neither."""
    if folder is None:
        yield
        return
    path = folder / f"{model}.kv"
    if path.exists():
        try:
            engine.load_prefixes(path)
        except ArtifactError as error:
            note(f"{error.message}: beginnings are computed anew.")
    try:
        yield
    finally:
        try:
            engine.save_shared(path)
        except AiasstError as error:  # the answers are there all the same
            note(f"The beginnings are not kept: {error.message}.")
