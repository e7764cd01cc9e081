"""Policies as YAML files: what is taken, what is refused and where, and what cannot hurt."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bxmesh.client.cli import main
from bxmesh.client.cli.security.policy_file import EXAMPLE, policy_yaml, read_policy
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.security.policy_checks import check_policy

SAMPLE = Path(__file__).parents[2] / "examples" / "policy.yaml"


def read(folder: Path, text: str | bytes) -> pb.Policy:
    file = folder / "policy.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return read_policy(file)


def test_the_sample_is_what_the_command_prints_and_makes_sense() -> None:
    assert CliRunner().invoke(main, ["security", "policy", "example"]).stdout == EXAMPLE
    assert SAMPLE.read_text() == EXAMPLE
    policy = read_policy(SAMPLE)
    check_policy(policy, "198.51.100.1")
    assert policy.rate_limits[0].scope == pb.RATE_LIMIT_SCOPE_IDENTITY
    assert policy.abuse_block.block_duration.seconds == 900


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5", "must be a mapping of rate_limits"),
        ("[1]", "must be a mapping of rate_limits"),
        ("rate_limit: []", "'rate_limit' is not known; known are rate_limits"),
        ("rate_limits: [{name: x}, {nam: x}]", "'rate_limits[1].nam' is not known; known are name"),
        ("rate_limits: {name: x}", "rate_limits must be a list"),
        ("rate_limits: [x]", "rate_limits[0] must be a mapping of name"),
        ("rate_limits: [{name: 7}]", "rate_limits[0].name must be a text: write it in quotes"),
        ("rate_limits: [{scope: identity}]", "must be one of RATE_LIMIT_SCOPE_UNSPECIFIED"),
        ("rate_limits: [{scope: 1}]", "must be one of RATE_LIMIT_SCOPE_UNSPECIFIED"),
        ("rate_limits: [{burst: 1.5}]", "rate_limits[0].burst"),
        ("rate_limits: [{rate: .nan}]", "rate_limits[0].rate"),
        ("rate_limits: [{name: }]", "rate_limits[0].name must be a plain value"),
        ("rate_limits: [{methods: [[x]]}]", "rate_limits[0].methods[0] must be a plain value"),
        ("abuse_block: {window: 60}", "abuse_block.window must be a time such as 60s"),
        ("max_key_lifetime: tomorrow", "max_key_lifetime"),
        ("max_key_lifetime: 99999999999999999999s", "max_key_lifetime"),
        ("ip_rules: []\nip_rules: []", "ip_rules is there twice"),
        ("rate_limits: [{name: a, name: b}]", "name is there twice"),
        ("{1: 2}", "names must be text"),
        ("? [a]\n: 1", "names must be text"),
        ("a: !!int x", "this is no number"),
        ("a: &a [1]\nb: *a", "aliases (*name) are not taken"),
        ("!!set {a}", "set is not taken"),
        ("a: !!timestamp 2020-99-99", "timestamp is not taken"),
        ("!!python/object/apply:os.system ['true']", "os.system is not taken"),
        ("a: 1\n---\nb: 2", "single document"),
        ("\t: x", "cannot start any token"),
        ("a: \x00", "special characters are not allowed"),
        (b"\xff\xfe\x00", "is no policy"),
        ("[" * 20_000, "nested too deeply"),
        ("{a: " * 2_000, "nested too deeply"),
        ("#" * 600_000, "is larger than 524288 bytes"),
        (f"rate_limits: [{{burst: {'9' * 5000}}}]", "rate_limits"),
    ],
)
def test_what_is_no_policy_is_refused_and_where(
    tmp_path: Path, text: str | bytes, says: str
) -> None:
    with pytest.raises(click.ClickException) as raised:
        read(tmp_path, text)
    assert says in raised.value.message
    assert "policy.yaml" in raised.value.message


def test_a_bomb_of_aliases_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 60)]
    with pytest.raises(click.ClickException, match="aliases"):
        read(tmp_path, "\n".join(lines))


def test_what_looks_like_more_than_text_is_text(tmp_path: Path) -> None:
    names = ["yes", "2020-01-01", "1:20", "0x1f", "1e3", "<<", "1_000"]
    text = "\n".join(f"- {{name: {name}, rate: 1e3, burst: 10}}" for name in names)
    policy = read(tmp_path, f"rate_limits:\n{text}")
    assert [limit.name for limit in policy.rate_limits] == names
    assert policy.rate_limits[0].rate == 1000


def test_nothing_is_a_policy_without_rules(tmp_path: Path) -> None:
    for text in ("", "# nothing", "{}", "null"):
        assert read(tmp_path, text) == pb.Policy()


def test_a_file_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pytest.raises(BrokenPipeError), pipe.open("wb", buffering=0) as file:
            while True:
                file.write(b"#" * 65_536)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(click.ClickException, match="larger"):
        read_policy(pipe)
    writer.join()


texts = st.text(max_size=30) | st.sampled_from(["1e3", "0", "null", "~", "1.5", "-", "", "é\x1b"])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            pb.RateLimit,
            name=texts,
            scope=st.integers(0, 4),
            methods=st.lists(texts, max_size=2),
            rate=st.floats(0, 1e6),
            burst=st.integers(0, 1_000_000),
        ),
        max_size=2,
    ),
    st.lists(st.builds(pb.IpRule, network=texts, reason=texts, allow=st.booleans()), max_size=2),
)
def test_what_is_shown_can_be_applied(
    tmp_path_factory: pytest.TempPathFactory, limits: list[pb.RateLimit], rules: list[pb.IpRule]
) -> None:
    policy = pb.Policy(rate_limits=limits, ip_rules=rules)
    policy.max_key_lifetime.FromMilliseconds(1500)
    text = policy_yaml(policy)
    assert "\x1b" not in text
    assert read(tmp_path_factory.getbasetemp(), text) == policy
