"""What a job is: which prompts, which model, which settings, which seed. Guards answers against being continued as another's.

Knows neither how prompts are read nor how answers are written.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from aiasst.artifacts.document import Document
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.requests import Sampling
from aiasst.errors import ArtifactError
from aiasst.version import __version__

_RESTART = "start over with --restart, or choose another answers file with -o"


class Defaults(Document):
    """What holds for rows that say nothing."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = Field(default_factory=dict)
    logprobs: int | None = None
    stop: tuple[str, ...]


class Outputs(Document):
    """What an encoder is to tell."""

    top: int | None = None
    """Labels or fills of a text; None: as many as is usual."""
    vectors: str | None = None
    """Name of the .npy file that vectors go to; None: they stand in the lines."""


class Job(Document):
    """`answers.jsonl.job`."""

    schema_version: Literal[1] = 1
    aiasst_version: str
    prompts_sha256: str
    rows: int
    model: str
    """Name of the folder, for people; the hash decides."""
    model_sha256: str
    """`ModelFolder.identity`: of the manifest, which holds the hashes of all files."""
    defaults: Defaults | None
    """None of an encoder, which chooses nothing."""
    seed: int
    """Given, or drawn when the job began: with it every row's answer can be had again. 0 of an encoder."""
    outputs: Outputs | None = None

    @classmethod
    def of(
        cls, folder: ModelFolder, *, prompts_sha256: str, rows: int, sampling: Sampling, stop: tuple[str, ...]
    ) -> Job:
        """The job of answering these prompts with this model; draws a seed where `sampling` has none."""
        return cls(
            aiasst_version=__version__,
            prompts_sha256=prompts_sha256,
            rows=rows,
            model=folder.path.name,
            model_sha256=folder.identity,
            defaults=Defaults(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                frequency_penalty=sampling.frequency_penalty,
                presence_penalty=sampling.presence_penalty,
                logit_bias=dict(sampling.logit_bias),
                logprobs=sampling.logprobs,
                stop=stop,
            ),
            seed=secrets.randbits(32) if sampling.seed is None else sampling.seed,
        )

    @classmethod
    def of_encoder(cls, folder: ModelFolder, *, prompts_sha256: str, rows: int, outputs: Outputs) -> Job:
        """The job of encoding these texts with this model."""
        return cls(
            aiasst_version=__version__,
            prompts_sha256=prompts_sha256,
            rows=rows,
            model=folder.path.name,
            model_sha256=folder.identity,
            defaults=None,
            seed=0,
            outputs=outputs,
        )

    def continued_by(self, wanted: Job, answers: Path, *, seed_given: bool) -> Job:
        """This job, which `answers` are of, as it goes on now.

        Raises:
            ArtifactError: `wanted` is another job.
        """
        if different := list(self._differences(wanted, seed_given=seed_given)):
            raise ArtifactError(f"{answers} belongs to another job: {'; '.join(different)}", _RESTART)
        return self

    def _differences(self, wanted: Job, *, seed_given: bool) -> list[str]:
        found = []
        if self.prompts_sha256 != wanted.prompts_sha256:
            found.append(f"the prompts have changed (it has {self.rows} rows, now {wanted.rows})")
        if self.model_sha256 != wanted.model_sha256:
            found.append(f"the model is another ('{self.model}', now '{wanted.model}')")
        if seed_given and self.seed != wanted.seed:
            found.append(f"the seed is another ({self.seed}, now {wanted.seed})")
        mine, theirs = self._settings(), wanted._settings()
        found += [
            f"{name} is another ({mine[name]}, now {theirs[name]})"
            for name in mine
            if name in theirs and mine[name] != theirs[name]
        ]
        return found

    def _settings(self) -> dict[str, Any]:
        """What was asked for, by name."""
        return {
            k: v for part in (self.defaults, self.outputs) if part is not None for k, v in part.model_dump().items()
        }

    def write(self, descriptor: int) -> None:
        """Write this into the open job file, in place: its lock goes with the file, which must not be exchanged."""
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, self.to_json().encode("utf-8"))
        os.fsync(descriptor)


def read_job(descriptor: int, answers: Path) -> Job:
    """The job in an open job file.

    Raises:
        ArtifactError: it is damaged.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        text = file.read()
    try:
        data = json.loads(text)
    except ValueError:
        raise ArtifactError(f"{answers}.job is damaged, so {answers} cannot be continued", _RESTART) from None
    return Job.parse(data, f"{answers}.job")
