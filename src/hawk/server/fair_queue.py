"""A queue that is fair to clients: they take turns, and each client's images keep their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from hawk.server.jobs import Job, JobImage


class FairQueue:
    """The images that wait, by client."""

    def __init__(self) -> None:
        self._turns: dict[str, deque[JobImage]] = {}  # in the order of the clients' turns

    def __len__(self) -> int:
        return sum(map(len, self._turns.values()))

    def __iter__(self) -> Iterator[JobImage]:
        for images in self._turns.values():
            yield from images

    def push(self, image: JobImage) -> None:
        """Put an image behind the other images of its client."""
        self._turns.setdefault(image.job.client, deque()).append(image)

    def pop(self) -> JobImage:
        """Take the first image of the client whose turn it is; the turn passes to the next client."""
        client, images = next(iter(self._turns.items()))
        image = images.popleft()
        del self._turns[client]
        if images:
            self._turns[client] = images
        return image

    def push_back(self, image: JobImage) -> None:
        """Put an image that `pop` gave in front of all others; it is the next client's turn no longer."""
        images = self._turns.pop(image.job.client, deque())
        images.appendleft(image)
        self._turns = {image.job.client: images, **self._turns}

    def pop_of(self, job: Job, most: int) -> list[JobImage]:
        """Take up to `most` images of a job that are the next ones of its client."""
        taken: list[JobImage] = []
        images = self._turns.get(job.client, deque())
        while images and len(taken) < most and images[0].job is job:
            taken.append(images.popleft())
        if not images:
            self._turns.pop(job.client, None)
        return taken

    def remove(self, job: Job) -> None:
        """Forget the images of a job."""
        images = deque(image for image in self._turns.get(job.client, ()) if image.job is not job)
        if images:
            self._turns[job.client] = images
        else:
            self._turns.pop(job.client, None)
