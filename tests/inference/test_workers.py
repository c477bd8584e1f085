"""Processes of data-parallel prediction end when nobody waits for them."""

from __future__ import annotations

import multiprocessing
import queue
import signal

import pytest

from projects.sa2va.inference import workers


class Parent:
    """Of a process; lives for so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_alive(self) -> bool:
        self.looks -= 1
        return self.looks >= 0


@pytest.mark.parametrize("looks", [0, 2])
def test_a_process_whose_first_process_was_killed_ends(monkeypatch, looks):
    monkeypatch.setattr(workers, "_LOOK_EVERY", 0.01)
    parent = Parent(looks)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    assert workers._next_job(queue.Queue()) is None
    assert parent.looks == -1


def test_a_process_waits_for_its_next_batch(monkeypatch):
    jobs: queue.Queue = queue.Queue()
    jobs.put((7, [], None))
    assert workers._next_job(jobs) == (7, [], None)


def test_ctrl_c_is_for_the_first_process_alone():
    with workers._ctrl_c_left_out():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
