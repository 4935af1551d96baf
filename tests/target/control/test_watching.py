# SPDX-License-Identifier: Apache-2.0
"""The alert rules and the dashboard in `config/`: promtool reads them, and they name only metrics and labels that exist."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric, parser

from target import explanations
from target.configuration import reader
from target.control import metrics
from target.service.service import Service
from tests import daemon, peers
from tests.target.control.asking import ask

CONFIG = Path(__file__).resolve().parents[3] / "config"
RULES = CONFIG / "prometheus-rules.yaml"
DASHBOARD = json.loads((CONFIG / "grafana-dashboard.json").read_text())
OF_PROMETHEUS = {"job", "instance"}  # the labels that Prometheus itself adds
METRIC = re.compile(r"\b(wolun_\w+|up\b)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
SHOWN = re.compile(r"{{ *(?:\$labels\.)?(\w+)")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right) \(([^)]*)\)")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def codes(rule: Mapping[str, Any]) -> list[str]:
    """Return the codes that a rule names."""
    (named,) = re.findall(r'code[=!]~"([^"]*)"', rule["expr"])
    found: list[str] = named.split("|")
    return found


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def targets() -> Iterator[tuple[str, str]]:
    """Yield each expression of the dashboard, and its legend."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def variables() -> dict[str, str]:
    """Return the query of each variable of the dashboard that asks Prometheus."""
    return {entry["name"]: entry["definition"] for entry in DASHBOARD["templating"]["list"] if entry["type"] == "query"}


@pytest.fixture
def known(running: daemon.Daemon, tmp_path: Path) -> Mapping[str, set[str]]:
    """Return the labels of each series that the daemon gives or can give, by its name."""
    service = Service(reader.parse("target: iqn.2026-11.io.wolun:t\nvolumes: []\n", "f.yaml"), tmp_path)
    labels = {_series(family): set(vars(family)["_labelnames"]) for family in metrics.Collector(service).collect()}
    service.stop()
    service.close()
    _, text = ask(running, "GET", "/metrics")
    given = {_series(family): family for family in parser.text_string_to_metric_families(text)}
    assert set(labels) <= set(given)
    for name, family in given.items():
        labels.setdefault(name, set()).update(*(sample.labels for sample in family.samples))
    for name in labels:
        if name.endswith("_bucket"):
            labels[name].add("le")
    return {**labels, "up": set()}


def _series(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info", "histogram": "_bucket"}.get(family.type, "")


def strangers(known: Mapping[str, set[str]], expression: str, text: str = "") -> set[str]:
    """Return the metrics and labels of an expression, and the labels of the text about its result, that do not exist."""
    found, of_all = set[str](), set(OF_PROMETHEUS)
    for name, matchers in METRIC.findall(expression):
        of_this = OF_PROMETHEUS | known.get(name, set())
        found |= ({name} - set(known)) | (set(MATCHER.findall(matchers)) - of_this)
        of_all |= of_this
    assert METRIC.search(expression), expression
    groups = [[label.strip() for label in group.split(",")] for group in GROUPING.findall(expression)]
    grouped = set(itertools.chain(*groups))
    left = grouped if groups else of_all
    return found | (grouped - of_all) | (set(SHOWN.findall(text)) - left)


def test_rules_name_only_what_exists(known: Mapping[str, set[str]]) -> None:
    for rule in rules():
        assert not strangers(known, rule["expr"], " ".join(rule["annotations"].values())), rule["alert"]


def test_dashboard_names_only_what_exists(known: Mapping[str, set[str]]) -> None:
    for expression, legend in targets():
        assert not strangers(known, expression, legend), expression
    for name, query in variables().items():
        ((series, label),) = re.findall(r"^label_values\((.*), (\w+)\)$", query)
        assert not strangers(known, series, f"{{{{{label}}}}}"), name


@pytest.mark.parametrize(
    ("expression", "text", "found"),
    [
        ('wolun_alarm{code="a"}', "", {"wolun_alarm", "code"}),
        ("rate(wolun_commands[5m])", "", {"wolun_commands"}),
        ('wolun_alert{volume="a"} == 1', "", {"volume"}),
        ("sum by (instance, volume) (wolun_alert)", "", {"volume"}),
        ("sum by (instance) (wolun_alert)", "{{instance}} {{code}}", {"code"}),
        ("wolun_alert == 1", "{{ $labels.code }} {{ $labels.lun }}", {"lun"}),
    ],
)
def test_what_does_not_exist_is_found(
    known: Mapping[str, set[str]], expression: str, text: str, found: set[str]
) -> None:
    assert strangers(known, expression, text) == found


def test_each_code_is_in_one_class() -> None:
    (dangers,) = (codes(rule) for rule in rules() if rule["alert"] == "WolunDataInDanger")
    (others,) = (codes(rule) for rule in rules() if rule["alert"] == "WolunNeedsAttention")
    assert dangers == others
    assert set(dangers) <= set(explanations.EXPLANATIONS)


def test_panels_have_their_places() -> None:
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken = set[tuple[int, int]]()
    for panel in everything:
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    asked = [panel["datasource"]["uid"] for panel in panels()]
    asked += [target["datasource"]["uid"] for panel in panels() for target in panel["targets"]]
    assert set(asked) == {"${datasource}"}
    used = set(re.findall(r"\$(?!__)(\w+)", " ".join(expression for expression, _ in targets())))
    assert used == set(variables())


def promtool(*arguments: str | Path) -> str:
    """Return what promtool says when it finds nothing wrong."""
    done = subprocess.run(
        [peers.require("promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_understands_rules_and_dashboard(tmp_path: Path) -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", RULES)
    expressions = [expression.replace("$__rate_interval", "5m") for expression, _ in targets()]
    records = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    dashboard = tmp_path / "dashboard.yaml"
    dashboard.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    assert f"{len(records)} rules found" in promtool("check", "rules", dashboard)


CASES: Mapping[str, tuple[dict[str, str], str, dict[str, str]]] = {
    "WolunDown": ({"up{job='wolun', instance='h'}": "0x10"}, "5m", {"job": "wolun", "instance": "h"}),
    "WolunDataInDanger": (
        {"wolun_alert{code='snapshot-damaged', subject='v@a'}": "1x10"},
        "1m",
        {"code": "snapshot-damaged", "subject": "v@a"},
    ),
    "WolunNeedsAttention": (
        {"wolun_alert{code='low-space', subject='/s'}": "1x10"},
        "5m",
        {"code": "low-space", "subject": "/s"},
    ),
    "WolunStateFileSystemFills": (
        {"wolun_state_free_bytes": "3000-2x420", "wolun_state_size_bytes": "10000x420"},
        "7h",
        {},
    ),
    "WolunSnapshotSpaceFills": (
        {
            "wolun_volume_preserved_bytes{volume='v'}": "8000+3x420",
            "wolun_volume_preserved_limit_bytes{volume='v'}": "10000x420",
        },
        "7h",
        {"volume": "v"},
    ),
    "WolunScheduledSnapshotOld": (
        {
            "wolun_volume_scheduled_age_seconds{volume='v'}": "0+60x140",
            "wolun_volume_schedule_period_seconds{volume='v'}": "3600x140",
        },
        "130m",
        {"volume": "v"},
    ),
    "WolunRollbackUnfinished": ({"wolun_volume_rollback_unfinished{volume='v'}": "1x70"}, "65m", {"volume": "v"}),
    "WolunCommandErrors": (
        {"wolun_command_errors_total{lun='0', unit='v', job='wolun', instance='h'}": "0+120x30"},
        "20m",
        {"unit": "v", "job": "wolun", "instance": "h"},
    ),
    "WolunCommandsSlow": (
        {
            f"wolun_command_duration_seconds_bucket{{lun='0', unit='v', command='read', le='{bound}'}}": f"0+{count}x30"
            for bound, count in (("0.016384", 50), ("4.194304", 60), ("+Inf", 60))
        },
        "25m",
        {"unit": "v", "command": "read"},
    ),
    "WolunLoginsRefused": (
        {"wolun_failed_logins_total{status='authentication_failure', job='wolun', instance='h'}": "0+2x30"},
        "20m",
        {"status": "authentication_failure", "job": "wolun", "instance": "h"},
    ),
    "WolunMemoryFull": ({"wolun_task_set_full_total": "0+120x30"}, "20m", {}),
}
"""For each alert: series with one sample a minute, when it is raised, and its labels."""

CALM: Mapping[str, str] = {
    "up{job='wolun'}": "1x420",
    "wolun_state_free_bytes": "9000-1x420",
    "wolun_state_size_bytes": "10000x420",
    "wolun_volume_preserved_bytes{volume='v'}": "4000+3x420",
    "wolun_volume_preserved_limit_bytes{volume='v'}": "10000x420",
    "wolun_volume_scheduled_age_seconds{volume='v'}": "3600x420",
    "wolun_volume_schedule_period_seconds{volume='v'}": "3600x420",
    "wolun_volume_rollback_unfinished{volume='v'}": "1x50 0x370",
    "wolun_command_errors_total{lun='0', unit='v'}": "0+30x420",
    "wolun_command_duration_seconds_bucket{lun='0', unit='v', command='read', le='0.016384'}": "0+50x420",
    "wolun_command_duration_seconds_bucket{lun='0', unit='v', command='read', le='+Inf'}": "0+50x420",
    "wolun_failed_logins_total{status='authentication_failure'}": "0x419 1",
    "wolun_task_set_full_total": "0+30x420",
}
"""Series of a daemon without trouble, as in CASES."""


def case(series: Mapping[str, str], when: str, expected: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return promtool's test that at this moment the `expected` alerts are raised, with these labels, and no others."""
    checked = []
    for rule in rules():
        raised = [{"exp_labels": {**rule["labels"], **expected[rule["alert"]]}}] if rule["alert"] in expected else []
        checked.append({"alertname": rule["alert"], "eval_time": when, "exp_alerts": raised})
    inputs = [{"series": key, "values": values} for key, values in series.items()]
    return {"interval": "1m", "input_series": inputs, "alert_rule_test": checked}


def test_each_rule_is_raised_by_its_trouble_and_none_without(tmp_path: Path) -> None:
    assert list(CASES) == [rule["alert"] for rule in rules()]
    assert {re.split("[ {]", series)[0] for series in CALM} >= {
        name for rule in rules() for name, _ in METRIC.findall(rule["expr"]) if name != "wolun_alert"
    }
    tests = [case(series, when, {name: labels}) for name, (series, when, labels) in CASES.items()]
    tests += [case(CALM, f"{minutes}m", {}) for minutes in (30, 60, 240, 420)]
    bare = [{key: rule[key] for key in rule if key != "annotations"} for rule in rules()]  # promtool compares them, too
    written = tmp_path / "rules.yaml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "wolun", "rules": bare}]}))
    asked = tmp_path / "tests.yaml"
    asked.write_text(yaml.safe_dump({"rule_files": [str(written)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", asked)
