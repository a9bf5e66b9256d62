# SPDX-License-Identifier: Apache-2.0
"""Many recordings at once: replay jobs over the processes of this machine, or over a Ray cluster.

A job writes its own directory, and writes what says that the directory is whole last. So a worker
that dies loses no more than the job that it was at: the job is given to another worker, and after
ATTEMPTS deaths it counts as failed, as does one that raises an error; all others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from oc_perception.evaluation.replay import run_job
from oc_perception.evaluation.replay_store import ReplayJob

ATTEMPTS = 3
"""How often a job is begun whose workers die."""

Work = Callable[[ReplayJob], dict[str, Any]]


class FleetError(ValueError):
    """There is no fleet to run on."""


@dataclass(frozen=True)
class Outcome:
    """What became of the job with this `number`: its metrics, or the `error`."""

    number: int
    metrics: dict[str, Any] | None = None
    error: str = ""


class _Task(NamedTuple):
    number: int
    job: ReplayJob
    attempt: int = 1


def map_jobs(
    jobs: Sequence[ReplayJob],
    workers: int,
    ray_address: str | None = None,
    on_done: Callable[[Outcome], object] = lambda outcome: None,
    work: Work = run_job,
) -> list[Outcome]:
    """Outcomes in the order of `jobs`, whatever the order in which they were done.

    `workers` processes of this machine share them or, with `ray_address`, as many tasks at a time
    as the cluster there has room for. `on_done` is told of each outcome as it comes. `work` must
    be importable in a new process. Raises FleetError where Ray is missing or cannot be reached.
    """
    found = _over_ray(jobs, ray_address, work) if ray_address else _here(jobs, workers, work)
    outcomes = []
    for outcome in found:
        on_done(outcome)
        outcomes.append(outcome)
    return sorted(outcomes, key=lambda outcome: outcome.number)


def attempt(number: int, job: ReplayJob, work: Work) -> Outcome:
    """What `work` makes of `job`; whatever goes wrong in one is no reason to stop the others."""
    try:
        return Outcome(number, work(job))
    except (ValueError, OSError) as error:
        return Outcome(number, error=str(error))
    except Exception as error:  # a defect: say what it is
        return Outcome(number, error=f"{type(error).__name__}: {error}")


def _died(task: _Task, reason: str) -> Outcome:
    return Outcome(
        task.number,
        error=f"its worker died {ATTEMPTS} times ({reason}); is there memory enough?",
    )


# Processes of this machine


class _Worker:
    """A process that does one task after another until its connection is closed."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.task: _Task | None = None

    def begin(self, task: _Task) -> None:
        """Raises ConnectionError where the process is dead."""
        self.connection.send(task)
        self.task = task

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends us
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(attempt(task.number, task.job, work))


def _here(jobs: Sequence[ReplayJob], workers: int, work: Work) -> Iterator[Outcome]:
    waiting = deque(_Task(number, job) for number, job in enumerate(jobs))
    crew: list[_Worker] = []
    try:
        crew += [_Worker(work) for _ in range(min(workers, len(jobs)))]
        while waiting or any(worker.task for worker in crew):
            for place, worker in enumerate(crew):
                if waiting and not worker.task:
                    task = waiting.popleft()
                    try:
                        worker.begin(task)
                    except ConnectionError:
                        worker.stop()
                        crew[place] = _Worker(work)
                        crew[place].begin(task)
            busy = {worker.connection: worker for worker in crew if worker.task}
            for connection in wait(list(busy)):
                worker = busy[connection]
                task, worker.task = worker.task, None
                try:
                    yield connection.recv()
                except (EOFError, ConnectionError):
                    worker.process.join()
                    if task.attempt < ATTEMPTS:
                        waiting.appendleft(task._replace(attempt=task.attempt + 1))
                    else:
                        yield _died(task, f"exit code {worker.process.exitcode}")
    finally:
        for worker in crew:
            worker.stop()


# A Ray cluster


def _over_ray(jobs: Sequence[ReplayJob], address: str, work: Work) -> Iterator[Outcome]:
    try:
        import ray
    except ImportError as error:
        raise FleetError(
            f"--ray needs Ray ({error}): pip install 'oc_perception[fleet]', here and on every"
            " machine of the cluster."
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise FleetError(
            f"There is no Ray cluster at {address} ({error}): start one with `ray start --head`."
        ) from error
    try:
        elsewhere = ray.remote(max_retries=ATTEMPTS - 1)(_elsewhere)
        running = {}
        for number, job in enumerate(jobs):
            needs = {"num_cpus": job.threads, "num_gpus": int(job.device.startswith("cuda"))}
            task = _Task(number, job)
            running[elsewhere.options(**needs).remote(os.getcwd(), task, work)] = task
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            task = running.pop(reference)
            try:
                yield ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # could not even begin, nor will
                yield Outcome(task.number, error=f"Ray: {error.cause or error}")
            except ray.exceptions.RayError as error:
                yield _died(task, type(error).__name__)
    finally:
        ray.shutdown()


def _elsewhere(directory: str, task: _Task, work: Work) -> Outcome:
    """On another machine: paths are relative to the `directory` where the command was given."""
    if os.path.isdir(directory):
        os.chdir(directory)
    return attempt(task.number, task.job, work)
