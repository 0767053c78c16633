"""The hooks' rules, with a Paddle of our own: who counts steps, what is wrapped and put back, what may go wrong."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import pickle
import sys
import threading
import types

import fake_paddle
import pytest
from fake_paddle import Clip, Optimizer, Scaler, Sharding, Tensor

from paddle_exporter.hooks import attach, checkpoint, dataloader, wrapping
from paddle_exporter.hooks.optimizer import Watch, chain
from paddle_exporter.tensors import TensorQueue

STEPS, SAMPLES = "paddle_train_steps_total", "paddle_train_samples_total"
RATE, NORM = "paddle_train_learning_rate", "paddle_train_grad_norm"
SKIPPED, SCALE = "paddle_train_skipped_steps_total", "paddle_train_loss_scale"
SAVES, FAILURES = "paddle_checkpoint_saves_total", "paddle_checkpoint_failures_total"
PHASE = "paddle_train_phase_seconds_total"


@pytest.fixture
def paddle(monkeypatch):
    """A small Paddle."""
    return fake_paddle.install(monkeypatch)


# --- who counts -----------------------------------------------------------------------------------------------


def test_updates_are_steps_from_the_second_on_the_first_one_included(paddle, recorder, scrape):
    optimizer = Optimizer()
    attach.attach(recorder, optimizer=optimizer, samples=8)
    optimizer.step()
    assert (scrape(recorder)(STEPS), scrape(recorder)(RATE)) == (0, 0.5)
    optimizer.step()
    assert (scrape(recorder)(STEPS), scrape(recorder)(SAMPLES)) == (2, 16)
    optimizer.minimize("loss")
    assert (scrape(recorder)(STEPS), optimizer.updates) == (3, 3)


@pytest.mark.parametrize("before", [True, False])
def test_a_loop_that_counts_is_not_counted_for(paddle, recorder, scrape, before):
    optimizer = Optimizer(Clip())
    attach.attach(recorder, optimizer=optimizer, samples=8)
    for _ in range(4):
        if before:
            recorder.step(samples=2, loss=1.0)
        optimizer.step()
        if not before:
            recorder.step(samples=2, loss=1.0)
    seen = scrape(recorder)
    assert (seen(STEPS), seen(SAMPLES), seen(RATE), seen(NORM)) == (4, 8, 0.5, 5.0)


def test_what_a_loop_tells_itself_is_not_told_again(paddle, recorder, scrape):
    optimizer = Optimizer(Clip())
    attach.attach(recorder, optimizer=optimizer)
    for _ in range(4):
        optimizer.step()
        recorder.step(learning_rate=0.25, grad_norm=1.0)
    optimizer.step()
    seen = scrape(recorder)
    assert (seen(RATE), seen(NORM)) == (0.25, 1.0)


def test_a_loop_that_begins_to_count_is_not_counted_for_from_then_on(paddle, recorder, scrape, caplog):
    optimizer = Optimizer()
    attach.attach(recorder, optimizer=optimizer)
    for _ in range(3):
        optimizer.step()
    recorder.step()
    for _ in range(3):
        optimizer.step()
    assert scrape(recorder)(STEPS) == 4
    assert "step() is called beside attach()" in caplog.text


def test_a_callback_that_counts_is_not_counted_for(paddle, recorder, scrape):
    optimizer = Optimizer()
    loop = attach.attach(recorder, optimizer=optimizer, counts=False)
    for _ in range(3):
        optimizer.step()
    assert (scrape(recorder)(STEPS), loop.updates) == (0, 3)


def test_one_update_is_counted_at_the_end_if_nobody_did(paddle, recorder, scrape):
    optimizer = Optimizer()
    attach.attach(recorder, optimizer=optimizer, tokens=5)
    optimizer.step()
    recorder._last_words()
    assert (scrape(recorder)(STEPS), scrape(recorder)("paddle_train_tokens_total")) == (1, 5)
    assert vars(optimizer).keys().isdisjoint({"step", "minimize", "_apply_optimize"})
    recorder._last_words()
    optimizer.step()
    assert scrape(recorder)(STEPS) == 1


def test_building_a_program_is_no_update(paddle, recorder, scrape):
    optimizer = Optimizer()
    attach.attach(recorder, optimizer=optimizer)
    paddle.dynamic = False
    assert [optimizer.minimize("loss") for _ in range(3)] == ["loss"] * 3
    paddle.dynamic = True
    recorder._last_words()
    assert scrape(recorder)(STEPS) == 0


# --- what is watched ------------------------------------------------------------------------------------------


def test_sharding_that_goes_around_step_is_seen_and_once(paddle, recorder, scrape):
    for attached in (0, 1):
        inner = Optimizer(Clip())
        outer = Sharding(inner)
        attach.attach(recorder, optimizer=(inner, outer)[attached])
        before = scrape(recorder)(STEPS)
        for _ in range(3):
            outer.step()
        assert scrape(recorder)(STEPS) - before == 3
        assert scrape(recorder)(NORM) == 5.0


def test_a_chain_of_optimizers_ends_even_where_it_is_a_circle():
    first, second = Sharding(None), Sharding(None)
    first._inner_opt, second._inner_opt = second, first
    assert chain(first) == [first, second]
    assert chain(7) == [7]


def test_an_error_of_the_optimizer_is_the_loops_and_the_next_update_counts(paddle, recorder, scrape):
    class Failing(Optimizer):
        fails = False

        def step(self):
            if self.fails:
                raise ZeroDivisionError
            super().step()

    optimizer = Failing(Clip())
    attach.attach(recorder, optimizer=optimizer)
    optimizer.step()
    optimizer.fails = True
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    optimizer.fails = False
    optimizer.step()
    assert scrape(recorder)(STEPS) == 2


def test_errors_of_ours_are_said_once_and_never_raised(paddle, recorder, caplog):
    optimizer = Optimizer()
    loop = attach.attach(recorder, optimizer=optimizer)
    loop._values = lambda _: int(f"not a number {optimizer.updates}")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            optimizer.step()
    assert optimizer.updates == 3
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("a hook does not work here, training goes on: Loop.after: ValueError(")


def test_a_wrapped_method_survives_copies_and_pickles_of_its_owner():
    told = []

    def around(name, method, arguments, options):
        told.append(name)
        return method(*arguments, **options)

    optimizer = Optimizer()
    wrapping.wrap(optimizer, "step", around)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        twin.step()
        assert (twin.updates, optimizer.updates, told) == (1, 0, [])
    optimizer.step()
    assert (optimizer.updates, told) == (1, ["step"])


def test_what_was_wrapped_is_put_back_in_any_order():
    class Thing:
        def name(self):
            return "own"

    def tag(mark):
        return lambda _, method, arguments, options: f"{mark}({method(*arguments, **options)})"

    thing = Thing()
    thing.name = lambda: "theirs"
    first = wrapping.wrap(thing, "name", tag("a"))
    second = wrapping.wrap(thing, "name", tag("b"))
    assert thing.name() == "b(a(theirs))"
    first.release()
    assert thing.name() == "b(theirs)"
    second.release()
    second.release()
    assert thing.name() == "theirs"
    assert wrapping.wrap(thing, "no such method", tag("c")) is None
    assert wrapping.wrap(object(), "name", tag("c")) is None


def test_a_function_is_replaced_wherever_it_was_imported_by_its_name(monkeypatch):
    def original():
        pass

    modules = {name: types.ModuleType(name) for name in ("one", "two", "three")}
    modules["one"].original = modules["two"].original = original
    modules["three"].original = "something else"
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "none", None)
    wrapping.replace("original", original, "new")
    assert [module.original for module in modules.values()] == ["new", "new", "something else"]


# --- the norm -------------------------------------------------------------------------------------------------


def test_the_norm_is_what_the_clip_made_last_of_one_number(paddle, recorder, scrape):
    optimizer = Optimizer(Clip())
    attach.attach(recorder, optimizer=optimizer)
    sqrt = paddle.sqrt
    for grads, norm in (([9.0, 16.0], 5.0), ([36.0], 6.0)):
        optimizer.grads = grads
        optimizer.step()
        assert scrape(recorder)(NORM) == norm
        assert paddle.sqrt is sqrt


def test_the_norm_of_groups_is_that_of_all(paddle, recorder, scrape):
    optimizer = Optimizer(groups=[{"grad_clip": Clip()}, {"grad_clip": Clip()}, {"grad_clip": None}])
    attach.attach(recorder, optimizer=optimizer)
    optimizer.step()
    assert scrape(recorder)(NORM) == pytest.approx(50**0.5)


def test_sqrt_is_put_back_when_a_clip_raises_and_left_to_somebody_who_took_it(paddle, recorder, scrape):
    class Failing(Clip):
        def _dygraph_clip(self, grads):
            super()._dygraph_clip(grads)
            self.meanwhile()
            raise ZeroDivisionError

    clip = Failing()
    optimizer = Optimizer(clip)
    attach.attach(recorder, optimizer=optimizer)
    sqrt, theirs = paddle.sqrt, (lambda x: x)
    for meanwhile, after in ((lambda: None, sqrt), (lambda: setattr(paddle, "sqrt", theirs), theirs)):
        clip.meanwhile = meanwhile
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        assert paddle.sqrt is after
    assert scrape(recorder)(NORM) is None


def test_other_threads_roots_are_not_the_norm(paddle, recorder, scrape):
    class Busy(Clip):
        def _dygraph_clip(self, grads):
            result = super()._dygraph_clip(grads)
            other = threading.Thread(target=lambda: paddle.sqrt(Tensor(10000.0, (1,))))
            other.start()
            other.join()
            return result

    optimizer = Optimizer(Busy())
    attach.attach(recorder, optimizer=optimizer)
    optimizer.step()
    assert scrape(recorder)(NORM) == 5.0


def test_a_clip_without_a_root_is_said_once(paddle, recorder, scrape, caplog):
    class Other(Clip):
        def _dygraph_clip(self, grads):
            return grads

    class NoMethod:
        def __call__(self, grads):
            return grads

    for clip in (Other(), NoMethod()):
        optimizer = Optimizer(clip)
        attach.attach(recorder, optimizer=optimizer)
        for _ in range(3):
            optimizer.step()
    assert scrape(recorder)(NORM) is None
    assert sum("norm is not seen" in record.message for record in caplog.records) == 2


def test_the_norm_of_the_function_is_the_next_updates(paddle, recorder, scrape):
    optimizer = Optimizer()
    attach.attach(recorder, optimizer=optimizer)
    clip = paddle.nn.utils.clip_grad_norm_
    assert clip(Tensor(3.0, (1,)), 1.0).value == 3.0
    assert scrape(recorder)(NORM) is None
    optimizer.step()
    assert scrape(recorder)(NORM) == 3.0
    for norm_type in (1.0, float("inf"), "fro"):
        clip(Tensor(4.0), 1.0, norm_type)
        clip(Tensor(4.0), 1.0, norm_type=norm_type)
    clip("no tensor", 1.0)
    optimizer.step()
    assert scrape(recorder)(NORM) == 3.0


# --- mixed precision ------------------------------------------------------------------------------------------


class OnDevice(Tensor):
    """Cannot be read before its copy has arrived."""

    def __init__(self, value) -> None:
        super().__init__(value, (1,))
        self.place = types.SimpleNamespace(is_cpu_place=lambda: False)

    def item(self):
        raise AssertionError("waited")

    __bool__ = __float__ = item


def test_flags_that_are_tensors_are_read_when_they_have_arrived(paddle, recorder, scrape):
    arrived = []
    scaler, optimizer = Scaler(), Optimizer()
    loop = attach.attach(recorder, optimizer=optimizer, scaler=scaler)
    watch = loop._scaler
    watch._flags = TensorQueue(watch._count, 1, lambda tensor: (Tensor(tensor.value), lambda: bool(arrived)))
    for flag in (True, False, True):
        scaler._cache_found_inf = OnDevice(flag)
        scaler.step(optimizer)
        scaler.update()
    assert scrape(recorder)(SKIPPED) == 0
    arrived.append(True)
    scaler._cache_found_inf = False
    scaler.step(optimizer)
    assert (scrape(recorder)(SKIPPED), scrape(recorder)(STEPS)) == (2, 4)


def test_a_scale_is_told_when_it_is_another(paddle, recorder, scrape):
    scaler, optimizer = Scaler(), Optimizer()
    attach.attach(recorder, optimizer=optimizer, scaler=scaler)
    assert scrape(recorder)(SCALE) == 1024.0
    scaler._scale.value = 1.0  # the same tensor: not looked at
    scaler.update()
    assert scrape(recorder)(SCALE) == 1024.0
    scaler._scale = Tensor(512.0, (1,))
    scaler.step(optimizer)
    assert scrape(recorder)(SCALE) == 1024.0
    scaler.update()
    assert scrape(recorder)(SCALE) == 512.0


def test_a_scalers_flag_of_before_counts_once_and_a_disabled_one_never(paddle, recorder, scrape):
    scaler, optimizer = Scaler(), Optimizer()
    scaler._cache_founf_inf = True  # 2.6
    del scaler._cache_found_inf
    loop = attach.attach(recorder, optimizer=optimizer, scaler=scaler)
    attach.attach(recorder, optimizer=optimizer, scaler=scaler)
    assert scrape(recorder)(SKIPPED) == 1
    assert scaler.minimize(optimizer, "loss") == "loss"
    assert scrape(recorder)(SKIPPED) == 2
    disabled = Scaler()
    disabled._enable, disabled._cache_found_inf, disabled._scale = False, True, None
    loop.watch_scaler(disabled)
    disabled.step(optimizer)
    assert scrape(recorder)(SKIPPED) == 2
    assert "step" not in vars(scaler)


def test_an_overflow_is_a_skipped_update_and_no_norm(paddle, recorder, scrape):
    optimizer = Optimizer(Clip())
    attach.attach(recorder, optimizer=optimizer)
    optimizer.step()
    optimizer.grads = [float("inf")]
    optimizer._auxiliary_vars["found_inf"] = True
    optimizer.step()
    assert (scrape(recorder)(NORM), scrape(recorder)("paddle_train_nonfinite_total", scalar="grad_norm")) == (5.0, 0)
    optimizer._auxiliary_vars["found_inf"] = False
    optimizer.step()
    assert scrape(recorder)("paddle_train_nonfinite_total", scalar="grad_norm") == 1


# --- data and checkpoints -------------------------------------------------------------------------------------


def test_the_phase_is_open_while_the_loop_waits_and_closed_whatever_comes(paddle, recorder):
    dataloader.follow(recorder)
    dataloader.follow(recorder)
    phases = []

    def batch():
        phases.append([phase.name for phase in recorder._open_phases])
        return "batch"

    loader = paddle.io.DataLoader([batch, batch, KeyError("sample")])
    with pytest.raises(KeyError):
        assert list(loader) == ["batch", "batch"]
    assert phases == [["data"], ["data"]]
    assert recorder._open_phases == []
    with recorder.phase("eval"):
        assert list(paddle.io.DataLoader([batch])) == ["batch"]
    assert phases[-1] == ["eval"]


def test_another_threads_loader_is_not_the_trainings(paddle, recorder, scrape):
    dataloader.follow(recorder)
    seen = []
    other = threading.Thread(target=lambda: seen.extend(paddle.io.DataLoader([1, 2])))
    other.start()
    other.join()
    assert seen == [1, 2]
    assert scrape(recorder)(PHASE, phase="data") == 0


def test_saves_are_grouped_by_steps(paddle, recorder, scrape):
    checkpoint.follow(recorder)
    phases = []

    def save(path):
        phases.append([phase.name for phase in recorder._open_phases])
        if "full" in str(path):
            raise OSError("no space left")

    for saves, count in ((2, 1), (3, 1)):
        for _ in range(saves):
            paddle.save(save, "net.pdparams")
        assert scrape(recorder)(SAVES) == count
    recorder.step()
    paddle.distributed.save_state_dict(save, path="folder")
    assert scrape(recorder)(SAVES) == 2
    recorder.step()
    for path in ("full", "net.pdparams", "full"):  # a second try succeeds, another file does not
        if path == "full":
            with pytest.raises(OSError, match="no space"):
                paddle.save(save, path)
        else:
            paddle.save(save, path)
    seen = scrape(recorder)
    assert (seen(SAVES), seen(FAILURES)) == (3, 2)
    assert phases == [["checkpoint"]] * len(phases)
    recorder.step()
    paddle.save(None, io.BytesIO())
    assert scrape(recorder)(SAVES) == 3


def test_a_save_in_a_thread_counts_by_itself(paddle, recorder, scrape):
    checkpoint.follow(recorder)
    inside = threading.Thread(target=lambda: paddle.save(None, "in the background"))

    def save(_path):
        inside.start()
        inside.join()

    paddle.save(save, "net.pdparams")
    assert scrape(recorder)(SAVES) == 1  # no step between them
    assert inside.ident


def test_what_a_version_lacks_is_said_once_and_the_rest_works(paddle, recorder, scrape, caplog):
    del paddle.distributed.save_state_dict, paddle.nn.utils.clip_grad_norm_
    del paddle.io.dataloader.dataloader_iter._DataLoaderIterMultiProcess
    optimizer = Optimizer()
    for _ in range(2):
        attach.attach(recorder, optimizer=optimizer)
    for _ in range(3):
        optimizer.step()
    paddle.save(None, "net.pdparams")
    assert (scrape(recorder)(STEPS), scrape(recorder)(SAVES)) == (3, 1)
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 3
    assert all("this Paddle" in message for message in said)


def test_a_paddle_model_brings_its_optimizer_and_scaler(paddle, recorder, scrape, caplog):
    model = types.SimpleNamespace(_optimizer=Optimizer(), _scaler=Scaler())
    attach.attach(recorder, model)
    for _ in range(2):
        model._optimizer.step()
    assert (scrape(recorder)(STEPS), scrape(recorder)(SCALE)) == (2, 1024.0)
    attach.attach(recorder, object())
    assert "was given no optimizer" in caplog.text


def test_hooks_of_a_run_that_cannot_hook_do_not_raise(start, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "paddle", None)  # import paddle raises ImportError
    monkeypatch.setattr(attach, "_loop", None)
    run = start("alone")
    assert run.attach(optimizer=Optimizer()) is run
    assert "attach() failed; call step() yourself" in caplog.text


def test_a_watch_without_methods_says_so(caplog):
    class Nothing:
        pass

    assert not Watch(Nothing(), None).works
    assert "updates of a Nothing are not seen" in caplog.text


def test_names_and_docstrings_of_replaced_functions_stay(paddle, recorder):
    def save(obj, path):
        """Save."""

    paddle.save = save
    checkpoint.follow(recorder)
    assert (paddle.save.__name__, paddle.save.__doc__, inspect.unwrap(paddle.save)) == ("save", "Save.", save)
    assert isinstance(paddle.save, types.FunctionType)
