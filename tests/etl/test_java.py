"""A machine without the right Java gets told how to get it, before anything else happens."""

import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import JavaMissingError
from etl.java import check_java

REMEDY = (
    "Without it no table can be read or written. Install one (Debian and Ubuntu: apt-get install "
    "openjdk-17-jdk-headless; macOS: brew install openjdk@17) and put it on PATH, or point JAVA_HOME at it."
)


def fake_java(home: Path, answer: str) -> Path:
    """A JAVA_HOME whose java gives this answer to -version."""
    java = home / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho '{answer}' >&2\n")
    java.chmod(0o755)
    return home


def test_no_java_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(JavaMissingError) as caught:
        check_java()

    assert str(caught.value) == (
        f"Spark needs a Java 17 runtime, but there is no java on PATH and JAVA_HOME is not set. {REMEDY}"
    )


def test_java_that_is_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, 'openjdk version "11.0.2" 2019-01-15')))

    with pytest.raises(JavaMissingError, match=r"bin/java is of version 11\. Without it"):
        check_java()


def test_java_home_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))

    with pytest.raises(JavaMissingError, match=r"gone/bin/java does not run"):
        check_java()


@pytest.mark.parametrize("version", ["17.0.15", "21.0.1"])
def test_java_that_spark_runs_on(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, f'openjdk version "{version}" 2025-04-15')))

    check_java()


def test_the_check_runs_without_any_installed_package(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-m", "etl.java"]
    root = Path(__file__).parents[2]

    asked = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env={"PATH": str(tmp_path)}
    )

    assert asked.returncode == 2
    assert asked.stderr.startswith("error: Spark needs a Java 17 runtime, but there is no java on PATH")
