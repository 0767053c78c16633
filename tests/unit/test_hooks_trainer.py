"""The Trainer callback by the order of a Trainer's events, without a Trainer."""

from __future__ import annotations

import logging
import sys
import types

import fake_paddle
import pytest
from fake_paddle import Optimizer, Scaler

from paddle_exporter.hooks import checkpoint, trainer

STEPS, SAMPLES = "paddle_train_steps_total", "paddle_train_samples_total"
PHASE = "paddle_train_phase_seconds_total"
SAVES = "paddle_checkpoint_saves_total"

ARGS = types.SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=3)


class Trainer:
    """Sends the events of a training, as the handlers of PaddleNLP and PaddleFormers do."""

    def __init__(self, *callbacks) -> None:
        self.callbacks = callbacks
        self.state = types.SimpleNamespace(global_step=0, max_steps=20, epoch=0.0)
        self.control = types.SimpleNamespace(should_log=False, should_evaluate=False, should_save=False)
        self.optimizer = Optimizer()

    def send(self, event: str, **objects) -> None:
        cleared = {"on_log": "should_log", "on_evaluate": "should_evaluate", "on_save": "should_save"}
        if event in cleared:
            setattr(self.control, cleared[event], False)
        for callback in self.callbacks:
            given = getattr(callback, event)(ARGS, self.state, self.control, optimizer=self.optimizer, **objects)
            assert given is None

    def step(self, **wanted: bool) -> None:
        self.send("on_step_begin")
        self.send("on_optimizer_begin", scaler=None)
        self.optimizer.step()
        self.state.global_step += 1
        self.state.epoch += 0.25
        for name, value in wanted.items():
            setattr(self.control, f"should_{name}", value)
        self.send("on_step_end")


@pytest.fixture
def paddle(monkeypatch):
    """A small Paddle."""
    return fake_paddle.install(monkeypatch)


@pytest.fixture
def run(start, paddle):
    return start("trainer")


@pytest.fixture
def trained(run):
    made = Trainer(trainer.trainer_callback(run))
    made.send("on_init_end")
    made.send("on_train_begin")
    return made


def open_phases(run):
    return [phase.name for phase in run._open_phases]


def test_steps_samples_epoch_and_target(trained, run, scrape):
    for _ in range(5):
        trained.step()
    seen = scrape(run)
    assert (seen(STEPS), seen(SAMPLES)) == (5, 60)
    assert (seen("paddle_train_global_step"), seen("paddle_train_target_steps")) == (5, 20)
    assert seen("paddle_train_epoch") == 1


def test_a_target_that_was_set_stays(start, paddle, scrape):
    run = start("target", target_steps=7)
    Trainer(trainer.trainer_callback(run)).send("on_train_begin")
    assert scrape(run)("paddle_train_target_steps") == 7


def test_evaluations_of_several_sets_and_a_save_are_phases_one_after_another(trained, run, scrape):
    trained.step(log=True, evaluate=True, save=True)
    assert open_phases(run) == []
    trained.send("on_log", logs={"loss": 1.0})
    assert open_phases(run) == ["eval"]
    for name in ("a", "b"):
        trained.send("on_prediction_step")
        assert open_phases(run) == ["eval"]
        trained.send("on_log", logs={f"eval_{name}_loss": 2.0})
        trained.send("on_evaluate", metrics={f"eval_{name}_loss": 2.0, "epoch": 1.0, "eval_text": "good"})
        assert open_phases(run) == ["checkpoint"]
    trained.send("on_save")
    assert open_phases(run) == []
    seen = scrape(run)
    assert (seen(SAVES), seen("paddle_train_loss")) == (1, 1.0)
    assert [seen("paddle_eval_scalar", name=name) for name in ("a_loss", "b_loss")] == [2.0, 2.0]
    assert seen("paddle_eval_scalar", name="epoch") is None
    assert seen("paddle_train_scalar", name="eval_a_loss") is None
    assert seen.total("paddle_exporter_dropped_scalars_total") == 0


def test_a_save_is_one_checkpoint_whether_paddle_save_was_seen_or_not(trained, run, scrape, paddle, monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(trainer, "monotonic", lambda: clock.now)
    monkeypatch.setattr(checkpoint, "monotonic", lambda: clock.now)

    def save(_path):
        clock.now += 10.0

    for saves in (0, 1, 3):
        trained.step(save=True)
        clock.now += 1.0  # safetensors, or what else is not seen
        for _ in range(saves):
            paddle.save(save, "model.pdparams")
        trained.send("on_save")
        clock.now += 1000.0
    assert scrape(run)(SAVES) == 3
    assert scrape(run)("paddle_checkpoint_seconds_total") == pytest.approx(3 * 1.0 + 4 * 10.0)
    trained.send("on_save")  # by a version that tells no beginning
    assert scrape(run)(SAVES) == 3
    assert scrape(run)("paddle_checkpoint_seconds_total") == pytest.approx(43.0)


def test_what_an_error_left_open_is_closed_by_the_next_step(trained, run):
    trained.step(evaluate=True)
    assert open_phases(run) == ["eval"]
    trained.control.should_evaluate = False
    trained.send("on_step_begin")
    assert open_phases(run) == []
    trained.send("on_prediction_step")
    trained.send("on_train_end")
    assert open_phases(run) == []
    trained.send("on_prediction_step")  # predict() after training
    assert open_phases(run) == []


def test_logs_of_all_sorts(trained, run, scrape):
    trained.step()
    logs = {
        "loss": 1.5,
        "learning_rate": 3e-5,
        "global_norm": 2.5,
        "mfu": 0.4,
        "global_step": 9,
        "note": "x",
        "ok": True,
    }
    trained.send("on_log", logs={**logs, "nothing": None, "train_runtime": 3.0, "many": [1, 2]})
    trained.send("on_log", logs=None)
    seen = scrape(run)
    assert (seen("paddle_train_loss"), seen("paddle_train_grad_norm")) == (1.5, 2.5)
    assert seen("paddle_train_learning_rate") == 0.5  # the optimizer's: the log's is rounded, and the next step's
    assert seen("paddle_train_scalar", name="mfu") == 0.4
    for name in ("global_step", "note", "ok", "nothing", "train_runtime", "many"):
        assert seen("paddle_train_scalar", name=name) is None
    assert seen.total("paddle_exporter_dropped_scalars_total") == 0


def test_without_an_optimizer_the_logs_rate_is_taken(run, scrape):
    made = Trainer(trainer.trainer_callback(run))
    made.optimizer = None
    made.send("on_train_begin")
    made.send("on_log", logs={"loss": 1.5, "learning_rate": 3e-5})
    assert scrape(run)("paddle_train_learning_rate") == 3e-5


def test_a_scaler_is_watched_when_it_comes(trained, run, scrape):
    trained.send("on_optimizer_begin", scaler=Scaler())
    assert scrape(run)("paddle_train_loss_scale") == 1024.0


def test_of_two_callbacks_the_last_counts(run, scrape):
    made = Trainer(trainer.trainer_callback(run), trainer.trainer_callback(run))
    made.send("on_train_begin")
    for _ in range(3):
        made.step()
    assert (scrape(run)(STEPS), scrape(run)(SAMPLES)) == (3, 36)


def test_training_that_goes_on_begins_at_its_step(run, scrape):
    made = Trainer(trainer.trainer_callback(run))
    made.state.global_step = 15
    made.send("on_train_begin")
    assert scrape(run)("paddle_train_global_step") == 15
    made.step()
    assert (scrape(run)("paddle_train_global_step"), scrape(run)(STEPS)) == (16, 1)


def test_nothing_raises_into_a_trainer(trained, run, scrape, caplog):
    trained.state = types.SimpleNamespace(global_step=0, epoch=0.0)
    trained.control = object()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for event in ("on_train_begin", "on_step_begin", "on_step_end", "on_log", "on_epoch_end"):
                for callback in trained.callbacks:
                    getattr(callback, event)(ARGS, trained.state, trained.control, logs=7)
    assert 0 < len(caplog.records) < 8
    trained.send("on_event_of_the_future")
    with pytest.raises(AttributeError):
        trained.callbacks[0].not_an_event  # noqa: B018


def test_the_class_has_the_bases_of_the_packages_that_are_imported(run, monkeypatch):
    class Base:
        def on_save_hf(self, *_, **__):
            return "the package's own"

    for package in trainer.PACKAGES:
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        monkeypatch.setitem(sys.modules, f"{package}.trainer", types.ModuleType(f"{package}.trainer"))
        module = types.ModuleType(f"{package}.trainer.trainer_callback")
        module.TrainerCallback = type("TrainerCallback", (Base,), {})
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for package in trainer.PACKAGES:
        base = sys.modules[f"{package}.trainer.trainer_callback"].TrainerCallback
        assert isinstance(trainer.trainer_callback(run), base)
        one = trainer.trainer_callback(run, package)
        assert isinstance(one, base)
        assert type(one) is type(trainer.trainer_callback(run, package))
        assert one.on_save_hf() == "the package's own"


def test_a_package_that_is_not_there_is_said(run, caplog):
    made = Trainer(trainer.trainer_callback(run, "no_such_package"))
    made.send("on_train_begin")
    assert "no_such_package has no TrainerCallback" in caplog.text


def test_the_active_run_is_told_and_a_wrong_setting_raised_before_training(run, scrape, monkeypatch, paddle):
    made = Trainer(trainer.trainer_callback())
    made.send("on_train_begin")
    made.step()
    assert scrape(run)(STEPS) == 1
    run.finish()
    monkeypatch.setenv("PADDLE_EXPORTER_PORT", "no port")
    from paddle_exporter.settings import SettingError

    with pytest.raises(SettingError):
        Trainer(trainer.trainer_callback()).send("on_train_begin")
