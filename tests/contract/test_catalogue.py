"""The catalogue against its contract, and a real scrape against the catalogue."""

from __future__ import annotations

import subprocess
import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from paddle_exporter import catalogue
from tools import binary

RANK = ("run", "rank")
GPU = ("gpu", "uuid", "run", "rank")
CONTRACT = {
    "paddle_run_start_time_seconds": ("gauge", RANK),
    "paddle_run_world_size": ("gauge", RANK),
    "paddle_run_state": ("gauge", (*RANK, "state")),
    "paddle_train_steps_total": ("counter", RANK),
    "paddle_train_samples_total": ("counter", RANK),
    "paddle_train_tokens_total": ("counter", RANK),
    "paddle_train_samples_per_second": ("gauge", RANK),
    "paddle_train_tokens_per_second": ("gauge", RANK),
    "paddle_train_global_step": ("gauge", RANK),
    "paddle_train_epoch": ("gauge", RANK),
    "paddle_train_target_steps": ("gauge", RANK),
    "paddle_train_last_step_timestamp_seconds": ("gauge", RANK),
    "paddle_train_loss": ("gauge", RANK),
    "paddle_train_learning_rate": ("gauge", RANK),
    "paddle_train_grad_norm": ("gauge", RANK),
    "paddle_train_loss_scale": ("gauge", RANK),
    "paddle_train_skipped_steps_total": ("counter", RANK),
    "paddle_train_nonfinite_total": ("counter", (*RANK, "scalar")),
    "paddle_train_spikes_total": ("counter", (*RANK, "scalar")),
    "paddle_train_zscore": ("gauge", (*RANK, "scalar")),
    "paddle_train_scalar": ("gauge", (*RANK, "name")),
    "paddle_eval_loss": ("gauge", RANK),
    "paddle_eval_scalar": ("gauge", (*RANK, "name")),
    "paddle_train_step_duration_seconds": ("histogram", RANK),
    "paddle_train_phase_seconds_total": ("counter", (*RANK, "phase")),
    "paddle_checkpoint_saves_total": ("counter", RANK),
    "paddle_checkpoint_failures_total": ("counter", RANK),
    "paddle_checkpoint_seconds_total": ("counter", RANK),
    "paddle_checkpoint_last_success_timestamp_seconds": ("gauge", RANK),
    "paddle_gpu_utilization_ratio": ("gauge", GPU),
    "paddle_gpu_memory_used_bytes": ("gauge", GPU),
    "paddle_gpu_memory_total_bytes": ("gauge", GPU),
    "paddle_gpu_temperature_celsius": ("gauge", GPU),
    "paddle_gpu_power_watts": ("gauge", GPU),
    "paddle_gpu_energy_joules_total": ("counter", GPU),
    "paddle_gpu_sm_clock_hertz": ("gauge", GPU),
    "paddle_gpu_throttle_seconds_total": ("counter", (*GPU, "reason")),
    "paddle_gpu_ecc_errors_total": ("counter", (*GPU, "kind")),
    "paddle_gpu_xid_errors_total": ("counter", (*GPU, "xid")),
    "paddle_gpu_pcie_transmit_bytes_total": ("counter", GPU),
    "paddle_gpu_pcie_receive_bytes_total": ("counter", GPU),
    "paddle_gpu_nvlink_errors_total": ("counter", (*GPU, "kind")),
    "paddle_gpu_row_remap_failure": ("gauge", GPU),
    "paddle_gpu_process_memory_bytes": ("gauge", GPU),
    "paddle_exporter_collector_success": ("gauge", ("collector",)),
    "paddle_exporter_collector_duration_seconds": ("gauge", ("collector",)),
}
INFOS = {"paddle_run_info": RANK, "paddle_gpu_info": GPU, "paddle_exporter_build_info": ()}
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SERIES_A_RANK = 64


@pytest.mark.parametrize("name", CONTRACT)
def test_a_contract_metric_is_declared_as_the_contract_says(name):
    metric = catalogue.find(name)
    assert (metric.kind, metric.labels) == CONTRACT[name]


@pytest.mark.parametrize("name", INFOS)
def test_an_info_metric_has_at_least_its_labels(name):
    metric = catalogue.find(name)
    assert metric.kind == "info"
    assert set(INFOS[name]) <= set(metric.labels)


def test_dropped_scalars_are_declared():
    assert catalogue.find("paddle_exporter_dropped_scalars_total").kind == "counter"


def test_a_metric_is_declared_once():
    names = [metric.name for metric in catalogue.metrics()]
    assert len(names) == len(set(names))


def test_a_second_declaration_is_refused():
    with pytest.raises(ValueError, match="paddle_train_loss"):
        catalogue._add(catalogue.LOSS)


@pytest.mark.parametrize("metric", catalogue.metrics(), ids=lambda metric: metric.name)
def test_names_and_helps_follow_the_conventions(metric):
    assert metric.name.startswith("paddle_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help.endswith(".")
    assert not {"percent", "mib", "ms", "milliseconds"} & set(metric.name.split("_"))


# --- a real scrape ----------------------------------------------------------------------------------------------


@pytest.fixture
def fetch(start):
    """The exposition of a started run, after what ``use`` does with it."""

    def get(use=lambda run: None, accept="text/plain", **settings):
        run = start(**settings)
        use(run)
        request = urllib.request.Request(run.url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    return get


def everything(run):
    """Every call there is, as a long run does."""
    run.epoch(1)
    for i in range(5):
        with run.phase("data"):
            pass
        run.step(samples=4, tokens=100, loss=2.0, learning_rate=0.1, grad_norm=1.0, loss_scale=8, **{"a/b": i})
    run.log(**{'odd " \\ name': 1.0, "漢字": 2.0})
    run.eval(loss=1.0, acc=0.5)
    run.checkpoint(1.0)
    run.skipped_step()


def ordinary(run):
    run.step(samples=4, loss=2.0, learning_rate=0.1)
    run.step(samples=4, loss=2.0, learning_rate=0.1)
    run.eval(loss=1.0)


@pytest.mark.parametrize("use", [lambda run: None, ordinary, everything], ids=["fresh", "ordinary", "everything"])
def test_promtool_has_nothing_to_say(fetch, use):
    text = fetch(use, target_steps=100)
    check = subprocess.run(
        [binary("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_both_formats_say_the_same(fetch):
    text = {(s.name, *sorted(s.labels.items())) for family in parse_text(fetch(everything)) for s in family.samples}
    openmetrics = {
        (s.name, *sorted(s.labels.items()))
        for family in parse_openmetrics(fetch(accept=OPENMETRICS))
        for s in family.samples
    }
    assert text == openmetrics
    assert len(text) > 50


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
def test_a_scrape_holds_catalogue_names_with_their_labels_and_kinds(fetch, accept):
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    text = fetch(everything, accept, target_steps=100)
    declared = {metric.name: metric for metric in catalogue.metrics()}
    for family in parse(text):
        metric = declared[family.name + ("_total" if family.type == "counter" else "")]
        assert family.type == ("gauge" if metric.kind == "info" else metric.kind)
        assert family.documentation == metric.help
        for sample in family.samples:
            labels = set(sample.labels) - ({"le"} if metric.kind == "histogram" else set())
            assert labels >= set(metric.labels) if metric.kind == "info" else labels == set(metric.labels)


def test_no_series_is_exposed_twice(fetch):
    keys = [(s.name, *sorted(s.labels.items())) for f in parse_text(fetch(everything)) for s in f.samples]
    assert len(keys) == len(set(keys))


def rank_series(text, without=()):
    return [
        s
        for family in parse_text(text)
        for s in family.samples
        if {"run", "rank"} <= set(s.labels) and s.name not in without
    ]


def test_a_rank_has_at_most_64_series(fetch):
    assert len(rank_series(fetch(ordinary))) <= SERIES_A_RANK


def test_a_rank_that_tells_all_that_is_known_has_at_most_64_series_and_its_scalars(fetch):
    def known(run):
        ordinary(run)
        run.epoch(1)
        run.step(tokens=10, loss=1.0, learning_rate=0.1, grad_norm=1.0, loss_scale=8.0)
        run.checkpoint(1.0)

    assert len(rank_series(fetch(known, target_steps=100))) <= SERIES_A_RANK


def test_known_series_exist_from_the_start_at_0(fetch):
    values = {(s.name, *sorted(s.labels.items())[2:]): s.value for s in rank_series(fetch())}
    values = {
        (s.name, *[v for k, v in sorted(s.labels.items()) if k not in RANK]): s.value for s in rank_series(fetch())
    }
    for metric in catalogue.metrics():
        if metric.kind == "counter" and metric.labels == RANK:
            assert values[(metric.name,)] == 0
    assert values[("paddle_train_step_duration_seconds_count",)] == 0
    for reason in catalogue.DROP_REASONS:
        assert values[("paddle_exporter_dropped_scalars_total", reason)] == 0
    for phase in catalogue.PHASES:
        assert values[("paddle_train_phase_seconds_total", phase)] >= 0
    for scalar in ("loss", "grad_norm"):
        assert values[("paddle_train_nonfinite_total", scalar)] == 0
        assert values[("paddle_train_spikes_total", scalar)] == 0


@pytest.mark.parametrize("scalar", ["learning_rate", "loss_scale", "eval/loss"])
def test_a_first_value_that_is_not_finite_is_an_increase(fetch, scalar):
    """A counter that is born at 1 has increase() 0: Prometheus has to see it at 0 before."""
    values = {s.labels["scalar"]: s.value for s in rank_series(fetch()) if s.name == "paddle_train_nonfinite_total"}
    assert values.get(scalar) == 0


def test_info_metrics_are_1(fetch):
    infos = [s for f in parse_text(fetch(everything)) for s in f.samples if s.name.endswith("_info")]
    assert {s.value for s in infos} == {1.0}
    assert {s.name for s in infos} == {"paddle_run_info", "paddle_exporter_build_info"}
