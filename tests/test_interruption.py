"""Ctrl-C waits where it would do harm, and is never lost."""

from __future__ import annotations

import signal
import threading

import pytest

from akd_deploy.interruption import without_interruption


def interrupted(done: list[str], *then: str) -> None:
    with without_interruption():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("all")
        for what in then:
            raise ValueError(what)


@pytest.mark.parametrize("then", [(), ("and it fails",)])
def test_ctrl_c_is_raised_at_the_end_once_whatever_happens_within(then: tuple[str, ...]) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted(done, *then)
    assert done == ["all"]
    assert isinstance(caught.value.__context__, ValueError) == bool(then)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_without_ctrl_c_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGINT)
    with without_interruption():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with without_interruption():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_which_it_never_reaches_go_on_as_they_are() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere() -> None:
        with without_interruption():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
