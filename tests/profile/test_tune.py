"""The search for settings, by a clock and measurers that the test turns; and the library behind it, where it is installed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.profile.decide import decide
from aiasst.profile.hardware import read_hardware
from aiasst.profile.host import Host
from aiasst.profile.tune import (
    Setting,
    Space,
    Tuned,
    in_words,
    reason,
    runtime_defaults,
    setting_of,
    space_of,
    tune,
    with_tuned,
)

DEFAULTS, ONE, TWO = Setting(4), Setting(1), Setting(2)


class Listed:
    """Proposes what it was given, in turn, and remembers."""

    def __init__(self, *settings: Setting) -> None:
        self._next = itertools.cycle(settings)
        self.told: dict[Setting, float] = {}

    def ask(self) -> Setting:
        return next(self._next)

    def tell(self, setting: Setting, ratio: float) -> None:
        self.told[setting] = min(ratio, self.told.get(setting, ratio))

    def best(self, count: int) -> list[Setting]:
        return sorted(self.told, key=lambda setting: self.told[setting])[:count]


def tuned(
    cost: Callable[[Setting, int], float], *settings: Setting, decided: Setting = TWO, seconds: float = 100
) -> Tuned:
    """`cost` gives the seconds of a setting's nth measurement; nothing else takes time."""
    now, count = [0.0], itertools.count()

    def measure(setting: Setting) -> float:
        taken = cost(setting, next(count))
        now[0] += taken
        return taken

    return tune(Listed(*settings), measure, defaults=DEFAULTS, decided=decided, seconds=seconds, clock=lambda: now[0])


def test_a_setting_that_is_faster_wins() -> None:
    found = tuned(lambda setting, _: {4: 1.0, 2: 1.0, 1: 0.5}[setting.threads], ONE, TWO)
    assert (found.setting, found.won, found.noise) == (ONE, True, 0.0)
    assert found.gain == pytest.approx(2)
    assert "2.00 times as fast" in reason(found)


def test_what_is_not_faster_beyond_the_noise_does_not_win() -> None:
    # The defaults' own repeats differ by a tenth, the candidate is better by a twentieth.
    def cost(setting: Setting, turn: int) -> float:
        return 0.95 if setting == ONE else (1.0 if turn % 4 == 0 else 1.1)

    found = tuned(cost, ONE)
    assert not found.won
    assert "none of" in reason(found)


def test_a_decision_slower_than_the_defaults_gives_way_to_them() -> None:
    found = tuned(lambda setting, _: {4: 1.0, 2: 1.5, 1: 2.0}[setting.threads], ONE, TWO)
    assert (found.setting, found.won) == (DEFAULTS, False)


def test_the_time_is_kept_and_one_setting_is_tried_whatever_it_takes() -> None:
    assert tuned(lambda setting, _: 50.0, ONE, seconds=1).tried == 1
    assert 10 < tuned(lambda setting, _: 1.0, ONE, seconds=100).tried <= 18  # four measurements each, in 70 seconds


@given(st.fixed_dictionaries({1: st.floats(0.1, 10), 2: st.floats(0.1, 10), 4: st.floats(0.1, 10)}))
def test_what_comes_out_is_never_slower_than_the_defaults(cost: dict[int, float]) -> None:
    found = tuned(lambda setting, _: cost[setting.threads], ONE, TWO, seconds=200)
    assert cost[found.setting.threads] <= cost[4] * 1.021


def test_the_defaults_do_not_see_the_quota_and_the_space_does(container_v2: Host, hybrid_laptop: Host) -> None:
    limited = read_hardware(container_v2, thorough=False)
    assert runtime_defaults(limited).threads > 1
    assert space_of(limited).threads == (1,)
    assert decide(limited).threads.value == 1
    hybrid = read_hardware(hybrid_laptop, thorough=False)
    assert runtime_defaults(hybrid).threads == 14
    assert space_of(hybrid).pinned == (False, True)


def test_decisions_take_the_setting_over(hybrid_laptop: Host) -> None:
    hardware = read_hardware(hybrid_laptop, thorough=False)
    decisions = decide(hardware)
    setting = Setting(4, pinned=True, spinning=False, chunk=128)
    found = with_tuned(decisions, Tuned(setting, 1.2, 0.01, 9, won=True), hardware)
    assert setting_of(found) == setting
    assert found.affinity.value == hardware.core_groups[0].cpus[:4]
    assert "tuned" in found.threads.reason
    kept = with_tuned(decisions, Tuned(setting_of(decisions), 1.0, 0.01, 9, won=False), hardware)
    assert setting_of(kept) == setting_of(decisions)
    assert "none of 9" in kept.threads.reason


def test_a_thread_alone_is_neither_pinned_nor_waits() -> None:
    odd = Setting(1, pinned=True, spinning=False, chunk=128)
    found = tuned(lambda setting, _: 0.5 if setting.threads == 1 else 1.0, odd, decided=TWO)
    assert found.setting == Setting(1, chunk=128)


def test_settings_in_words() -> None:
    assert in_words(Setting(2, spinning=False)) == "2 threads, sleeping between products, chunks of 256"


def test_the_library_proposes_remembers_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from aiasst.profile.tune_search import OptunaSearch

    space, journal = Space((1, 2, 4), (False,)), tmp_path / "device.json.tuning"
    search = OptunaSearch(space, name="model on machine", first=TWO, journal=journal)
    assert search.ask() == TWO
    search.tell(TWO, 0.9)
    for _ in range(5):
        setting = search.ask()
        assert setting in space.settings()
        search.tell(setting, 1.0 + setting.threads)
    again = OptunaSearch(space, name="model on machine", first=ONE, journal=journal)
    assert again.best(1) == [TWO]
    smaller = OptunaSearch(Space((1, 4), (False,)), name="model on machine", first=ONE, journal=journal)
    assert all(setting.threads != 2 for setting in smaller.best(9))
