"""The limits of a device config → a pacer on this machine's sensors. Refuses limits that nothing here could keep."""

from __future__ import annotations

from aiasst import sensors
from aiasst.artifacts.device import Decisions
from aiasst.engine.pacing import Limits, Pacer
from aiasst.errors import ResourceError
from aiasst.sensors import Place, chosen
from aiasst.sensors.meter import EnergyMeter


def pacer_for(decisions: Decisions, place: Place | None = None) -> Pacer | None:
    """What keeps the limits of `decisions`; None where there are none, and then no sensor is looked for.

    Raises:
        ResourceError: there is a limit, and no reading to keep it by.
    """
    limits = Limits(decisions.temperature_limit_celsius.value, decisions.power_limit_watts.value)
    if limits == Limits():
        return None
    found = sensors.find(place)
    heat, energy = chosen.temperature(found), chosen.energy(found, gpu=decisions.provider.value != "cpu")
    if limits.temperature_celsius is not None and not heat.sensors:
        raise _unkept(f"{limits.temperature_celsius:g} °C", "temperature_limit_celsius", heat.reason)
    if limits.power_watts is not None and not energy.sensors:
        raise _unkept(f"{limits.power_watts:g} W", "power_limit_watts", energy.reason)
    meter = EnergyMeter(energy.sensors if limits.power_watts is not None else ())
    return Pacer(limits, temperature=heat.highest, joules=meter.joules)


def _unkept(limit: str, key: str, reason: str) -> ResourceError:
    return ResourceError(
        f"the device config asks for a limit of {limit}, which cannot be kept here: {reason}",
        f"let this user read the sensor, or set decisions.{key}.value to null",
    )
