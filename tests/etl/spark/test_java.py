"""A machine without the right Java gets told how to get it, before anything else happens; Java can spell file names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import JavaMissingError, LocaleError
from conf.settings import Settings, SourceSettings, SparkSettings
from etl.spark.java import LOCALE_VARIABLES, check_java, utf8_locale

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
        f"Spark needs a Java 17 or 21 runtime, but there is no java on PATH and JAVA_HOME is not set. {REMEDY}"
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
    command = [sys.executable, "-S", "-m", "etl.spark.java"]
    root = Path(__file__).parents[3]

    asked = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env={"PATH": str(tmp_path)}
    )

    assert asked.returncode == 2
    assert asked.stderr.startswith("error: Spark needs a Java 17 or 21 runtime, but there is no java on PATH")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"LC_CTYPE": "C.UTF-8"}),
        ({"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}),
        (
            {"LC_ALL": "", "LC_CTYPE": "POSIX", "LANG": "de_DE.UTF-8"},
            {"LC_CTYPE": "C.UTF-8", "LANG": "de_DE.UTF-8"},
        ),
        ({"LANG": "de_DE.ISO-8859-1"}, {"LC_CTYPE": "C.UTF-8", "LANG": "de_DE.ISO-8859-1"}),
        ({"LANG": "de_DE.utf8"}, {"LANG": "de_DE.utf8"}),
        ({"LC_ALL": "ja_JP.UTF-8", "LANG": "C"}, {"LC_ALL": "ja_JP.UTF-8", "LANG": "C"}),
    ],
)
def test_java_starts_in_a_utf_8_locale_and_the_process_keeps_its_own(
    given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LOCALE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    with utf8_locale():
        during = {name: os.environ[name] for name in LOCALE_VARIABLES if os.environ.get(name)}

    assert during == expected
    assert {name: os.environ[name] for name in LOCALE_VARIABLES if name in os.environ} == given


def test_a_path_that_the_running_java_cannot_spell_is_named(spark, spark_settings: SparkSettings) -> None:
    from etl.spark.session import open_session  # the other tests of this file run without Spark

    system = spark.sparkContext._jvm.java.lang.System
    encoding = system.setProperty("sun.jnu.encoding", "ISO-8859-1")
    try:
        open_session(Settings(spark=spark_settings, source=SourceSettings(path="d\u00f6rf")), "test")
        with pytest.raises(
            LocaleError, match=r"'source.path' names '\u6751', but .* file names are ISO-8859-1"
        ):
            open_session(Settings(spark=spark_settings, source=SourceSettings(path="\u6751")), "test")
    finally:
        system.setProperty("sun.jnu.encoding", encoding)


PROGRAM = """
import subprocess, sys, time
from etl.spark.java import without_module_warning
lines = "WARNING: Using incubator modules: x", "kept"
child = f"import sys; [print(line, file=sys.stderr) for line in {lines!r}]"
with without_module_warning():
    started = subprocess.Popen([sys.executable, "-c", child])
started.wait()
print("own", file=sys.stderr)
time.sleep(0.5)
"""


def test_the_warning_about_modules_is_dropped_and_all_else_passes():
    """In a process of its own, whose stderr is looked at."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert sorted(done.stderr.split()) == ["kept", "own"]


def test_sessions_that_threads_open_at_once_leave_stderr_as_it_was():
    program = """
import os, sys, threading
from etl.spark.java import without_module_warning
before = os.fstat(2)
def enter():
    for _ in range(20):
        with without_module_warning():
            pass
threads = [threading.Thread(target=enter) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert os.fstat(2) == before
print("fine", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["fine"]
