import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse

from aiasst.engine.text import Usage
from aiasst.sensors.reading import Found, Sensor
from tests.deploy.promql import grouping_labels, selectors
from tests.serve.states import StatedService, metrics_of

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "aiasst.yml"
OF_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus gives to what it reads."""


@pytest.fixture(scope="module")
def series() -> dict[str, dict[str, set[str]]]:
    """Every series that a service can show, with its labels and their values: all is told once, all sensors are there."""
    numbers = iter(range(10**6))
    found = Found(
        (
            Sensor("hwmon", "temperature", "coretemp/Package id 0", lambda: 61.5),
            Sensor("rapl", "energy", "package-0", lambda: float(next(numbers))),
            Sensor("throttling", "throttle events", "cpu0", lambda: 1.0),
        )
    )
    metrics = metrics_of(StatedService(), "ann", found=found)
    for finished in ("stop", "length", "cancelled", "deadline", None):
        metrics.ended("talker", "ann", finished, Usage(1, 1, 1, 1, 1), 0.1)
    metrics.embedded("reader", "ann", 1, 1, 0.1)
    text, _ = asyncio.run(metrics.text(""))
    told: dict[str, dict[str, set[str]]] = {"up": {}}
    for family in parse(text.decode()):
        for sample in family.samples:
            labels = told.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return told


def dashboard() -> dict[str, Any]:
    told: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "aiasst.json").read_text(encoding="utf-8"))
    return told


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in panels():
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["definition"]
    for rule in rules():
        yield f"alert {rule['alert']}", rule["expr"]


def test_every_series_and_label_that_is_asked_for_exists(series: dict[str, dict[str, set[str]]]) -> None:
    checked = 0
    for where, expression in expressions():
        asked = selectors(expression)
        assert asked, where
        for selector in asked:
            assert selector.name in series, f"{where}: {selector.name}"
            labels = series[selector.name]
            for label, value in selector.matchers:
                assert label in labels.keys() | OF_PROMETHEUS, f"{where}: {selector.name} has no label {label}"
                if label in OF_PROMETHEUS or value.startswith("$"):
                    continue
                assert value in labels[label], f"{where}: {label} of {selector.name} is never {value!r}"
            checked += 1
        known = set[str]().union(*(series[selector.name] for selector in asked)) | OF_PROMETHEUS
        assert grouping_labels(expression) <= known, where
    assert checked > 60


def test_a_name_or_label_that_does_not_exist_would_be_found(series: dict[str, dict[str, set[str]]]) -> None:
    (wrong,) = selectors('rate(aiasst_requests_total{outcome=~"stop|stopped", modell="x"}[5m])')
    assert wrong.name in series
    assert [label for label, _ in wrong.matchers if label not in series[wrong.name]] == ["modell"]
    assert [value for label, value in wrong.matchers if label == "outcome" and value not in series[wrong.name][label]] == [
        "stopped"
    ]  # fmt: skip
    assert grouping_labels("sum by (model, le) (x) / on (instance) y") == {"model", "le", "instance"}


def test_what_alerts_say_of_a_label_is_a_label_that_the_alert_has(series: dict[str, dict[str, set[str]]]) -> None:
    for rule in rules():
        text = " ".join(rule["annotations"].values())
        by = grouping_labels(rule["expr"])
        has = by or set[str]().union(*(series[s.name].keys() for s in selectors(rule["expr"])))
        assert set(re.findall(r"\$labels\.([a-z_]+)", text)) <= has | OF_PROMETHEUS, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_dashboard_has_its_rows_and_variables_and_no_panel_lies_on_another() -> None:
    board = dashboard()
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Now", "Latency", "Throughput", "Queue", "Memory and cache", "Host"]
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "instance", "model"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["description"] and panel["fieldConfig"] is not None
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_everything_that_a_service_shows_is_on_the_dashboard_or_in_an_alert(
    series: dict[str, dict[str, set[str]]],
) -> None:
    shown = {selector.name for _, expression in expressions() for selector in selectors(expression)}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in series if name.startswith("aiasst_")}
    asked = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    # Figures of which others say the same.
    aside = {"aiasst_model_context_tokens", "aiasst_cache_slots", "aiasst_admitted_requests_total"}
    aside |= {"aiasst_engine_steps_total", "aiasst_host_power_watts"}
    assert families - asked == aside


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "rules/aiasst.yml"), ("test", "rules", "rules/aiasst_test.yml")], ids="-".join
)
def test_promtool_finds_no_fault(arguments: tuple[str, ...]) -> None:
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([promtool, *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_on_figures_that_set_it_off_or_not() -> None:
    told = yaml.safe_load((RULES.parent / "aiasst_test.yml").read_text(encoding="utf-8"))
    tried = {trial["alertname"] for test in told["tests"] for trial in test["alert_rule_test"]}
    assert tried == {rule["alert"] for rule in rules()}
