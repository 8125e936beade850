"""A snapshot of a Hugging Face hub repository in the local cache: only the files that are needed. Knows nothing of what they hold.

Cache, token, endpoint, proxy and offline mode are huggingface_hub's own (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).
A download that breaks off is resumed by huggingface_hub where it broke; files that are complete stay in the cache for the next
run, and a half file is never seen.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aiasst.artifacts.model_folder import disk_errors
from aiasst.convert.sources.checkpoint_folder import (
    COMPANIONS,
    CONFIG,
    PICKLE,
    PICKLE_INDEX,
    PICKLE_SUFFIXES,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    module_files,
    shard_names,
)
from aiasst.errors import CheckpointError, MissingExtraError, NetworkError
from aiasst.progress import Progress, ProgressFn, silent

ATTEMPTS = 3
"""How often a file is begun. huggingface_hub resumes by itself after a lost connection, but not after one that was reset."""


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit, in the local cache."""

    path: Path
    commit: str


def download(
    repository: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    code: bool = False,
    progress: ProgressFn = silent,
) -> Snapshot:
    """Bring the needed files of `repository` into the cache; what is there already is not fetched again.

    Args:
        repository: "org/name".
        revision: Branch, tag or commit; None = the default branch.
        allow_pickle: Fetch .bin weights where there are no safetensors.
        code: Fetch Python files as well.
        progress: Told the bytes that have come.

    Raises:
        CheckpointError: unknown repository or revision, no access, or no weights of a kind we read.
        NetworkError: the hub does not answer, the download broke off, or HF_HUB_OFFLINE is set and the cache lacks files.
        ResourceError: the disk is full.
    """
    small = [*COMPANIONS, *(["*.py"] if code else [])]
    snapshot = _fetch(repository, revision, small, progress)
    absent = [name for name in module_files(snapshot.path) if not (snapshot.path / name).is_file()]
    if absent and (there := _readable(absent, _listing(repository, snapshot), allow_pickle)):
        _fetch(repository, snapshot.commit, there, progress)
    weights = _choose_weights(repository, snapshot, allow_pickle)
    if weights in (SAFETENSORS_INDEX, PICKLE_INDEX):
        _fetch(repository, snapshot.commit, [weights], progress)
        return _fetch(repository, snapshot.commit, shard_names(snapshot.path / weights), progress)
    return _fetch(repository, snapshot.commit, [weights], progress)


def peek(repository: str, *, revision: str | None = None) -> tuple[Snapshot, Mapping[str, int]]:
    """Bring config.json of `repository` into the cache and nothing else, with the names and sizes in bytes of all its files.

    Raises:
        CheckpointError, NetworkError, ResourceError: as `download` does.
    """
    snapshot = _fetch(repository, revision, [CONFIG], silent)
    return snapshot, _sizes(repository, snapshot)


def _readable(files: Sequence[str], there: Set[str], allow_pickle: bool) -> list[str]:
    """Those of `files` that the repository has; a pickle only where it may be read and nothing better lies beside it."""
    found = [name for name in files if name in there]
    safe = {name.rpartition("/")[0] for name in there if name.endswith(SAFETENSORS)}
    return [n for n in found if not n.endswith(PICKLE) or (allow_pickle and n.rpartition("/")[0] not in safe)]


def _choose_weights(repository: str, snapshot: Snapshot, allow_pickle: bool) -> str:
    """The weight file to fetch, or the index of several, by what the repository has.

    An index beside a whole file is left where it is: without its shards it would lead readers astray.
    """
    there = _listing(repository, snapshot)
    wanted = [SAFETENSORS, SAFETENSORS_INDEX]
    if allow_pickle:
        wanted += [PICKLE, PICKLE_INDEX]
    for name in wanted:
        if name in there:
            return name
    pickles = sorted(name for name in there if name.endswith(PICKLE_SUFFIXES) and "/" not in name)
    if pickles and not allow_pickle:
        raise CheckpointError(
            f"the repository {repository} has no safetensors, only pickle files ({pickles[0]}), which can carry code",
            "look for a safetensors form of this model, or, if you trust its author: --allow-pickle",
        )
    gguf = sorted(name for name in there if name.endswith(".gguf"))
    raise CheckpointError(
        f"the repository {repository} has no safetensors weights",
        f"download its GGUF file ({gguf[0]}) and give its path"
        if gguf
        else "look for a safetensors form of this model",
    )


def _listing(repository: str, snapshot: Snapshot) -> set[str]:
    return set(_sizes(repository, snapshot))


def _sizes(repository: str, snapshot: Snapshot) -> Mapping[str, int]:
    """Name → bytes of all files of the repository; of the cached ones where a cache was made without a listing."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: int(file.size) for file in get_cached_repo_tree(repository, revision=snapshot.commit)}
    except CachedRepoTreeNotFoundError:
        files = (path for path in snapshot.path.rglob("*") if path.is_file())
        return {path.relative_to(snapshot.path).as_posix(): path.stat().st_size for path in files}


def _fetch(repository: str, revision: str | None, names: Sequence[str], progress: ProgressFn) -> Snapshot:
    try:
        import httpx2
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("huggingface-hub", "convert") from None
    with disk_errors(_cache(), "free some space, or point HF_HOME at another disk"), _hub_errors(repository, revision):
        for attempt in range(ATTEMPTS):
            try:
                path = snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=list(names),
                    endpoint=os.environ.get("HF_ENDPOINT") or None,
                    tqdm_class=_bars(progress),
                    library_name="aiasst",
                )
                break
            except (httpx2.ReadError, httpx2.WriteError):
                if attempt == ATTEMPTS - 1:
                    raise
    return Snapshot(Path(path), Path(path).name)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _bars(progress: ProgressFn) -> type[_Bar]:
    """The class of progress bars to give to huggingface_hub, which makes its own instances."""

    class Reporter(_Bar):
        report = staticmethod(progress)

    return Reporter


class _Bar:
    """The part of tqdm's interface that huggingface_hub uses: shows nothing, reports the bytes of the whole snapshot.

    One instance counts bytes written, others count files and bytes received; only the first is passed on.
    """

    report: ProgressFn = staticmethod(silent)

    def __init__(
        self, *_: object, total: float | None = None, initial: float = 0, desc: str = "", **__: object
    ) -> None:
        self.total, self.n = total, initial
        self.format_dict: dict[str, float | None] = {"rate": None}
        self._counts_bytes = desc.startswith("Reconstructing")
        self._lock = threading.Lock()

    def update(self, n: float | None = 1) -> None:
        """Count `n` more; called from several threads."""
        with self._lock:
            self.n += n or 0
            if self._counts_bytes and self.total:
                self.report(Progress("download", self.n, self.total, "bytes"))

    def refresh(self) -> None:
        """Nothing to draw."""

    def close(self) -> None:
        """Nothing to end."""

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        """Nothing to draw."""

    def set_description_str(self, desc: str | None = None, refresh: bool = True) -> None:
        """Nothing to draw."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Nothing to draw."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into our words."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(
            f"access to {repository} is restricted by its author",
            f"accept its terms on its page, then: export HF_TOKEN=… (see {_endpoint()}/settings/tokens)",
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{_endpoint()} has no repository {repository} that you may read",
            "check its name; a private one needs HF_TOKEN in the environment; a local folder would be ./" + repository,
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"{repository} has no revision '{revision}'", "give a branch, a tag or a commit"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise _not_cached(repository, error) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"'{repository}' is no name of a repository: {error}", "a hub id is org/name") from None
    except errors.HfHubHTTPError as error:
        raise _refused(repository, error.response.status_code) from error
    except httpx2.TransportError as error:
        raise _broken(repository, str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # huggingface_hub's own checks: a file of the wrong size, an answer that is none of a hub.
        raise _broken(repository, str(error).partition("\n")[0]) from error


def _not_cached(repository: str, error: Exception) -> NetworkError | CheckpointError:
    import httpx2
    from huggingface_hub import constants, errors

    if constants.is_offline_mode():
        return NetworkError(
            f"{repository} is not completely in the local cache, and HF_HUB_OFFLINE forbids asking the hub",
            "run once with network and without HF_HUB_OFFLINE, or give a local folder",
        )
    cause = error.__cause__
    if isinstance(cause, errors.HfHubHTTPError):
        return _refused(repository, cause.response.status_code)
    reason = f" ({cause})" if isinstance(cause, httpx2.TransportError) and str(cause) else ""
    return NetworkError(
        f"{_endpoint()} does not answer{reason}, and {repository} is not completely in the local cache",
        "check the network (HF_ENDPOINT names the hub), or give a local folder",
    )


def _refused(repository: str, status: int) -> NetworkError | CheckpointError:
    if status in (401, 403):
        return CheckpointError(
            f"{_endpoint()} refuses access to {repository} (HTTP {status})", "check the token in HF_TOKEN"
        )
    return NetworkError(f"{_endpoint()} answers with HTTP {status} for {repository}", "try again later")


def _broken(repository: str, reason: str) -> NetworkError:
    return NetworkError(
        f"the download of {repository} broke off: {reason}", "run the same command again: what is complete is kept"
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)).rstrip("/")
