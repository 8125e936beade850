"""A device config on the machine as it is now: what of it is obeyed, and what is exchanged for values that are safe here.

    another machine                 nothing of it: this one is asked briefly, as without a config
    fewer cores, or a quota         no more threads than may run now, pinned to none that is not there
    less memory than it may take    the ceiling that would be decided now
    more cores                      obeyed, and said

A model without a cache (an encoder) has no use for the ceiling and the number of sequences: of those nothing is said.

Whatever was edited by hand is obeyed as long as it is safe. Measurements (eval, bench) do not come here: with another machine's
config they would be measurements of something else, and `check_machine` refuses it. Measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from aiasst.artifacts.device import CoresDecision, CountDecision, Decisions, DeviceConfig, Hardware
from aiasst.profile.decide import ModelNeeds, decide
from aiasst.sizes import human_bytes

_ANEW = "write a new one: aiasst profile -o device.json"


@dataclass(frozen=True)
class Obeyed:
    """What to run with, and what to say of it."""

    config: DeviceConfig
    remarks: tuple[str, ...]
    """A line on what is obeyed; before it, a line for each thing that is not."""


def obeyed(config: DeviceConfig, here: Hardware, safe: Callable[[], DeviceConfig], needs: ModelNeeds) -> Obeyed:
    """`config` as far as it is safe `here`.

    Args:
        config: as it was read.
        here: this machine now.
        safe: decides anew, from what the system tells at once.
        needs: of the model that is to run.
    """
    if here.machine_id != config.hardware.machine_id:
        instead = safe()
        said = (
            f"the device config was written on another machine ({named(config.hardware)}; this is {named(here)}): it is "
            f"not obeyed; {_ANEW}"
        )
        return Obeyed(instead, (said, in_words(instead, "safe values for this machine", needs)))
    decided = decide(here, config.costs, needs)
    remarks: list[str] = []
    decisions = _cores(config, here, decided, remarks)
    if needs.cache_bytes_per_token:
        decisions = _memory(decisions, here, decided, remarks)
    if here.usable_cores > config.hardware.usable_cores:
        remarks.append(
            f"{here.usable_cores:g} cores may be used now, {config.hardware.usable_cores:g} when the device config was written: "
            f"{_ANEW}"
        )
    found = config if decisions is config.decisions else config.model_copy(update={"decisions": decisions})
    return Obeyed(found, (*remarks, in_words(found, f"device config of {config.created[:10]}", needs)))


def named(machine: Hardware) -> str:
    """Which machine it is, for a reader."""
    gibibytes = machine.memory_total_bytes / 2**30
    return f"{machine.cpu_model}, {_count(machine.physical_cores, 'core')}, {gibibytes:.1f} GiB"


def in_words(config: DeviceConfig, name: str, needs: ModelNeeds) -> str:
    """What is obeyed, in a line; of what the model has no use for nothing."""
    decided = config.decisions
    pinned = decided.affinity.value
    words = f"{name}: {_count(decided.threads.value, 'thread')}"
    if pinned is not None:
        words += f" on cores {', '.join(map(str, pinned))}"
    if needs.cache_bytes_per_token:
        words += f", {_count(decided.slots.value, 'sequence')} at once, at most {human_bytes(decided.memory_ceiling_bytes.value)}"
    return words


def _cores(config: DeviceConfig, here: Hardware, decided: Decisions, remarks: list[str]) -> Decisions:
    decisions = config.decisions
    may = max(1, math.floor(here.usable_cores))
    threads, pinned = decisions.threads.value, decisions.affinity.value
    changes: dict[str, CountDecision | CoresDecision] = {}
    if threads > may and here.usable_cores < config.hardware.usable_cores:
        changes["threads"] = decided.threads
        remarks.append(
            f"{_count(decided.threads.value, 'thread')} instead of {threads}: {here.usable_cores:g} cores may be used now, "
            f"{config.hardware.usable_cores:g} when the device config was written"
        )
    there = {cpu for group in config.hardware.core_groups for cpu in group.cpus}
    present = {cpu for group in here.core_groups for cpu in group.cpus}
    lost = sorted((set(pinned or ()) & there) - present)
    if lost or (pinned is not None and "threads" in changes):
        changes["affinity"] = decided.affinity
        if lost:
            remarks.append(
                f"threads are not pinned as the device config says: cores {', '.join(map(str, lost))} may not be used now"
            )
    return decisions.model_copy(update=changes) if changes else decisions


def _memory(decisions: Decisions, here: Hardware, decided: Decisions, remarks: list[str]) -> Decisions:
    ceiling = decisions.memory_ceiling_bytes.value
    if ceiling <= min(here.memory_free_bytes, here.memory_limit_bytes):
        return decisions
    remarks.append(
        f"at most {human_bytes(decided.memory_ceiling_bytes.value)} instead of {human_bytes(ceiling)}: "
        f"only {human_bytes(here.memory_free_bytes)} are free now"
    )
    return decisions.model_copy(update={"memory_ceiling_bytes": decided.memory_ceiling_bytes})


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
