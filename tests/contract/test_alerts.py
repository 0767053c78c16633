"""Rules, their tests and runbooks, configurations: valid by the real tools, and in keeping with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from paddle_exporter import catalogue
from tools import binary

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "alerts"
RULE_FILES = sorted((ALERTS / "rules").glob("*.yml"))
TEST_FILES = sorted((ALERTS / "tests").glob("*.yml"))
RUNBOOKS = sorted((ALERTS / "runbooks").glob("*.md"))
RUNBOOK_URL = "https://github.com/paddle-exporter/paddle-exporter/blob/main/"

EXPECTED = {
    "TargetDown": "warning",
    "RankMissing": "critical",
    "RunFailed": "critical",
    "TrainingStalled": "critical",
    "LossNonFinite": "critical",
    "LossSpike": "warning",
    "CheckpointFailing": "warning",
}

# Prometheus makes these itself, one a target, or one an alert.
OF_TARGETS = {"up", "scrape_duration_seconds"}
TARGET_LABELS = {"job", "instance", "run", "rank", "node"}
ALERT_LABELS = {"alertname", "alertstate", "severity", "cause"}
# Facts that paddle_run_info has besides the declared ones: how the rank ended.
ENDINGS = {"exception", "signal"}


def _yaml(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


RULES = [rule for path in RULE_FILES for group in _yaml(path)["groups"] for rule in group["rules"]]
ALERT_RULES = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def _run(*command):
    answer = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


# --- the real tools -------------------------------------------------------------------------------------------


def test_promtool_accepts_the_rules():
    _run(binary("promtool"), "check", "rules", *RULE_FILES)


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_rules_do_what_their_tests_say(path):
    _run(binary("promtool"), "test", "rules", path)


@pytest.mark.parametrize("interval", ["15s", "1s"])
def test_promtool_accepts_the_configuration_in_its_tree(tmp_path, interval):
    # The tree that the container and the native stack lay out; 1 s is the fast profile.
    text = (ROOT / "compose/prometheus/prometheus.yml").read_text(encoding="utf-8")
    assert text.count("_interval: 15s") == 2
    (tmp_path / "prometheus.yml").write_text(text.replace("_interval: 15s", f"_interval: {interval}"), encoding="utf-8")
    shutil.copytree(ALERTS / "rules", tmp_path / "rules")
    (tmp_path / "targets/paddle").mkdir(parents=True)
    (tmp_path / "targets/alertmanager.json").write_text('[{"targets": ["127.0.0.1:9093"]}]')
    (tmp_path / "targets/paddle/r.json").write_text('[{"targets": ["127.0.0.1:9810"], "labels": {"run": "r"}}]')
    said = _run(binary("promtool"), "check", "config", tmp_path / "prometheus.yml")
    assert "WARNING" not in said
    assert f"{len(RULE_FILES)} rule files found" in said


def test_amtool_accepts_the_configuration():
    _run(binary("amtool"), "check-config", ALERTS / "alertmanager.yml")


@pytest.mark.parametrize("severity", sorted(set(EXPECTED.values())))
def test_alerts_are_routed_by_severity(severity):
    route = (binary("amtool"), "config", "routes", "test", f"--config.file={ALERTS / 'alertmanager.yml'}")
    _run(*route, f"--verify.receivers={severity}", f"severity={severity}", "alertname=Any", "run=r", "rank=0")


def test_runs_and_node_agents_do_not_silence_each_other():
    # In `equal`, labels that both sides lack are equal: only matchers keep alerts without a run out.
    for rule in _yaml(ALERTS / "alertmanager.yml")["inhibit_rules"]:
        assert rule["equal"] == ["run"]
        assert 'run=~".+"' in rule["source_matchers"]
        assert 'run=~".+"' in rule["target_matchers"]


# --- alerts, their tests and their runbooks ---------------------------------------------------------------------


def test_alerts_and_their_severities():
    assert {rule["alert"]: rule["labels"]["severity"] for rule in ALERT_RULES} == EXPECTED


@pytest.mark.parametrize("rule", ALERT_RULES, ids=lambda rule: rule["alert"])
def test_alert_says_what_and_what_to_do(rule):
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "action", "runbook_url"}
    assert "{{" in annotations["summary"]
    assert "{{" in annotations["description"]
    url = annotations["runbook_url"]
    assert url == f"{RUNBOOK_URL}alerts/runbooks/{rule['alert']}.md"
    assert (ROOT / url[len(RUNBOOK_URL) :]).is_file()


@pytest.mark.parametrize("alert", EXPECTED)
def test_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert):
    cases = [
        case
        for path in TEST_FILES
        for test in _yaml(path)["tests"]
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == alert
    ]
    assert [case for case in cases if case.get("exp_alerts")]
    assert [case for case in cases if not case.get("exp_alerts")]


def test_every_alert_is_tested_at_both_intervals():
    tested = {"1s": set(), "15s": set()}
    for path in TEST_FILES:
        content = path.read_text(encoding="utf-8")
        tested[_yaml(path)["evaluation_interval"]] |= {alert for alert in EXPECTED if alert in content}
    assert tested == {"1s": set(EXPECTED), "15s": set(EXPECTED)}


def test_every_runbook_belongs_to_an_alert():
    assert [path.stem for path in RUNBOOKS] == sorted(EXPECTED)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_runbook_has_its_four_parts(path):
    title, *parts = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert title.strip() == f"# {path.stem}"
    sections = dict(part.split("\n", 1) for part in parts)
    assert list(sections) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert all(len(text.split()) >= 10 for text in sections.values())
    assert "```promql" in sections["Diagnosis"]
    assert "```sh" in sections["Diagnosis"]


def test_readme_has_the_thresholds_of_every_alert():
    rows = re.findall(
        r"^\| (\w+) \| (critical|warning) \|", (ALERTS / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert dict(rows) == EXPECTED


# --- metrics and labels -----------------------------------------------------------------------------------------


def _known():
    """Names of all series that there can be, with their labels."""
    known = dict.fromkeys(OF_TARGETS, TARGET_LABELS)
    for metric in catalogue.metrics():
        labels = {*metric.labels, *TARGET_LABELS}
        if metric.kind == catalogue.HISTOGRAM:
            known[f"{metric.name}_bucket"] = {*labels, "le"}
            known[f"{metric.name}_sum"] = known[f"{metric.name}_count"] = labels
        else:
            known[metric.name] = labels | ENDINGS if metric is catalogue.RUN_INFO else labels
    everything = set().union(*known.values())
    return {**known, **dict.fromkeys(RECORDED, everything), "ALERTS": everything | ALERT_LABELS}


KNOWN = _known()
_WORDS = {"and", "or", "unless", "bool", "offset", "on", "ignoring", "by", "without", "group_left", "group_right"}
_LABEL_LIST = re.compile(r"\b(?:on|ignoring|by|without|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")


def _check(expression):
    """Every metric that ``expression`` reads is known, and so are the labels it selects or groups by."""
    plain = re.sub(r'"(?:[^"\\]|\\.)*"', '""', re.sub(r"#.*", "", expression))
    for name, matchers in _SELECTOR.findall(plain):
        assert name in KNOWN, name
        unknown = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - KNOWN[name]
        assert not unknown, f"{name} has no label {unknown}"
    for names in _LABEL_LIST.findall(plain):
        unknown = {name.strip() for name in names.split(",") if name.strip()} - set().union(*KNOWN.values())
        assert not unknown, f"no metric has a label {unknown}"
    rest = re.sub(r"\{[^}]*\}|\[[^]]*\]|\boffset\s+\w+", " ", _LABEL_LIST.sub(" ", plain))
    read = set(re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])", rest)) - _WORDS
    assert read <= set(KNOWN), f"unknown metrics {read - set(KNOWN)}"
    return read


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rule_reads_known_metrics_and_labels(rule):
    assert _check(rule["expr"])
    for text in rule.get("annotations", {}).values():
        for query in re.findall(r'with printf "((?:[^"\\]|\\.)*)"', text):
            assert _check(query.replace('\\"', '"').replace("%q", '""'))
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= set().union(*KNOWN.values())


def test_the_check_itself_finds_what_is_wrong():
    for wrong in (
        "paddle_gone",
        "rate(paddle_gone[1m]) > 1",
        'paddle_train_loss{scalar="loss"}',
        "sum by (shard) (up)",
    ):
        with pytest.raises(AssertionError):
            _check(wrong)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_runbook_queries_can_be_run(path, tmp_path):
    blocks = re.findall(r"```promql\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    queries = [line for block in blocks for line in block.splitlines()]
    for query in queries:
        assert _check(query)
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    rules_file = tmp_path / "queries.yml"
    rules_file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    _run(binary("promtool"), "check", "rules", rules_file)


def test_recorded_series_are_read_by_somebody():
    read = set().union(*(_check(rule["expr"]) for rule in RULES))
    assert read >= RECORDED
