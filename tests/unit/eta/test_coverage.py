"""Estimates over much simulated traffic, in virtual time: they cover what they say."""

import random
from collections import deque
from dataclasses import dataclass, field

from shared.jobs.calibration import (
    Calibration,
    DurationEstimate,
    EstimateOutcome,
    Finished,
    RateBook,
    Workload,
)
from shared.jobs.estimates import Load, Snapshot, ThroughputMeter, estimate_queued, servers

GPU = "a GPU"
ROWS = 8
TICK = 0.04


@dataclass
class SimulatedJob:
    """A job on its way through the system."""

    work: Workload
    submitted: float
    estimate: DurationEstimate | None
    left: list[int] = field(default_factory=list)
    """Steps of each image that wait for a row."""
    running: list[int] = field(default_factory=list)
    """Steps left of the images in rows."""
    started: float = 0.0
    gpu_seconds: float = 0.0


class System:
    """Eight rows, first come first served, a dispatcher that looks once a second."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.queue: deque[SimulatedJob] = deque()
        self.inside: list[SimulatedJob] = []
        self.book, self.calibration, self.meter = RateBook(), Calibration(), ThroughputMeter()
        self.snapshot = Snapshot()
        self.done: list[SimulatedJob] = []
        self.outcomes: list[tuple[DurationEstimate, float]] = []
        self.looked = 0.0

    def submit(self) -> None:
        """One job; its estimate is that of this moment."""
        choose = self.chance.choice
        work = Workload(
            "m", 64, 64, choose((5, 10, 20, 40)), guided=True, images=choose((1, 1, 2, 4))
        )
        found = servers(self.snapshot, {GPU: ROWS}, work)
        estimate = None
        if found is not None:
            ahead = Load(
                model="m",
                queue_class="interactive",
                queued_images=sum(len(job.left) for job in self.queue),
                queued_cost=sum(job.work.cost * len(job.left) for job in self.queue),
                running_images=sum(len(job.running) for job in self.inside),
                running_cost=sum(job.work.cost * len(job.running) for job in self.inside),
            )
            estimate = estimate_queued(self.snapshot, found, work, ahead)
        left = [work.steps] * work.images
        self.queue.append(SimulatedJob(work, self.now, estimate, left))

    def tick(self) -> None:
        """One tick of the engine, and the dispatcher's look when it is due."""
        self._admit()
        live = sum(len(job.running) for job in self.inside)
        self.now += TICK
        for job in self.inside:
            job.gpu_seconds += TICK * len(job.running) / live / job.work.images
            job.running = [steps - 1 for steps in job.running if steps > 1]
        for job in [job for job in self.inside if not job.running and not job.left]:
            self.inside.remove(job)
            self.done.append(job)
        if self.now - self.looked >= 1.0:
            self._look()

    def _admit(self) -> None:
        free = ROWS - sum(len(job.running) for job in self.inside)
        while free and self.queue:
            job = self.queue[0]
            if job not in self.inside:
                job.started = self.now
                self.inside.append(job)
            taken = min(free, len(job.left))
            job.running += job.left[:taken]
            del job.left[:taken]
            free -= taken
            if not job.left:
                self.queue.popleft()

    def _look(self) -> None:
        for job in self.done:
            # Encoding, an upload and the commit, now and then a slow one.
            overhead = self.chance.lognormvariate(-3, 0.8)
            self._learn(job, overhead)
        cost = sum(job.work.cost * job.work.images for job in self.done)
        done = {"m": (len(self.done), cost)}
        self.meter.observe(self.now - self.looked, done, {"m": len(self.queue)}, {"m": ROWS})
        self.done, self.looked = [], self.now
        self.snapshot = Snapshot(
            rates=self.book.rates(),
            factors=self.calibration.factors(),
            throughputs=self.meter.throughputs(),
            loads=(Load(model="m", queue_class="interactive"),),
        )

    def _learn(self, job: SimulatedJob, overhead: float) -> None:
        run = self.now - job.started + overhead
        self.book.learn([Finished(job.work, GPU, ROWS, job.gpu_seconds, run)])
        if job.estimate is not None:
            seconds = self.now - job.submitted + overhead
            self.outcomes.append((job.estimate, seconds))
            self.calibration.learn([EstimateOutcome("m", job.estimate, seconds)])


def traffic(seed: int, jobs_per_second: float, jobs: int) -> list[tuple[DurationEstimate, float]]:
    """(estimate, seconds) of jobs that come by chance, every fortieth time a dozen at once."""
    system = System(seed)
    due = 0.0
    for number in range(jobs):
        if number % 40 >= 12:
            due += system.chance.expovariate(jobs_per_second)
        while system.now < due:
            system.tick()
        system.submit()
    while system.queue or system.inside:
        system.tick()
    return system.outcomes[100:]


def test_half_and_nine_of_ten_jobs_are_done_by_then() -> None:
    outcomes = [pair for seed in range(3) for pair in traffic(seed, 2.5, 900)]
    assert sum(told.waits for told, _ in outcomes) > 300
    assert sum(not told.waits for told, _ in outcomes) > 300
    covered_p50 = sum(seconds <= told.p50 for told, seconds in outcomes) / len(outcomes)
    covered_p90 = sum(seconds <= told.p90 for told, seconds in outcomes) / len(outcomes)
    errors = sorted(abs(seconds - told.p50) / seconds for told, seconds in outcomes)
    assert 0.42 <= covered_p50 <= 0.58, covered_p50
    assert 0.86 <= covered_p90 <= 0.94, covered_p90
    assert errors[len(errors) // 2] <= 0.25, errors[len(errors) // 2]


def test_also_when_more_comes_than_can_be_done() -> None:
    outcomes = traffic(7, 8.0, 900)
    covered_p90 = sum(seconds <= told.p90 for told, seconds in outcomes) / len(outcomes)
    assert covered_p90 >= 0.8, covered_p90
