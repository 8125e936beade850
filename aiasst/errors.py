"""The error tree: every failure a user can do something about. Knows nothing of the rest of the program.

AiasstError                   message, hint, exit code 1
├── UsageError                a value on the command line or in the Python call makes no sense
├── CheckpointError           the checkpoint is missing, damaged, unsafe or not understood
│   └── UnsupportedModelError nobody here can export this model type or task
├── ExportError               an exporter or the graph finish failed on a checkpoint that looks sound
│   └── VerificationError     the converted model does not compute what the original computes
├── ArtifactError             one of our own files (model folder, recipe, device config, jsonl) is missing or wrong
├── PromptError               one request cannot be served (too long, malformed); the others can
├── ResourceError             memory, disk or a provider is not there
├── NetworkError              the hub did not answer, or must not be asked
├── MissingExtraError         an optional part of the installation is needed; the hint is the install command
└── BudgetRefused             a size, accuracy or memory budget cannot be met; exit code 3

serve.refusals adds one that never ends the program: a request that is not served.
"""

from __future__ import annotations


class AiasstError(Exception):
    """A failure with a message for the user and a hint that says what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[AiasstError], tuple[str, str]]:
        return type(self), (self.message, self.hint)


class UsageError(AiasstError):
    """A value on the command line or in a Python call makes no sense."""


class CheckpointError(AiasstError):
    """The checkpoint is missing, damaged, unsafe or not understood."""


class UnsupportedModelError(CheckpointError):
    """No exporter here knows this model type or task."""


class ExportError(AiasstError):
    """An exporter or the graph finish failed on a checkpoint that looks sound."""


class VerificationError(ExportError):
    """The converted model does not compute what the original computes."""


class ArtifactError(AiasstError):
    """One of our own files is missing or wrong: model folder, recipe, device config, prompts."""


class PromptError(AiasstError):
    """One request cannot be served; the others can."""


class ResourceError(AiasstError):
    """Memory, disk or an execution provider is not there."""


class NetworkError(AiasstError):
    """The hub did not answer, or must not be asked."""


class MissingExtraError(AiasstError):
    """An optional part of the installation is needed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package '{package}', which is not installed",
            f"pip install 'aiasst[{extra}]'",
        )
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[AiasstError], tuple[str, str]]:
        return type(self), (self.package, self.extra)


class BudgetRefused(AiasstError):  # noqa: N818 - the name says what happened to the user
    """A budget cannot be met; nothing was written."""

    exit_code = 3
