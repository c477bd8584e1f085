"""Runs a sweep: what is finished is skipped, what failed stops nothing else."""

from __future__ import annotations

import queue
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..errors import DataError, UserError
from .launch import Launcher, card_groups, held
from .progress import Clock, duration
from .spec import Spec
from .steps import TOOLS, Job, check_begun, freeze
from .table import write_tables

_SAID = 3  # lines of a failed step's log that are shown


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end, and why."""

    job: Job
    step: str
    reason: str


class Sweep:
    """All runs of a spec below one folder.

    Args:
        spec: what to run.
        configs: of each row (:func:`.validate.resolve`).
        work_dir: output folder.
        jobs: runs at a time.
        gpus_per_run: cards of each.
        tools: folder of the command lines.
    """

    def __init__(
        self,
        spec: Spec,
        configs: Mapping[str, Config],
        work_dir: Path,
        *,
        jobs: int = 1,
        gpus_per_run: int = 1,
        tools: Path = TOOLS,
    ) -> None:
        self.spec, self.configs, self.work_dir = spec, configs, work_dir
        self.jobs, self.gpus = jobs, gpus_per_run
        self.launcher = Launcher()
        self.all = [
            Job.of(spec, row.name, seed, configs[row.name], work_dir, gpus_per_run, tools)
            for seed in spec.seeds  # seeds outside, so that a table has all rows soon
            for row in spec.rows
        ]
        self._say_lock = threading.Lock()

    def chosen(self, only: Sequence[str] | None) -> list[Job]:
        """The runs of the rows ``only``, or all.

        Raises:
            ConfigError: there is no such row.
        """
        names = {self.spec.row(name).name for name in only or ()}
        return [job for job in self.all if not only or job.row in names]

    def check(self, only: Sequence[str] | None) -> None:
        """What :meth:`run` would refuse, without writing anything.

        Raises:
            ConfigError: a row was begun with another spec, or ``only`` names none.
            SetupError: there are too few cards.
        """
        card_groups(self.gpus)
        for name in dict.fromkeys(job.row for job in self.chosen(only)):
            check_begun(self.spec, name, self.configs[name], self.work_dir, self.gpus)

    def commands(self, only: Sequence[str] | None = None) -> list[str]:
        """What would be run, as a shell reads it, finished steps left out."""
        lines = []
        for job in self.chosen(only):
            done = job.record()
            lines.append(f"# {job.name}" + (f": finished are {', '.join(done)}" if done else ""))
            # A name with a * is the shell's to fill in, once the training is done.
            lines += [
                " ".join(shlex.quote(part).replace("*", "'*'") for part in job.command(step))
                for step in job.steps
                if step not in done
            ]
        return lines

    def run(self, only: Sequence[str] | None = None) -> list[Failure]:
        """Runs what is not finished, and writes the tables after each run.

        Returns:
            The runs that failed, and those whose results cannot be compared.

        Raises:
            ConfigError: a row was begun with another spec, or ``only`` names none.
            SetupError: the folder cannot be written to, or there are too few cards.
        """
        chosen = self.chosen(only)
        groups = card_groups(self.gpus)
        for name in dict.fromkeys(job.row for job in chosen):
            freeze(self.spec, name, self.configs[name], self.work_dir, self.gpus)
        left_over = [(job, [s for s in job.steps if s not in job.record()]) for job in chosen]
        todo = [(job, steps) for job, steps in left_over if steps]
        self._say(
            f"{len(chosen)} runs, {len(chosen) - len(todo)} of them finished; "
            f"{self.jobs} at a time; {self.work_dir}"
        )
        slots: queue.Queue[tuple[str, ...]] = queue.Queue()
        for slot in range(self.jobs):
            slots.put(groups[slot % len(groups)] if groups else ())
        clock = Clock((step for _, steps in todo for step in steps), self.jobs)
        failures: list[Failure] = []
        # Threads only wait for processes.
        with self.launcher.obeying_signals(), ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._run, job, slots, clock) for job, _ in todo]
            for number, future in enumerate(as_completed(futures), 1):
                failure = future.result()
                if failure is not None:
                    failures.append(failure)
                    self._say(f"FAILED {failure.job.name}: {failure.step}: {failure.reason}")
                write_tables(self.spec, self.all, self.work_dir)
                left = clock.left()
                about = "" if left is None else f", about {duration(left)} left"
                self._say(f"[{number}/{len(todo)}] runs{about}")
        return [*failures, *self._tables()]

    def tables(self) -> list[Failure]:
        """Writes the tables of what has ended; checkpoints may be gone.

        Returns:
            The runs whose results cannot be compared.

        Raises:
            DataError: nothing has ended; nothing is written then.
            SetupError: the folder cannot be written to.
        """
        if all(job.ended() is None for job in self.all):
            raise DataError(
                found=f"no finished run in {self.work_dir}: of {len(self.all)} runs of "
                f"{self.spec.name} none has results of its test",
                expected="the folder of a sweep, with <row>/seed_<n>/steps.json and test/ of each "
                "finished run",
                fix="give the --work-dir that the sweep ran in, or run it: the same command "
                "without --tables-only",
            )
        return self._tables()

    def _tables(self) -> list[Failure]:
        strangers = write_tables(self.spec, self.all, self.work_dir)
        return [Failure(job, "table", reason) for job, reason in strangers]

    def _run(
        self, job: Job, slots: queue.Queue[tuple[str, ...]], clock: Clock
    ) -> Failure | None:  # fmt: skip
        """One run, in a thread of its own."""
        cards, step = slots.get(), job.steps[0]
        try:
            with held(job.folder) as lock:
                todo = [name for name in job.steps if name not in job.record()]
                for number, step in enumerate(todo):
                    reason = self._step(job, step, cards, lock, clock)
                    if reason is not None:
                        clock.dropped(todo[number:])
                        return Failure(job, step, reason)
        except UserError as error:
            # Of this run alone: the others go on, and this one is listed at the end.
            clock.dropped(name for name in job.steps if name not in job.record())
            return Failure(job, step, str(error))
        finally:
            slots.put(cards)
        return None

    def _step(
        self, job: Job, step: str, cards: Sequence[str], lock: int, clock: Clock
    ) -> str | None:
        """Runs one step; returns why it failed."""
        if self.launcher.stopped:
            return "not begun: the sweep was stopped"
        self._say(f"{job.name}: {step} ({job.log(step)})")
        begin = time.monotonic()
        status = self.launcher.run(job.command(step), job.log(step), cards, lock)
        seconds = time.monotonic() - begin
        if status:
            if self.launcher.stopped:
                return f"stopped (exit status {status}); the same command goes on with it"
            return f"exit status {status}; {job.log(step)} ends with\n{_tail(job.log(step))}"
        job.finish(step, seconds)
        clock.done(step, seconds)
        left = clock.left()
        about = "" if left is None else f", about {duration(left)} left"
        self._say(f"{job.name}: {step} took {duration(seconds)}{about}")
        return None

    def _say(self, text: str) -> None:
        with self._say_lock:
            print(text, flush=True)


def _tail(log: Path) -> str:
    """The end of a log: a user's error where there is one, else its last lines."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    begins = [at for at, line in enumerate(lines[-20:]) if line.startswith("  found: ")]
    shown = lines[-20:][begins[-1] :][:_SAID] if begins else lines[-_SAID:]
    return "\n".join(f"    {line.strip()}" for line in shown)
