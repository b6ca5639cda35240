"""Settings: a bad value stops the start, names its variable, and quotes no secret."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streamkeep.proxy import InvalidSetting, Settings


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STREAMKEEP_PORT", "http"),
        ("STREAMKEEP_PORT", "65536"),
        ("STREAMKEEP_LONG_POLL_SECONDS", "0"),
        ("STREAMKEEP_LONG_POLL_SECONDS", "nan"),
        ("STREAMKEEP_STREAM_BUDGET_BYTES", "-1"),
        ("STREAMKEEP_UPSTREAM_RETRIES", "-1"),
        ("STREAMKEEP_MAX_RUNNING", "0"),
        ("STREAMKEEP_ON_DISCONNECT", "never"),
        ("STREAMKEEP_PUBLIC_URL", "proxy.example"),
        ("STREAMKEEP_ALLOW", "ftp://example.com/**"),
        ("STREAMKEEP_WEBHOOK_ALLOW", "private:http://*"),
        ("STREAMKEEP_KEEP_HEADERS", "x-trace,set-cookie"),
        ("STREAMKEEP_LOG_LEVEL", "loud"),
        ("STREAMKEEP_OBSERVE_ENDINGS", "perhaps"),
        ("STREAMKEEP_ENCRYPTION_KEYS", "acme=c2hvcnQ="),
        ("DATABASE_URL", "mysql://localhost/db"),
        ("STREAMKEEP_STREAMS_URL", "ftp://other.example/v1/stream"),
        ("STREAMKEEP_STREAMS_URL", "https://me:secret@other.example/v1/stream"),
        ("STREAMKEEP_STREAMS_URL", "https://other.example/v1/stream?a=b"),
        ("STREAMKEEP_STREAMS_TOKEN", "two words"),
    ],
)
def test_a_bad_value_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=variable):
        Settings.from_env({variable: value})


def test_an_empty_variable_is_an_absent_one_but_for_the_allowlist() -> None:
    settings = Settings.from_env({"STREAMKEEP_PORT": "", "DATABASE_URL": "", "STREAMKEEP_ALLOW": ""})
    assert (settings.port, settings.database_url, settings.allow.globs) == (4000, None, ())


@pytest.mark.parametrize(
    "url", ["postgresql://me:word/secret@127.0.0.1:5432/db", "postgresql://me:secret@127.0.0.1:1/db"]
)
def test_a_database_that_cannot_be_used_is_told_in_one_line_without_its_password(url: str) -> None:
    command = [sys.executable, "-m", "streamkeep.proxy", "serve", "--port", "0"]
    done = subprocess.run(command, env={"DATABASE_URL": url}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("streamkeep: ")
    assert "DATABASE_URL" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    assert "word" not in done.stderr.replace("password", "")
    assert "Traceback" not in done.stderr


def test_a_stream_server_that_cannot_be_used_is_told_in_one_line_without_its_token() -> None:
    command = [sys.executable, "-m", "streamkeep.proxy", "serve", "--port", "0"]
    environ = {"STREAMKEEP_STREAMS_URL": "http://127.0.0.1:1/v1/stream/x", "STREAMKEEP_STREAMS_TOKEN": "s3cret"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("streamkeep: the server at STREAMKEEP_STREAMS_URL cannot be used: ")
    assert "s3cret" not in done.stderr + repr(Settings.from_env(environ))


def test_there_is_one_store() -> None:
    with pytest.raises(InvalidSetting, match="DATABASE_URL"):
        Settings.from_env({"STREAMKEEP_STREAMS_URL": "http://h/x", "DATABASE_URL": "postgresql://h/x"})


def test_keys_are_refused_for_a_store_that_would_not_use_them() -> None:
    environ = {
        "STREAMKEEP_STREAMS_URL": "http://127.0.0.1:1/v1/stream",
        "STREAMKEEP_ENCRYPTION_KEYS": "*=" + "A" * 43 + "=",
    }
    with pytest.raises(InvalidSetting, match="ENCRYPTION_KEYS"):
        Settings.from_env(environ)
