"""Settings: where they come from, what is allowed, and what is said about the rest."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paddle_exporter
from paddle_exporter.settings import PREFIX, SettingError, describe, load

NAMES = [name for name, _, _ in describe()]


def test_defaults_are_valid_values_of_their_own():
    defaults = load({}, {})
    for name, default, _ in describe():
        if default:
            assert getattr(load({name: default}, {}), name) == getattr(defaults, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described(name):
    assert {n: len(text) > 10 for n, _, text in describe()}[name]


def test_a_keyword_beats_the_environment_beats_the_default():
    environment = {"PADDLE_EXPORTER_PORT": "5000"}
    assert load({}, {}).port == 9810
    assert load({}, environment).port == 5000
    assert load({"port": 6000}, environment).port == 6000


def test_none_and_an_empty_variable_are_not_given():
    assert load({"port": None}, {"PADDLE_EXPORTER_PORT": " "}).port == 9810


def test_a_bad_variable_does_not_matter_where_a_keyword_is_given():
    assert load({"port": 6000}, {"PADDLE_EXPORTER_PORT": "x"}).port == 6000


VALID = [
    ("enabled", "0", False),
    ("enabled", "TRUE", True),
    ("enabled", False, False),
    ("serve", "off", False),
    ("run", " my run ", "my run"),
    ("run", "漢字", "漢字"),
    ("tags", "team=nlp, data=v=3,", {"team": "nlp", "data": "v=3"}),
    ("tags", {"team": "nlp", "n": 3}, {"team": "nlp", "n": "3"}),
    ("tags", "", None),
    ("seed", "-5", -5),
    ("port", "0", 0),
    ("port", 65535, 65535),
    ("page_dir", "/tmp/x", Path("/tmp/x")),
    ("page_dir", Path("/tmp/x"), Path("/tmp/x")),
    ("linger", "0.5", 0.5),
    ("linger", 0, 0.0),
    ("max_scalars", 0, 0),
    ("address", "::", "::"),
    ("address", "127.0.0.1", "127.0.0.1"),
]


@pytest.mark.parametrize(("name", "raw", "value"), VALID)
def test_valid_values(name, raw, value):
    if isinstance(raw, str):
        assert getattr(load({}, {PREFIX + name.upper(): raw}), name) == value
    if raw != "":
        assert getattr(load({name: raw}, {}), name) == value


BAD = [
    ("enabled", "maybe", "true"),
    ("enabled", 2, "true"),
    ("serve", "nope", "off"),
    ("run", "x" * 129, "128"),
    ("run", "a\nb", "printable"),
    ("run", 5, "text"),
    ("run", b"x", "text"),
    ("tags", "novalue", "name=value"),
    ("tags", "a b=c", "name=value"),
    ("tags", {"": "x"}, "name=value"),
    ("tags", {"a": "\n"}, "printable"),
    ("tags", {f"t{i}": "" for i in range(21)}, "20"),
    ("tags", 5, "name=value"),
    ("seed", "1.5", "whole"),
    ("port", 65536, "65535"),
    ("port", -1, "65535"),
    ("port", "http", "whole"),
    ("port", True, "whole"),
    ("port", 9810.5, "whole"),
    ("port", "9" * 5000, "65535"),
    ("target_steps", 0, "1"),
    ("first_step", -1, "0"),
    ("page_dir", "relative", "absolute"),
    ("page_dir", 5, "absolute"),
    ("page_dir", "~no-such-user-here/x", "absolute"),
    ("page_dir", "/tmp/a\0b", "absolute"),
    ("linger", -0.1, "300"),
    ("linger", 301, "300"),
    ("linger", float("nan"), "300"),
    ("linger", float("inf"), "300"),
    ("linger", 10**400, "300"),
    ("linger", "soon", "seconds"),
    ("linger", True, "seconds"),
    ("linger", [], "seconds"),
    ("address", "not an address", "IP address"),
    ("address", 5, "IP address"),
    ("address", "a..b", "IP address"),
    ("max_scalars", 401, "400"),
    ("tensor_every", 0, "1"),
]


@pytest.mark.parametrize(("name", "raw", "allowed"), BAD, ids=lambda value: str(value)[:20])
def test_a_bad_keyword_is_told_with_its_value_and_what_is_allowed(name, raw, allowed):
    with pytest.raises(SettingError) as caught:
        load({name: raw}, {})
    message = str(caught.value)
    assert message.startswith(f"{name}=")
    assert repr(raw)[:100] in message
    assert allowed in message.partition("allowed")[2]


@pytest.mark.parametrize(
    ("name", "raw", "allowed"),
    [b for b in BAD if isinstance(b[1], str) and "\0" not in b[1]],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_variable_is_told_with_its_value_and_what_is_allowed(name, raw, allowed):
    with pytest.raises(SettingError) as caught:
        load({}, {PREFIX + name.upper(): raw})
    message = str(caught.value)
    assert message.startswith(f"{PREFIX}{name.upper()}=")
    assert repr(raw)[:100] in message
    assert allowed in message.partition("allowed")[2]


@pytest.mark.parametrize(
    ("wrong", "right"), [("prot", "port"), ("page_dirs", "page_dir"), ("max_scalar", "max_scalars"), ("taget", "tags")]
)
def test_an_unknown_name_is_told_with_the_nearest_one(wrong, right):
    with pytest.raises(SettingError, match=f"{wrong}.*{right}"):
        load({wrong: 1}, {})
    with pytest.raises(SettingError, match=f"{PREFIX}{wrong.upper()}.*{PREFIX}{right.upper()}"):
        load({}, {PREFIX + wrong.upper(): "1"})


def test_a_name_like_none_is_told_with_all_there_are():
    with pytest.raises(SettingError) as caught:
        load({"zzzzzz": 1}, {})
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("variable", ["PADDLE_EXPORTER_port", "PADDLE_EXPORTER_Port", "PADDLE_EXPORTER_"])
def test_a_variable_that_would_have_no_effect_is_told(variable):
    with pytest.raises(SettingError, match=variable):
        load({}, {variable: "5000"})


@pytest.mark.parametrize(
    "variable", ["PADDLE_EXPORTERPORT", "PADDLE_PORT", "paddle_exporter_port", "MY_PADDLE_EXPORTER_X"]
)
def test_other_variables_are_others_business(variable):
    assert load({}, {variable: "x"}).port == 9810


@given(st.sampled_from(NAMES), st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.lists(st.text())))
def test_any_value_is_taken_or_told(name, raw):
    with contextlib.suppress(SettingError):  # and nothing else
        load({name: raw}, {})


@given(st.sampled_from(NAMES), st.text())
def test_any_variable_is_taken_or_told(name, raw):
    with contextlib.suppress(SettingError):  # and nothing else
        load({}, {PREFIX + name.upper(): raw})


def test_a_setting_error_stops_the_start_and_leaves_nothing(start, page_dir, monkeypatch):
    monkeypatch.setenv("PADDLE_EXPORTER_PROT", "1")
    with pytest.raises(SettingError, match="PADDLE_EXPORTER_PORT"):
        start()
    assert list(page_dir.iterdir()) == []


def test_a_bad_setting_stops_a_second_start_too(start):
    start("a")
    with pytest.raises(SettingError, match="linger"):
        start("a", linger=-1)


def test_an_unknown_keyword_stops_the_start(start):
    with pytest.raises(SettingError, match="port_tries"):
        start(port_trys=3)


def test_a_setting_error_is_a_value_error():
    with pytest.raises(ValueError):
        paddle_exporter.start(port=-1)
