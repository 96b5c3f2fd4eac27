"""Configuration: what a file or a `--set` may say, and how each mistake is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from splitvla_shared.config import describe_config, load_config
from splitvla_shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Link:
    address: str = "localhost:50051"
    deadline_s: float = 0.25
    retries: int = 0
    compress: bool = False


@dataclass(frozen=True, slots=True)
class Robot:
    control_hz: float = 50.0
    name: str | None = None
    limit: float | None = None
    log: Path | None = None
    mode: Literal["hold", "stop"] = "hold"
    rungs: tuple[str, ...] = ("int8",)
    weights: tuple[float, ...] = ()
    home: tuple[float, float] = (0.0, 0.0)
    link: Link = field(default_factory=Link)


@dataclass(frozen=True, slots=True)
class Required:
    bundle: Path
    link: Link = field(default_factory=Link)


def load(tmp_path: Path, text: str, *overrides: str) -> Robot:
    path = tmp_path / "edge.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(Robot, path, overrides)


def refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_without_a_file_the_defaults_hold() -> None:
    assert load_config(Robot) == Robot()


def test_a_file_is_read_into_nested_dataclasses(tmp_path: Path) -> None:
    text = """
    control_hz = 20
    name = "arm"
    log = "/var/log/x"
    mode = "stop"
    rungs = ["int4", "bf16"]
    weights = [1, 0.5]
    home = [1.0, -2]
    [link]
    deadline_s = 1
    compress = true
    """
    link = Link(deadline_s=1.0, compress=True)
    robot = load(tmp_path, text)
    assert robot == Robot(
        20.0, "arm", None, Path("/var/log/x"), "stop", ("int4", "bf16"), (1.0, 0.5), (1.0, -2.0), link
    )
    assert type(robot.control_hz) is type(robot.weights[0]) is type(robot.home[1]) is float


def test_the_later_source_wins(tmp_path: Path) -> None:
    robot = load(tmp_path, "control_hz = 1\n[link]\nretries = 1", "control_hz=2", "control_hz=3", "link.deadline_s=4")
    assert (robot.control_hz, robot.link) == (3.0, Link(retries=1, deadline_s=4.0))


def test_set_reads_toml_values_and_takes_anything_else_as_text() -> None:
    overrides = ("name=left arm", 'mode="stop"', "rungs=['a', 'b']", "link.compress=true", "link.address=10.0.0.1:5")
    robot = load_config(Robot, None, overrides)
    assert (robot.name, robot.mode, robot.rungs) == ("left arm", "stop", ("a", "b"))
    assert robot.link == Link(compress=True, address="10.0.0.1:5")


def test_what_the_command_line_gives_wins_and_none_means_not_given(tmp_path: Path) -> None:
    given: dict[str, Any] = {"link.address": "x:1", "log": Path("a"), "control_hz": None}
    robot = load_config(Robot, None, ("link.address=y:2", "control_hz=5"), given)
    assert (robot.link.address, robot.log, robot.control_hz) == ("x:1", Path("a"), 5.0)


def test_an_unknown_setting_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    refused(tmp_path, "control_hertz = 5", "unknown setting control_hertz; did you mean control_hz")
    refused(tmp_path, "[link]\ndeadline = 5", "unknown setting link.deadline; did you mean link.deadline_s")
    refused(tmp_path, "[link]\nqqq = 5", "known: address, deadline_s, retries, compress")
    with pytest.raises(ConfigError, match=r"did you mean link\.retries"):
        load_config(Robot, None, ("link.retry=1",))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("control_hz = 'fast'", "control_hz is 'fast', expected float"),
        ("control_hz = true", "control_hz is True, expected float"),
        ("name = 5", "name is 5, expected str or NoneType"),
        ("mode = 'go'", "mode is 'go'; one of hold, stop"),
        ("rungs = 'int8'", "rungs is 'int8', expected a list"),
        ("rungs = [1]", "rungs is 1, expected str"),
        ("weights = 3", "weights is 3, expected a list"),
        ("weights = ['a']", "weights is 'a', expected float"),
        ("home = [1.0]", "home has 1 entries, expected 2"),
        ("link = 'x:1'", "link is a table of settings"),
        ("[link]\nretries = true", "link.retries is True, expected int"),
        ("[link]\nretries = false", "link.retries is False, expected int"),
        ("[link]\nretries = 1.5", "link.retries is 1.5, expected int"),
        ("[link]\ncompress = 1", "link.compress is 1, expected bool"),
        ("[link]\naddress = ['x']", "link.address is"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(tmp_path: Path, text: str, match: str) -> None:
    refused(tmp_path, text, match)


@pytest.mark.parametrize("number", ["nan", "-nan", "inf", "-inf", "1e999", f"1{'0' * 400}"])
def test_a_number_that_no_range_check_would_notice_is_refused(tmp_path: Path, number: str) -> None:
    """`deadline_s = nan` is smaller than nothing and larger than nothing."""
    refused(tmp_path, f"[link]\ndeadline_s = {number}", "link.deadline_s is .*, expected a finite number")
    refused(tmp_path, f"limit = {number}", "expected a finite number")


def test_a_setting_without_a_default_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="setting bundle is missing"):
        load_config(Required)
    assert load_config(Required, None, ("bundle=b",)).bundle == Path("b")


def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load_config(Robot, tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(Robot, tmp_path)
    refused(tmp_path, "control_hz = ", "not valid TOML")
    refused(tmp_path, "control_hz = 1\ncontrol_hz = 2", "not valid TOML")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(Robot, tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("control_hz", "expected key=value"),
        ("=5", "unknown setting"),
        ("link=5", "link is a table of settings"),
        ("link..retries=5", "unknown setting link"),
        ("control_hz.x=5", "expected float"),
        ("control_hz=", "control_hz is '', expected float"),
    ],
)
def test_a_malformed_set_is_refused(override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_config(Robot, None, (override,))


def test_a_value_can_t_be_entered_as_a_table() -> None:
    with pytest.raises(ConfigError, match="control_hz is a value, not a table"):
        load_config(Robot, None, ("control_hz=5", "control_hz.x=5"))


def test_the_effective_configuration_is_a_line_a_setting_with_dotted_names() -> None:
    lines = list(describe_config(load_config(Robot, None, ("link.retries=2",))))
    assert lines[0] == "control_hz = 50.0"
    assert "link.retries = 2" in lines
    assert len(lines) == len(Robot.__slots__) - 1 + len(Link.__slots__)
