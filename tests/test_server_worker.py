"""The worker's thread: turns of clients, cancelled and late jobs, steps that fail, and how it ends."""

import queue
import time
from contextlib import contextmanager

import pytest

from hawk.decoding import recording
from hawk.decoding.recording import Recordings
from hawk.server.fair_queue import FairQueue
from hawk.server.jobs import Accepted, Drawn, Failed, Finished, Job, JobImage, Partial, Stepped, Wish
from hawk.server.worker import DrainingError, FullError, Worker
from serving import PROMPT, PacedStudio, alone, tiny_pipe

pytestmark = pytest.mark.usefixtures("unchecked")  # checks of signatures would take most of the time


class Client:
    """A client of a worker: its events are collected."""

    def __init__(self, worker: Worker, name: str = "me") -> None:
        self.worker, self.name = worker, name
        self.events: queue.Queue = queue.Queue()

    def submit(self, seed: int = 0, timeout: float = 30.0, **wish) -> Job:
        wish = {"prompt": PROMPT, "method": "ar", "seed": seed, **wish}
        return self.worker.submit(Wish(**wish), self.name, timeout, self.events.put)

    def until(self, kind):
        """The events up to the first of that kind."""
        events = [self.events.get(timeout=20)]
        while not isinstance(events[-1], kind):
            events.append(self.events.get(timeout=20))
        return events

    def end(self):
        return self.until((Finished, Failed))


@contextmanager
def working(folder, places=4, waiting=20, pause=0.0):
    studio = PacedStudio(tiny_pipe(folder))
    studio.pause = pause
    worker = Worker(studio, places, waiting)
    worker.start()
    assert worker.ready.wait(20)
    yield worker
    studio.before = None
    worker.stop()
    assert worker.join(20.0)


def drawn(events) -> dict[int, str]:
    """The fingerprints of the drawn images by their seeds."""
    return {each.seed: each.metadata["tokens_sha256"] for each in events if isinstance(each, Drawn)}


def test_clients_take_turns_and_keep_their_own_order():
    waiting, order = FairQueue(), []
    jobs = {name: Job(Wish(PROMPT), name, 0.0, print) for name in "abc"}
    for name, place in (("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("b", 1)):
        waiting.push(JobImage(jobs[name], place, 24, 0.0))
    assert len(waiting) == 6
    first = waiting.pop()
    waiting.push_back(first)
    while waiting:
        image = waiting.pop()
        order.append((image.job.client, image.place))
    assert order == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("a", 2)]


def test_images_of_a_job_leave_the_queue_together():
    waiting = FairQueue()
    one, other = (Job(Wish(PROMPT), "a", 0.0, print) for _ in range(2))
    for job, place in ((one, 0), (one, 1), (one, 2), (other, 0)):
        waiting.push(JobImage(job, place, 24, 0.0))
    assert [image.place for image in waiting.pop_of(one, 2)] == [0, 1]
    waiting.remove(one)
    assert [image.job for image in waiting] == [other]


def test_a_small_client_need_not_wait_for_a_large_one(saved_model):
    with working(saved_model, places=1, pause=0.002) as worker:
        large, small = Client(worker, "large"), Client(worker, "small")
        large.submit(images=4)
        small.submit(seed=1)
        assert drawn(small.end()) == {1: alone(saved_model, PROMPT, 1)}
        assert worker.open_images >= 2
        assert len(drawn(large.end())) == 4


def test_events_come_in_order(saved_model):
    with working(saved_model) as worker:
        client = Client(worker)
        client.submit(seed=3, partials=3, watched=True)
        events = client.end()
        assert isinstance(events[0], Accepted)
        assert events[0].seeds == (3,)
        assert [each.committed for each in events if isinstance(each, Stepped)] == list(range(2, 24))
        assert [each.index for each in events if isinstance(each, Partial)] == [0, 1, 2]
        assert [type(each) for each in events[-2:]] == [Drawn, Finished]
        final = events[-2]
        for each in events:
            if isinstance(each, Partial):
                assert each.tokens == final.tokens[: len(each.tokens)]


def test_an_image_of_replayed_steps_tells_its_own_forwards(saved_model, monkeypatch):
    monkeypatch.setattr(recording, "captured", lambda call, device, pool: call)
    monkeypatch.setattr(PacedStudio, "recordings", Recordings("graph"))
    with working(saved_model) as worker:
        client = Client(worker)
        client.submit(seed=3, method="scd")
        (final,) = [each for each in client.end() if isinstance(each, Drawn)]
        assert len(final.forwards) == final.stats.nfe
        assert drawn([final]) == {3: alone(saved_model, PROMPT, 3)}


def test_a_cancelled_job_frees_its_place(saved_model):
    with working(saved_model, places=1, pause=0.01) as worker:
        gone, next_one = Client(worker, "gone"), Client(worker, "next")
        job = gone.submit(images=5)
        next_one.submit(seed=4)
        gone.until(Accepted)
        worker.cancel(job)
        assert gone.end()[-1].kind == "cancelled"
        assert drawn(next_one.end()) == {4: alone(saved_model, PROMPT, 4)}
        assert worker.open_images == 0


def test_a_cancelled_group_ends_before_its_last_step(saved_model):
    with working(saved_model) as worker:
        client = Client(worker)
        group = client.submit(images=2, method="hawk", watched=True)  # draft trees: the images begin and end together
        client.until(Stepped)
        worker.cancel(group)
        assert client.end()[-1].kind == "cancelled"
        client.submit(seed=2, method="hawk")
        assert drawn(client.end()) == {2: alone(saved_model, PROMPT, 2)}


def test_a_job_whose_time_is_over_fails_and_the_others_do_not(saved_model):
    with working(saved_model, pause=0.02) as worker:
        late, other = Client(worker), Client(worker)
        other.submit(seed=1)
        late.submit(seed=2, timeout=0.1)
        assert late.end()[-1].kind == "timeout"
        assert drawn(other.end()) == {1: alone(saved_model, PROMPT, 1)}


def test_a_full_queue_and_a_wrong_wish(saved_model):
    with working(saved_model, places=1, waiting=1, pause=0.02) as worker:
        client = Client(worker)
        client.submit(images=2)
        with pytest.raises(FullError) as caught:
            client.submit()
        assert 1 <= caught.value.retry_after <= 60
        client.end()
        client.submit(height=33)
        refused = client.end()[-1]
        assert (refused.kind, worker.open_images) == ("refused", 0)
        assert "height" in refused.message


@pytest.mark.parametrize("bad", [2, None], ids=["one image breaks steps", "a step breaks once"])
def test_a_failed_step_ends_no_image_but_the_one_that_cannot_be_drawn(saved_model, bad):
    broken = []

    def before(engine):
        seeds = [key.job.wish.seed for shared in engine.lanes.values() for key in shared.lane.keys]
        if (bad in seeds) if bad is not None else (not broken and len(seeds) == 3):
            broken.append(seeds)
            raise RuntimeError("a kernel failed")

    with working(saved_model, pause=0.002) as worker:
        worker.studio.before = before
        clients = {seed: Client(worker, str(seed)) for seed in (1, 2, 3)}
        for seed, client in clients.items():
            client.submit(seed=seed)
        ends = {seed: client.end() for seed, client in clients.items()}
        for seed, events in ends.items():
            if seed == bad:
                assert events[-1].kind == "error"
                assert events[-1].reference in events[-1].message
            else:
                assert drawn(events) == {seed: alone(saved_model, PROMPT, seed)}
        assert broken
        clients[1].submit(seed=4)
        assert drawn(clients[1].end()) == {4: alone(saved_model, PROMPT, 4)}


def test_a_drained_worker_finishes_what_it_took(saved_model):
    with working(saved_model, places=1, pause=0.005) as worker:
        client = Client(worker)
        client.submit(images=2, seed=1)
        worker.drain()
        with pytest.raises(DrainingError):
            client.submit()
        assert drawn(client.end()) == {seed: alone(saved_model, PROMPT, seed) for seed in (1, 2)}
        assert worker.join(10.0)


def test_a_stopped_worker_tells_its_clients(saved_model):
    with working(saved_model, places=1, pause=0.02) as worker:
        client = Client(worker)
        client.submit(images=3)
        client.until(Accepted)
        started = time.monotonic()
        worker.stop()
        assert client.end()[-1].kind == "stopping"
        assert time.monotonic() - started < 5


def test_a_client_that_cannot_be_told_is_given_up(saved_model):
    def gone(event):
        raise RuntimeError("the loop is closed")

    with working(saved_model, places=1) as worker:
        worker.submit(Wish(PROMPT, images=3, method="ar"), "gone", 30.0, gone)
        client = Client(worker)
        client.submit(seed=1)
        assert drawn(client.end()) == {1: alone(saved_model, PROMPT, 1)}


def test_a_model_that_cannot_be_used_ends_the_worker(saved_model):
    class Broken(PacedStudio):
        def warm(self):
            raise RuntimeError("no kernel")

    worker = Worker(Broken(tiny_pipe(saved_model)), 1, 1)
    worker.start()
    assert worker.join(10.0)
    assert (worker.broken, worker.ready.is_set()) == (True, False)
    with pytest.raises(DrainingError):
        Client(worker).submit()
