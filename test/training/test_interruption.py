# SPDX-License-Identifier: Apache-2.0
"""Signals wait for the end of a step, once."""

import signal

import pytest

from oc_perception.training.interruption import HeldSignals


def test_the_first_signal_waits_and_then_acts():
    with HeldSignals() as held:
        signal.raise_signal(signal.SIGINT)
        assert held.pending == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        held.release()


def test_a_second_signal_acts_at_once():
    with HeldSignals(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_happens_without_a_signal_and_ignored_ones_stay_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with HeldSignals() as held:
            signal.raise_signal(signal.SIGINT)
            assert held.pending is None
        held.release()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
