"""Configuration: defaults, preset, file and flags, in this order; what is wrong is named."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest

from amortgap.sweep.config import convert, load_config, parse_args
from amortgap.sweep.script import Flat, SweepOptions


@dataclasses.dataclass(frozen=True)
class Encoder:
    width: int = 8
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Linear:
    rank: int = 1


@dataclasses.dataclass(frozen=True)
class Args:
    family: Literal["mean_field", "full_rank"] = "mean_field"
    widths: tuple[int, ...] = (1, 2)
    note: str | None = None
    encoder: Encoder = Encoder()
    other: Encoder | Linear = Linear()
    sweep: Flat = dataclasses.field(default_factory=SweepOptions)


def written(path: Path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_the_default_is_the_dataclass():
    assert parse_args(Args, []) == Args()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("base.toml", 'widths = [4, 8]\n[encoder]\nrate = 1\n[sweep]\nout = "there"\n'),
        ("base.json", {"widths": [4, 8], "encoder": {"rate": 1}, "sweep": {"out": "there"}}),
    ],
)
def test_a_file_sets_the_base_and_flags_override_it(tmp_path, name, content):
    path = written(tmp_path / name, content)
    args = parse_args(Args, ["--config", path, "--encoder.width", "16", "--widths", "5", "--retry-failed"])
    assert args.encoder == Encoder(width=16, rate=1.0) and isinstance(args.encoder.rate, float)
    assert args.widths == (5,)
    assert args.sweep == SweepOptions(out=Path("there"), retry_failed=True)
    assert parse_args(Args, ["--config", path]).widths == (4, 8)


def test_a_file_overrides_the_preset(tmp_path):
    presets = {"digits": Args(), "smoke": Args(widths=(1,), encoder=Encoder(width=2))}
    path = written(tmp_path / "base.json", {"encoder": {"rate": 0.5}})
    args = parse_args(Args, ["--preset", "smoke", "--config", path], presets=presets)
    assert args.widths == (1,) and args.encoder == Encoder(width=2, rate=0.5)
    assert parse_args(Args, [], presets=presets) == Args()


def test_a_union_of_dataclasses_is_told_apart_by_its_type(tmp_path):
    path = written(tmp_path / "base.json", {"other": {"_type": "Encoder", "width": 3}})
    assert load_config(Args, path).other == Encoder(width=3)
    with pytest.raises(ValueError, match=r"other: expected .*Encoder \| .*Linear, got .*'Encodr'"):
        load_config(Args, written(tmp_path / "wrong.json", {"other": {"_type": "Encodr"}}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"famly": "mean_field"}, "'famly' is not a field of Args: did you mean 'family'"),
        ({"encoder": {"wdth": 1}}, "'encoder.wdth' is not a field of Encoder: did you mean 'width'"),
        ({"encoder": {"width": "wide"}}, "encoder.width: expected int, got 'wide'"),
        ({"encoder": {"width": 1.5}}, "encoder.width: expected int, got 1.5"),
        ({"encoder": {"width": True}}, "encoder.width: expected int, got True"),
        ({"encoder": {"rate": None}}, "encoder.rate: expected float, got None"),
        ({"encoder": 3}, "encoder: expected Encoder, got 3"),
        ({"widths": 3}, "widths: expected tuple"),
        ({"widths": [1, "2"]}, r"widths\[1\]: expected int, got '2'"),
        ({"widths": "12"}, "widths: expected tuple"),
        ({"family": "mean_fild"}, "family: got 'mean_fild', did you mean 'mean_field'"),
        ({"note": 3}, "note: expected .*str.*None.*, got 3"),
        ({"sweep": {"dry_run": "yes"}}, "sweep.dry_run: expected bool, got 'yes'"),
        ([1], "expected a table of fields"),
        ("{", "base.json"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_and_key(tmp_path, content, message, capsys):
    path = written(tmp_path / "base.json", content)
    with pytest.raises(ValueError, match=message) as error:
        load_config(Args, path)
    assert path in str(error.value)
    with pytest.raises(SystemExit) as exit_:
        parse_args(Args, ["--config", path])
    assert exit_.value.code == 2 and path in capsys.readouterr().err


@pytest.mark.parametrize("name", ["absent.toml", "base.yaml"])
def test_a_file_that_is_absent_or_of_another_kind_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        load_config(Args, tmp_path / name)


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--encoder.widht", "3"], "--encoder.width"),
        (["--encoder.width", "wide"], "wide"),
        (["--family", "mean"], "mean_field"),
        (["--preset", "smok"], "did you mean 'smoke'"),
    ],
)
def test_a_wrong_flag_ends_with_status_2_and_a_hint(flags, hint, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_args(Args, flags, presets={"digits": Args(), "smoke": Args()})
    printed = capsys.readouterr()
    assert exit_.value.code == 2 and hint in printed.err + printed.out


def test_help_names_file_and_presets(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_args(Args, ["--help"], presets={"digits": Args(), "smoke": Args()}, description="What it does.")
    printed = capsys.readouterr().out
    assert exit_.value.code == 0
    assert all(
        text in printed for text in ("What it does.", "--config FILE", "digits, smoke", "--encoder.width", "--out")
    )


def test_an_exact_type_wins_in_a_union():
    assert type(convert(1, float | int, "x")) is int
    assert type(convert(1, float | None, "x")) is float
