# SPDX-License-Identifier: Apache-2.0
"""Fixtures for data sets, and for ROS domains that no other test can hear."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DOMAINS = range(1, 101)  # higher ones reach into the ports that Linux hands out to any program


def pytest_configure() -> None:
    """Settings that libraries read once per process, at their first use.

    One thread per process: tests run several processes at a time, and threads of torch that wait
    for one another on a busy machine are slower than none.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault(
        "FASTDDS_DEFAULT_PROFILES_FILE", str(REPOSITORY / "config" / "fastdds.xml")
    )


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """The real recordings and data sets; where they are absent the test is skipped."""
    path = Path(os.environ.get("OC_DATA") or REPOSITORY.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no data sets in {path}; the variable OC_DATA names their directory")
    return path


def _lock(domain: int) -> IO[str] | None:
    """The lock of a domain, held until it is closed; None if another test run holds it."""
    path = Path(tempfile.gettempdir(), f"oc_perception_domain_{domain}.lock")
    try:
        lock = path.open("a")
    except PermissionError:  # another user's
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


@pytest.fixture(scope="session")
def _domains() -> Iterator[int]:
    """Domains in turn, so that a late message of one test does not reach the next."""
    return itertools.cycle(DOMAINS)


@pytest.fixture
def ros_domain(
    _domains: Iterator[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[int]:
    """A ROS domain of this test alone, for nodes in this process and in those it starts."""
    reason = "ROS is not in this environment: make setup, then . ./activate"
    for module in ("rclpy", "oc_perception.msg"):
        pytest.importorskip(module, reason=reason, exc_type=ImportError)
    for domain in itertools.islice(_domains, len(DOMAINS)):
        if lock := _lock(domain):
            break
    else:
        pytest.fail(f"all {len(DOMAINS)} ROS domains are taken by other test runs")
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "ros_log"))
    with lock:
        yield domain
