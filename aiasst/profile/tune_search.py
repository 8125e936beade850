"""Settings proposed by Optuna: a tree-structured Parzen estimator (Bergstra et al., 2011), kept in a journal so that it resumes.

Optuna is an optional part of the installation; this is the only file that imports it. Measures nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiasst.errors import ResourceError
from aiasst.profile.tune import Setting, Space

_SEED = 0


class OptunaSearch:
    """A study of one model on one machine."""

    def __init__(self, space: Space, *, name: str, first: Setting, journal: Path | None = None) -> None:
        """`name` of the study: model and machine; `first` is tried first; `journal` None: it is not kept.

        Raises:
            ResourceError: Optuna is not installed.
        """
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise ResourceError("tuning needs Optuna, which is not installed", "pip install 'aiasst[tune]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = None if journal is None else JournalStorage(JournalFileBackend(str(journal)))
        self._choices = asdict(space)
        self._distributions = {
            key: optuna.distributions.CategoricalDistribution(values) for key, values in self._choices.items()
        }
        self._study = optuna.create_study(
            study_name=name, storage=storage, sampler=optuna.samplers.TPESampler(seed=_SEED), load_if_exists=True
        )
        if not self._study.trials and first in space.settings():
            self._study.enqueue_trial(asdict(first))
        self._asked: dict[Setting, Any] = {}

    def ask(self) -> Setting:
        """See `tune.Search`."""
        trial = self._study.ask(self._distributions)
        setting = Setting(**trial.params)
        self._asked[setting] = trial
        return setting

    def tell(self, setting: Setting, ratio: float) -> None:
        """See `tune.Search`."""
        self._study.tell(self._asked.pop(setting), ratio)

    def best(self, count: int) -> list[Setting]:
        """See `tune.Search`; values that this machine no longer has are left out."""
        told = sorted((t for t in self._study.trials if t.value is not None), key=lambda trial: trial.value or 0.0)
        known = (t for t in told if all(t.params.get(key) in values for key, values in self._choices.items()))
        return list(dict.fromkeys(Setting(**trial.params) for trial in known))[:count]
