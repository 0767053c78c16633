"""Names of scalars, resolved to slots of the page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_exporter import catalogue
from paddle_exporter.page import CAPACITY, PageWriter
from paddle_exporter.recorder import Recorder
from paddle_exporter.scalars import EVAL, LOG, STEP, ScalarTable


@pytest.fixture
def table():
    writer = Recorder(PageWriter(None, {}))._page
    return ScalarTable(writer, 3, lambda reason, message: None)


def test_a_name_has_the_same_slot_in_every_combination(table):
    first = table.resolve(STEP, ("loss", "x")).slots
    second = table.resolve(STEP, ("x", "y", "loss")).slots
    assert (second[2], second[0]) == tuple(first)


def test_a_name_has_the_same_slot_in_steps_and_logs(table):
    assert table.resolve(STEP, ("loss", "x")).slots == table.resolve(LOG, ("loss", "x")).slots


def test_names_of_an_evaluation_are_others(table):
    assert set(table.resolve(STEP, ("loss", "x")).slots).isdisjoint(table.resolve(EVAL, ("loss", "x")).slots)


def test_no_two_names_share_a_slot(table):
    slots = table.resolve(STEP, ("samples", "tokens", "global_step", "loss", "learning_rate", "x", "y")).slots
    assert len(set(slots)) == len(slots)


def test_a_layout_is_kept(table):
    layout = table.resolve(STEP, ("loss", "x"))
    assert table.layouts[STEP] == {("loss", "x"): layout}


def test_refused_names_are_told_by_reason():
    told = []
    table = ScalarTable(Recorder(PageWriter(None, {}))._page, 1, lambda reason, message: told.append((reason, message)))
    layout = table.resolve(LOG, ("a", "b", ""))
    assert [reason for reason, _ in told] == ["too_many", "invalid_name"]
    assert "'b'" in told[0][1]
    assert [slot > 0 for slot in layout.slots] == [True, False, False]


def test_a_full_page_refuses_new_names_and_keeps_old_ones():
    writer = Recorder(PageWriter(None, {}))._page
    writer.slot_block([("_", [str(i)]) for i in range(CAPACITY - writer.slots - 3)])
    table = ScalarTable(writer, 200, lambda reason, message: None)
    old = table.resolve(LOG, ("a",)).slots
    assert old[0] > 0
    assert table.resolve(LOG, ("b",)).slots[0] < 0
    assert table.resolve(LOG, ("a",)).slots == old


def test_reasons_that_are_given_are_the_catalogue_s():
    told = []
    table = ScalarTable(PageWriter(None, {}), 0, lambda reason, message: told.append(reason))
    table.resolve(LOG, ("", "a"))
    assert set(told) <= set(catalogue.DROP_REASONS)


@given(st.lists(st.lists(st.text(max_size=3), max_size=6, unique=True), max_size=10))
def test_any_names_get_slots_or_are_refused(sequences):
    writer = Recorder(PageWriter(None, {}))._page
    table = ScalarTable(writer, 5, lambda reason, message: None)
    slots = {}
    for names in sequences:
        for name, slot in zip(names, table.resolve(LOG, tuple(names)).slots):
            assert slots.setdefault(name, slot) == slot or slots[name] < 0
    taken = [slot for slot in slots.values() if slot > 0]
    assert len(taken) == len(set(taken))
    assert all(slot < writer.slots for slot in taken)
    assert len([name for name, slot in slots.items() if slot > 0]) <= 5
