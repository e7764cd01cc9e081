"""Where the mesh is: arguments, environment, state directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bxmesh.client import InvalidInput
from bxmesh.client.endpoint import find_server, resolve, state_directory


def announce(directory, pid=None, address="127.0.0.1:4711", **more):
    server = {"pid": pid or os.getpid(), "address": address, "tls": False} | more
    (directory / "server.json").write_text(json.dumps(server))


def test_default():
    assert resolve().address == "127.0.0.1:50051"
    assert resolve().credentials is None


def test_argument_before_environment_before_running_server(environment, monkeypatch):
    announce(environment)
    assert resolve().address == "127.0.0.1:4711"
    monkeypatch.setenv("BXMESH_ADDRESS", "host:1")
    assert resolve().address == "host:1"
    assert resolve("host:2").address == "host:2"


def test_server_that_is_gone_is_not_found(environment):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    announce(environment, pid=gone.pid)
    assert find_server() is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "address": 1}', "\xff"]
)
def test_unreadable_announcement_is_no_server(environment, text):
    (environment / "server.json").write_text(text, encoding="latin-1")
    assert find_server() is None


def test_key_argument_before_environment_before_admin_key(environment, monkeypatch):
    (environment / "admin.key").write_text("admin\n")
    assert resolve().api_key == "admin"
    monkeypatch.setenv("BXMESH_API_KEY", "mine")
    assert resolve().api_key == "mine"
    assert resolve(api_key="other").api_key == "other"


@pytest.mark.parametrize("address", ["example.org:50051", "10.0.0.1:1", "127.evil.org:50051"])
def test_admin_key_stays_on_this_machine(environment, address):
    (environment / "admin.key").write_text("admin\n")
    assert resolve(address).api_key == ""


@pytest.mark.parametrize(
    "address", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/tmp/x", "127.1.2.3:9"]
)
def test_admin_key_opens_local_addresses(environment, address):
    (environment / "admin.key").write_text("admin\n")
    assert resolve(address).api_key == "admin"


def test_key_is_in_no_repr():
    assert "secret" not in repr(resolve(api_key="secret"))


def test_tls(environment, tmp_path):
    assert resolve(tls=True).credentials is not None
    announce(environment, tls=True)
    assert resolve().credentials is not None
    with pytest.raises(InvalidInput, match="cannot be read"):
        resolve(root_certificates=tmp_path / "none.pem")


def test_state_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("BXMESH_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() == tmp_path / "bxmesh"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == tmp_path / ".local" / "state" / "bxmesh"
