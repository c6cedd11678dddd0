# SPDX-License-Identifier: Apache-2.0
"""Configurations and loads that others wrote: a model to predict or a `ConfigError`, whatever is in the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from farskip_compile.cli.simulate import _loads
from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate import Scenario
from farskip_compile.measure.simulate.scenario import architecture, check_configuration
from farskip_compile.text_utils import UNPRINTABLE
from tests.reading.malformed import EVIL, ODD, bounded, damaged, mutated, text

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def valid() -> dict[str, Any]:
    return {"model_type": "qwen3_moe", **architecture("qwen3-30b-a3b").config(2).to_dict()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configurations")


def result(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ConfigError as error:
        return error


def configuration(content: bytes, folder: Path) -> Any:
    path = folder / "config.json"
    path.write_bytes(content)
    bounded(lambda: check_configuration(path))
    found = result(lambda: architecture(str(folder)).config())
    if isinstance(found, ConfigError):
        assert not UNPRINTABLE.search(str(found))
        return found
    assert 1 <= found.num_hidden_layers <= 1000
    return found


@settings(max_examples=60)
@given(st.data())
def test_any_configuration_is_one_or_is_refused(valid: dict[str, Any], folder: Path, data: st.DataObject) -> None:
    configuration(text(data.draw(mutated(valid))), folder)


@settings(max_examples=40)
@given(st.data())
def test_any_damage_is_noticed_or_changes_nothing(valid: dict[str, Any], folder: Path, data: st.DataObject) -> None:
    configuration(data.draw(damaged(text(valid))), folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 10**18}, "layers"),
        ({"rope_theta": 1e308}, "a number up to 1e+32"),
        ({"hidden_size": 10**400}, "is an integer of 401 digits"),
        ({"model_type": "no_such_model"}, "can't make a configuration"),
        ({"model_type": "no_such", "auto_map": {"AutoConfig": "evil.Config"}}, "can't make a configuration"),
    ],
    ids=range(5),
)
def test_refused(change: dict[str, Any], says: str, valid: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    found = configuration(text({**valid, **change}), tmp_path)
    assert isinstance(found, ConfigError)
    assert says in found.reason
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": -8},
        {"num_attention_heads": 0},
        {"vocab_size": 10**30},
        {"num_experts": 10**9, "num_local_experts": 10**9},
    ],
)
def test_a_model_that_can_not_be_built(change: dict[str, int], valid: dict[str, Any], tmp_path: Path) -> None:
    from farskip_compile.compiler.ranks.fake import fake_ranks
    from farskip_compile.measure.simulate.rank_model import rank_model

    (tmp_path / "config.json").write_bytes(text({**valid, **change}))
    with pytest.raises(ConfigError), fake_ranks(8):
        rank_model(Scenario(model=str(tmp_path), device="h100", prompt=64))


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="Not a regular file"):
        check_configuration(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="no model is called"):
        architecture(str(tmp_path))


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_loads_that_are_none(odd: Any, tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    for content in (odd, [odd], [1.0, odd]):
        path.write_bytes(text(content))
        try:
            loads = _loads(path)
        except ConfigError:
            continue
        assert loads is not None
        if loads and all(0 <= load <= 1e18 for load in loads) and sum(loads):
            continue
        with pytest.raises(ConfigError, match="counts of tokens"):
            Scenario(model="deepseek-v3", device="h100", loads=loads)


@pytest.mark.parametrize("option", ["--measured", "--slower", "--interference", "--skew"])
@pytest.mark.parametrize("value", ["nan", "inf", "1e308", "-1"])
def test_figures_of_the_command(option: str, value: str) -> None:
    from farskip_compile.cli import app

    result = CliRunner().invoke(app, ["simulate", "deepseek-v3", "--device", "h100", option, value])
    assert result.exit_code == 2, result.output


def test_the_name_of_a_folder_is_shown_and_not_obeyed(valid: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from farskip_compile.cli import app

    folder = tmp_path / "$\\x$[red]\x1b[2J<b>"
    folder.mkdir()
    small = {
        "hidden_size": 64,
        "num_experts": 8,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "vocab_size": 99,
    }
    (folder / "config.json").write_text(json.dumps({**valid, **small}))
    profile = tmp_path / "profile.json"
    from farskip_compile.costs import load_profile

    profile.write_text(json.dumps({**load_profile("h100").to_json(), "name": f"$\\y{EVIL}"}))
    for columns in (80, 120):
        command = ["simulate", str(folder), "--device", str(profile), "--prompt", "32", "--png", f"{tmp_path}/a.png"]
        result = CliRunner().invoke(app, command, env={"COLUMNS": str(columns)})
        assert result.exit_code == 0, result.output
        assert not UNPRINTABLE.search(result.output)
        assert "$\\x$[red]\\x1b[2J<b>" in result.stdout
