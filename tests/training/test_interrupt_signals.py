"""A signal that comes twice at once, as launchers pass it on, is one; a later one stops at once."""

import signal
import time

import pytest

from sharevl_lite import signals
from sharevl_lite.cli import main
from sharevl_lite.errors import ToldError
from sharevl_lite.interrupt import InterruptCallback
from sharevl_lite.signals import SIGNALS, Signals
from sharevl_lite.together import Stopped, in_all


@pytest.fixture
def interrupt():
    return InterruptCallback(1, lambda vote: [vote])


def both_at_once():
    """Blocked, so that their handlers run in one go."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        signal.raise_signal(number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_repeat_is_not_a_second_one_and_the_main_process_tells(interrupt, capfd, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    before = [signal.getsignal(number) for number in SIGNALS]
    with interrupt:
        both_at_once()
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
    assert capfd.readouterr().err.count("interrupted: saving what is finished") == (rank == "0")
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_one_that_breaks_into_the_handler_is_a_repeat(interrupt, monkeypatch):
    monkeypatch.setattr(signals.os, "write", lambda *_: both_at_once())
    with interrupt:
        signal.raise_signal(signal.SIGTERM)
    assert interrupt.asked


@pytest.mark.parametrize("number", SIGNALS)
def test_a_later_one_stops_at_once(interrupt, monkeypatch, number):
    monkeypatch.setattr(signals, "REPEATED_WITHIN", 0.01)
    with interrupt:
        signal.raise_signal(number)
        time.sleep(0.02)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_repeat_that_comes_after_the_training_is_one_still(interrupt):
    with Signals() as outer:
        with interrupt:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert not outer.asked
    with Signals(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_what_may_be_left_ends_at_once_and_nothing_else_does(interrupt):
    def work():
        done.append("begun")
        signal.raise_signal(signal.SIGINT)
        done.append("ended")

    done = []
    with interrupt, pytest.raises(Stopped):
        interrupt.leaving(work)
    assert done == ["begun"]
    with pytest.raises(Stopped):
        interrupt.leaving(work)
    assert done == ["begun"], "it does not begin after a signal"
    with InterruptCallback(1, lambda vote: [vote]) as other:
        work()
        assert done[-1] == "ended"
        assert other.asked


def test_an_interrupt_that_a_library_makes_an_error_of_is_one_still(interrupt):
    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            raise RuntimeError("the engine was interrupted") from error

    with interrupt, pytest.raises(Stopped):
        interrupt.leaving(work)
    with pytest.raises(ZeroDivisionError):
        InterruptCallback(1, lambda vote: [vote]).leaving(lambda: 1 // 0)


@pytest.mark.parametrize("process", [0, 1])
def test_an_interrupt_of_one_process_stops_all_but_a_failure_is_told(interrupt, process):
    def leave():
        raise Stopped

    with pytest.raises(Stopped):
        in_all(leave, lambda text: [text, None], process)
    with pytest.raises(Stopped):
        in_all(lambda: 7, lambda text: [text, Stopped.WORDS], process)
    with pytest.raises(ToldError, match="process 1: no judge"):
        in_all(leave, lambda text: [text, "no judge"], process)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_sigterm_while_loading_ends_in_order_and_is_told_once(command, monkeypatch, capfd, rank):
    def loads(recipe, **_):
        try:
            both_at_once()
            time.sleep(20)
        finally:
            ended.append(recipe.name)

    ended = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("sharevl_lite.run.train", loads)
    assert main(command()[3:]) == 130
    assert ended == ["small"]
    assert capfd.readouterr().err == "stopped without saving\n" * (rank == "0")
