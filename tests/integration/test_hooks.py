"""The hooks in real training: paddlepaddle 2.6 and 3.3, hapi, and the Trainers of PaddleNLP and PaddleFormers.

A job is a script in jobs/ that trains and reports what its run exposed, beside what it computed by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conftest import SOURCES, Scrape

pytestmark = pytest.mark.paddle

JOBS = Path(__file__).with_name("jobs")
ROOT = Path(__file__).resolve().parents[2]
PYTHONS = {
    "2.6": os.environ.get("TEST_PADDLE26_PYTHON", str(ROOT / ".venv-paddle26" / "bin" / "python")),
    "3.3": os.environ.get("TEST_PADDLE33_PYTHON", sys.executable),
}
TRAINERS = {
    "paddlenlp": os.environ.get("TEST_PADDLENLP_PYTHON", PYTHONS["2.6"]),
    "paddleformers": os.environ.get("TEST_PADDLEFORMERS_PYTHON", PYTHONS["3.3"]),
}
LOOPS = (
    *("optimizers", "minimizes", "explicit", "accumulates", "changes_its_mind", "one_update", "durations", "groups"),
    *("clip_function", "no_norm", "late_clip", "wrappers", "lbfgs", "attached_again", "copies", "forgotten"),
    *("somebody_elses", "raises", "broken", "data", "failing_data", "checkpoints", "threads", "compiled"),
)
STEPS, SAMPLES, TOKENS = (f"paddle_train_{what}_total" for what in ("steps", "samples", "tokens"))
RATE, NORM, LOSS = "paddle_train_learning_rate", "paddle_train_grad_norm", "paddle_train_loss"
SECONDS = "paddle_train_step_duration_seconds"
PHASE = "paddle_train_phase_seconds_total"
SAVES, FAILURES = "paddle_checkpoint_saves_total", "paddle_checkpoint_failures_total"
DROPPED = "paddle_exporter_dropped_scalars_total"

WAITED = 0.6  # of the time that samples take, at least: a loader reads ahead while the model works

_results: dict[tuple[str, ...], dict[str, Report]] = {}


class Report:
    """What one run of a job exposed, and ``facts`` that the job found by itself."""

    def __init__(self, output: str, scrape: str, facts: dict) -> None:
        self.exposed = Scrape(text_string_to_metric_families(scrape))
        self.facts = facts
        self.output = output

    def __call__(self, name: str, /, **labels: str):
        return self.exposed(name, **labels)


def missing(what: str):
    """A test that cannot run here: an error where everything must be tested."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def environment(tmp_path: Path) -> dict[str, str]:
    settings = {"PAGE_DIR": str(tmp_path / "pages"), "ADDRESS": "127.0.0.1", "PORT": "0", "LINGER": "0"}
    return {
        **os.environ,
        **{f"PADDLE_EXPORTER_{name}": value for name, value in settings.items()},
        "PYTHONPATH": os.pathsep.join([SOURCES, str(JOBS)]),
        "PYTHONWARNINGS": "ignore",
    }


def reports_in(output: str, version: str) -> dict[str, Report]:
    """The reports that a job handed over, which was run by this version of Paddle."""
    lines = [line for line in output.splitlines() if line.startswith("REPORTS ")]
    assert lines, output[-5000:]
    found = json.loads(lines[-1].removeprefix("REPORTS "))
    assert found.pop("paddle").startswith(version)
    return {name: Report(output, **report) for name, report in found.items()}


@pytest.fixture(params=["2.6", "3.3"])
def version(request):
    """Which Paddle the test is about."""
    return request.param


@pytest.fixture
def job(version, tmp_path):
    """``job(script, *arguments)``: the reports of a job that was run, once for all tests, by this version of Paddle."""

    def run(script: str, *arguments: str, needs: str = "paddle") -> dict[str, Report]:
        key = (version, script, *arguments)
        if key not in _results:
            python = TRAINERS.get(needs, PYTHONS[version])
            if not Path(python).exists():
                missing(f"no Python with Paddle {version}: {python}")
            found = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({needs!r}))"
            if subprocess.run([python, "-c", found], check=False).returncode:
                missing(f"{python} has no {needs}")
            command = [python, str(JOBS / script), *arguments]
            done = subprocess.run(
                command,
                env=environment(tmp_path),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
            _results[key] = reports_in(done.stdout + done.stderr, version)
        return _results[key]

    return run


@pytest.fixture
def loop(job):
    """``loop(name)``: the report of one loop written by hand."""

    def find(name: str) -> Report:
        reports = job("loops.py", *LOOPS)
        assert name in reports, next(iter(reports.values())).output[-5000:]
        return reports[name]

    return find


def assert_rows(report: Report, count: int) -> None:
    """At each update the page had the norm and the rate that the job found by itself, and has the last ones now."""
    rows = report.facts["rows"]
    assert len(rows) == count
    for norm, rate, shown_norm, shown_rate in rows:
        assert shown_norm == pytest.approx(norm, rel=1e-5)
        assert shown_rate == rate
    assert report(NORM) == pytest.approx(rows[-1][0], rel=1e-5)
    assert report(RATE) == rows[-1][1]


# --- loops written by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam", "AdamW", "Lamb"])
def test_each_update_of_an_optimizer_is_a_step_and_training_is_the_same_to_the_bit(loop, name):
    report = loop(name)
    assert (report(STEPS), report(SAMPLES), report(TOKENS)) == (20, 160, 640)
    assert report(SECONDS + "_count") == 19
    assert_rows(report, 20)
    without, with_hooks = report.facts["digests"]
    assert with_hooks == without
    assert report.exposed.total(DROPPED) == 0


def test_minimize_is_an_update_too(loop):
    report = loop("minimize")
    assert (report(STEPS), report(SAMPLES)) == (6, 48)
    assert_rows(report, 6)


def test_a_loop_that_calls_step_counts_itself_and_gets_rate_and_norm(loop):
    report = loop("explicit")
    assert (report(STEPS), report(SAMPLES), report(LOSS)) == (6, 18, 6.0)
    assert report(SECONDS + "_count") == 5
    assert_rows(report, 6)


def test_with_accumulated_gradients_a_step_is_an_update_unless_the_loop_says_otherwise(loop):
    report = loop("accumulate")
    assert (report(STEPS), report(SAMPLES)) == (5, 160)
    report = loop("accumulate-told")
    assert (report(STEPS), report(SAMPLES)) == (20, 160)


def test_a_loop_that_begins_to_call_step_later_counts_itself_from_then_on(loop):
    report = loop("mind")
    assert report(STEPS) == 4 + 1 + 5  # the one update before its first call was taken for a step
    assert "step() is called beside attach()" in report.output


def test_a_single_update_is_counted_at_the_end_and_the_optimizer_left_as_it_was(loop):
    assert loop("one").facts == {"before": 0, "after": 1, "step_is_ours": False}


def test_the_first_step_is_counted_late_but_timed_and_an_evaluation_is_no_part_of_it(loop):
    report = loop("durations")
    assert (report(STEPS), report(SECONDS + "_count")) == (3, 2)
    assert 0.12 <= report(SECONDS + "_sum") < 0.12 + 0.3
    assert report(PHASE, phase="eval") >= 0.3


@pytest.mark.parametrize("name", ["groups-AdamW", "groups-Momentum"])
def test_an_update_of_parameter_groups_is_one_step_with_the_norm_of_all(loop, name):
    report = loop(name)
    assert report(STEPS) == 5
    assert_rows(report, 5)


def test_the_norm_of_clip_grad_norm_is_taken_even_where_it_was_imported_by_name(loop):
    report = loop("function")
    assert report(STEPS) == 7
    assert report(NORM) == report.facts["last"]
    for norm, _, shown, _ in report.facts["rows"]:
        assert shown == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("name", ["by-value", "by-norm", "unclipped"])
def test_without_a_global_norm_there_is_none(loop, name):
    report = loop(name)
    assert (report(STEPS), report(NORM)) == (3, None)


def test_a_clip_that_comes_later_is_found_and_paddles_sqrt_left_alone(loop):
    report = loop("late-clip")
    assert report(STEPS) == 5
    assert_rows(report, 3)
    assert report.facts["sqrt_is_paddles"]


@pytest.mark.parametrize("name", ["lookahead-outer", "lookahead-inner"])
def test_an_optimizer_around_another_makes_one_step_of_an_update(loop, name):
    report = loop(name)
    assert (report(STEPS), report(RATE)) == (5, 0.1)
    assert report(NORM) > 0


def test_lbfgs_makes_one_step_of_many_evaluations(loop):
    report = loop("lbfgs")
    assert (report(STEPS), report(RATE)) == (4, 0.1)


def test_attaching_again_counts_nothing_twice_and_follows_the_newest_optimizer_and_run(loop):
    assert loop("again-1")(STEPS) == 4 + 2
    report = loop("again-2")
    assert (report(STEPS), report(SAVES)) == (5, 1)
    assert report(PHASE, phase="data") >= WAITED * 4 * 0.01


def test_a_copy_of_the_optimizer_steps_itself(loop):
    report = loop("copies")
    assert report.facts == {"bound_to_twin": True, "untouched": True}
    assert report(STEPS) == 3


def test_no_optimizer_is_kept_alive(loop):
    report = loop("forgotten")
    assert report.facts == {"kept": True, "gone": True}
    assert report(STEPS) == 4


def test_wrappers_of_others_are_called_and_stay(loop):
    report = loop("somebody")
    assert report.facts["calls"] == ["after", "before"] * 4
    assert report.facts["stays"]
    assert report(STEPS) == 3


def test_an_update_that_raises_raises_into_the_loop_and_is_no_step(loop):
    report = loop("raises")
    assert report.facts["caught"] == ["AssertionError", "AssertionError"]
    assert report(STEPS) == 4


def test_what_is_missing_is_said_and_costs_only_itself(loop):
    report = loop("broken")
    assert (report.facts["steps"], report(STEPS), report(RATE)) == (3, 3, None)
    for said in ("the learning rate of a Odd is not seen", "a object has no step()", "Loop.watch"):
        assert report.output.count(said) == 1, said
    assert "attach() failed" not in report.output


@pytest.mark.parametrize("workers", [0, 2])
def test_waits_for_data_are_a_phase_that_ends_with_the_loader_and_is_not_an_evaluations(loop, workers):
    report = loop(f"data-{workers}")
    assert (report.facts["seen"], report(STEPS)) == (8, 4)
    assert report(PHASE, phase="data") >= WAITED * 8 * 0.05 / max(workers, 1)
    assert report(PHASE, phase="eval") >= 4 * 0.05
    assert report(PHASE, phase="other") < 0.2
    assert report.facts["open"] == []
    assert report.facts["told"] > 0  # Paddle's own hooks go on


def test_a_loader_that_fails_fails_as_ever_and_closes_the_phase(loop):
    report = loop("failing-data")
    assert report.facts["caught"]
    assert report.facts["open"] == []


def test_saves_between_two_steps_are_one_checkpoint_and_failures_count(loop):
    report = loop("checkpoints")
    assert (report(STEPS), report(SAVES), report(FAILURES)) == (14, 4, 2)
    seconds = report("paddle_checkpoint_seconds_total")
    assert 0 < seconds < 5
    assert report(PHASE, phase="checkpoint") == pytest.approx(seconds, rel=0.1)
    age = report.facts["now"] - report("paddle_checkpoint_last_success_timestamp_seconds")
    assert 0 <= age < 5
    assert report.facts["files"] == [f"{epoch}.{kind}" for epoch in range(3) for kind in ("pdopt", "pdparams")]
    assert report.facts["caught"] == ["ValueError", "FileNotFoundError"]
    assert report.facts["weights"] == 4


def test_a_save_in_the_background_counts(loop):
    report = loop("async")
    assert report.facts["saved"]
    assert report(SAVES) == 1


def test_an_update_in_a_traced_function_does_what_it_does_without_hooks(loop, version):
    report = loop("compiled")
    without, with_hooks = report.facts["outcomes"]
    assert with_hooks == without
    if version == "3.3":
        assert isinstance(without[0], list)
        assert (report(STEPS), report(SAVES)) == (4, 4)
        assert report(NORM) > 0


# --- mixed precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["step", "minimize", "function", "static"])
def test_loss_scale_and_skipped_updates_of_a_grad_scaler(job, name):
    reports = job("amp.py")
    report = reports[name]
    assert (report(STEPS), report(SAMPLES)) == (12, 96)
    assert report("paddle_train_skipped_steps_total") == 3
    rows = report.facts["rows"]
    for update, (scale, shown, norm, shown_norm) in enumerate(rows):
        assert shown == scale
        if update not in (2, 3, 7):
            assert shown_norm == pytest.approx(norm, rel=1e-5)
    if name != "static":
        assert {scale for scale, *_ in rows} == {1024, 512, 256}
    assert report("paddle_train_nonfinite_total", scalar="grad_norm") == 0
    if name in ("step", "minimize"):
        assert report.facts["digest"] == reports["plain"].facts["digest"]


def test_a_disabled_scaler_has_no_scale_to_show(job):
    report = job("amp.py")["disabled"]
    assert not report.facts["enabled"]
    assert (report(STEPS), report("paddle_train_loss_scale")) == (3, None)


# --- hapi -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fit", "workers", "twice"])
def test_fit_tells_steps_losses_metrics_rates_evaluations_and_checkpoints(job, name):
    reports = job("hapi.py")
    report, facts = reports[name], reports[name].facts
    assert (report(STEPS), report(SAMPLES)) == (15, 60)
    assert (report("paddle_train_epoch"), report("paddle_train_target_steps")) == (2, 15)
    assert report("paddle_train_global_step") == 15
    assert report(LOSS) == pytest.approx(facts["losses"][-1])
    assert report("paddle_train_scalar", name="acc") == pytest.approx(0.8)
    assert report(RATE) == facts["rates"][-1]
    assert report(NORM) > 0
    assert [report("paddle_eval_loss"), report("paddle_eval_scalar", name="acc")] == pytest.approx(facts["evals"][-1])
    assert (report(SAVES), report(FAILURES)) == (3, 0)
    assert report(PHASE, phase="data") >= WAITED * 60 * 0.005 / (2 if name == "workers" else 1)
    assert report(PHASE, phase="eval") >= 3 * 8 * 0.005 / (2 if name == "workers" else 1)
    assert facts["open"] == []
    assert facts["digest"] == reports["plain"].facts["digest"]
    assert report.exposed.total(DROPPED) == 0


def test_fit_with_accumulated_gradients_makes_a_step_of_an_update(job):
    report = job("hapi.py")["accumulate"]
    assert (report(STEPS), report(SAMPLES)) == (9, 60)  # 5 batches are 3 updates
    assert report("paddle_train_target_steps") == 9
    assert report(LOSS) == pytest.approx(report.facts["losses"][-1])


def test_fit_of_so_many_iterations_and_evaluate_alone(job):
    reports = job("hapi.py")
    assert reports["iterations"](STEPS) == len(reports["iterations"].facts["losses"])
    assert reports["iterations"]("paddle_train_target_steps") == 7
    assert reports["evaluate"](STEPS) == 0
    assert reports["evaluate"]("paddle_eval_loss") > 0
    assert reports["evaluate"](PHASE, phase="eval") >= 8 * 0.005


def test_the_callback_starts_a_run_where_there_is_none(job):
    report = job("hapi.py")["started"]
    assert report.facts["run"].startswith("hapi-")
    assert (report(STEPS), report(SAMPLES)) == (5, 20)


# --- Trainers -------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(job, version):
    """The reports of the Trainer that goes with this version of Paddle."""
    package = {"2.6": "paddlenlp", "3.3": "paddleformers"}[version]
    return job("trainer.py", package, needs=package)


def test_a_trainer_tells_steps_losses_rates_norms_evaluations_and_checkpoints(trained):
    report, facts = trained["hooked"], trained["hooked"].facts
    assert (report(STEPS), report(SAMPLES), report(TOKENS)) == (10, 80, 10_000)
    assert report("paddle_train_global_step") == report("paddle_train_target_steps") == 10
    losses = [logs["loss"] for logs in facts["logs"] if "loss" in logs]
    assert report(LOSS) == losses[-1]
    assert report(RATE) == facts["rates"][-1]
    assert report(NORM) > 0
    assert report("paddle_eval_loss") == pytest.approx(facts["metrics"][-1]["eval_loss"])
    assert report("paddle_eval_scalar", name="acc") == 0.5
    assert report("paddle_train_scalar", name="interval_steps_per_second") > 0
    assert report("paddle_train_scalar", name="global_step") is None
    assert (report(SAVES), report(FAILURES)) == (2, 0)
    assert report("paddle_checkpoint_seconds_total") == pytest.approx(report(PHASE, phase="checkpoint"), rel=0.3)
    assert report(PHASE, phase="eval") >= 2 * 8 * 0.02
    assert report(PHASE, phase="data") >= 0.5 * WAITED * 80 * 0.003  # updates take their time, too
    assert facts["open"] == []
    assert facts["digest"] == trained["plain"].facts["digest"]
    assert report.exposed.total(DROPPED) == 0


def test_a_resumed_trainer_counts_on_and_two_callbacks_count_once(trained):
    report = trained["resumed"]
    assert (report(STEPS), report(SAMPLES)) == (2, 16)
    assert report("paddle_train_global_step") == report("paddle_train_target_steps") == 12


# --- ranks, tensors -------------------------------------------------------------------------------------------


def test_ranks_of_data_parallel_training(version, tmp_path):
    python = PYTHONS[version]
    if not Path(python).exists():
        missing(f"no Python with Paddle {version}: {python}")
    command = [python, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", "log"]
    done = subprocess.run(
        [*command, str(JOBS / "ranks.py")],
        env=environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in (0, 1)]
    assert done.returncode == 0, "".join(logs)[-5000:]
    ranks = [reports_in(log, version)["rank"] for log in logs]
    for rank, report in enumerate(ranks):
        assert report.facts["rank"] == rank
        assert (report(STEPS), report(SAMPLES)) == (20, 160)
        assert report(NORM) == pytest.approx(report.facts["norms"][-1], rel=1e-5)
        assert report(LOSS) == pytest.approx(report.facts["loss"])
        assert report(PHASE, phase="data") > 0.01
        assert report(SAVES) == (1 if rank == 0 else 0)
    assert ranks[0](NORM) == ranks[1](NORM)
    assert ranks[0].facts["digest"] == ranks[1].facts["digest"]


def test_tensors_of_every_kind_are_taken_and_hold_no_graph(job):
    report = job("tensors.py")["tensors"]
    facts = report.facts
    assert len(facts["values"]) == 20
    for name, (known, value, counted) in facts["values"].items():
        assert (known, value, counted) == (True, 2.0 if name.startswith("int") else 2.5, 1), name
    assert facts["others"] == [False] * 6
    assert facts["held"]
    assert facts["freed"]
    assert report(STEPS) == 23
    assert report(DROPPED, reason="not_a_number") == 1  # two elements
    assert report("paddle_train_nonfinite_total", scalar="loss") == 1
    assert report(LOSS) == facts["last"]
