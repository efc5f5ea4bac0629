"""A worker: one model and one engine, which draws blocks and writes their shards and records."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hawk.batch.folder import Folder, Record
from hawk.batch.job import Block, Settings, marks_of, params_of, seeds_of
from hawk.batch.rows import Failure, Row
from hawk.batch.shards import Picture, write_shard
from hawk.decoding.memory import is_out_of_memory
from hawk.errors import HawkError
from hawk.outputs import drawn_metadata, image_metadata, image_settings
from hawk.pictures.png import png_bytes
from hawk.pipeline import HawkPipeline, PipelineOutput, grid_of

OnImage = Callable[[], None]
"""Called after each image."""


class Worker:
    """Draws the blocks of one job; raises `HawkError` where its model or its folder is not that of the job."""

    def __init__(self, settings: Settings) -> None:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.settings = settings
        self.folder = Folder(Path(settings.out), settings.format)
        self.pipe = HawkPipeline.from_pretrained(
            settings.model, settings.device, settings.dtype, settings.drafter, settings.engine
        )
        self.folder.check_marks(marks_of(self.pipe.model, settings))
        model = self.pipe.model
        grid = grid_of(model, settings.height, settings.width)
        params = params_of(model, settings)
        self.shared = image_settings(params, grid, model.cell, settings.verified, self.pipe.dtype)

    def draw(self, block: Block, on_image: OnImage | None = None) -> Record:
        """Draw a block, unless it is done, and write its shard and its record.

        The rows are drawn together. Where that is refused, each row is drawn alone, and the rows that are refused alone
        become failures.

        Raises:
            HawkError: no row of the block can be drawn, though the model can read them.
            OSError: the disk is full.
        """
        kept = self.folder.kept(block.number)
        if kept is not None:
            return kept
        started = time.perf_counter()
        failures: list[Failure] = []
        try:
            pictures = self._pictures(block.rows, on_image)
        except HawkError:
            pictures, failures = self._one_by_one(block)
        size = write_shard(self.settings.format, self.folder.shard(block.number), pictures)
        nfe = sum(picture.nfe for picture in pictures)
        tokens = sum(picture.tokens for picture in pictures)
        seconds = time.perf_counter() - started
        record = Record(block.number, len(pictures), size, tokens, nfe, seconds, tuple(failures))
        self.folder.keep(record)
        return record

    def _pictures(self, rows: Sequence[Row], on_image: OnImage | None = None) -> list[Picture]:
        """The images of rows that are drawn together; `HawkError` where the model refuses one of them."""
        whole = [replace(row, negative=row.negative or self.settings.negative_prompt) for row in rows]
        images = [(row, k, seed) for row in whole for k, seed in enumerate(seeds_of(row, self.settings.images))]
        negatives = [row.negative for row, _, _ in images]
        pictures: list[Picture] = []

        def on_image_end(pipe: HawkPipeline, place: int, output: PipelineOutput) -> None:
            pictures.append(self._picture(*images[place], output))
            if on_image is not None:
                on_image()

        self.pipe(
            [row.prompt for row, _, _ in images],
            negative_prompt=negatives if any(negatives) else None,
            seed=[seed for _, _, seed in images],
            callback_on_image_end=on_image_end,
            **self.settings.call(),
        )
        return pictures

    def _picture(self, row: Row, index: int, seed: int, output: PipelineOutput) -> Picture:
        """An image, which is the only one of `output`, with its file."""
        name, method = self.pipe.model.name, self.settings.method
        drawn = drawn_metadata(output.tokens[0])
        text = image_metadata(row.prompt, row.negative, seed, name, method, self.shared)
        png = png_bytes(output.images[0], text | drawn)
        facts = {"model": name, "method": method, **self.shared}
        return Picture(row, index, seed, drawn["tokens_sha256"], output.grid.size, output.nfe, facts, png)

    def _one_by_one(self, block: Block) -> tuple[list[Picture], list[Failure]]:
        """The images of rows that are drawn row by row, and the rows that are refused alone.

        Raises `HawkError` where the memory is too small, or where the model can read several rows and none of them can
        be drawn: the fault is not theirs.
        """
        pictures: list[Picture] = []
        unread: list[Failure] = []
        undrawn: list[Failure] = []
        for row in block.rows:
            try:
                self.pipe.condition([row.prompt], self.settings.height, self.settings.width)
            except HawkError as error:
                unread.append(Failure(row.line, str(error), row.given))
                continue
            try:
                pictures += self._pictures([row])
            except HawkError as error:
                if error.__cause__ is not None and is_out_of_memory(error.__cause__):
                    raise
                undrawn.append(Failure(row.line, str(error), row.given))
        if not pictures and len(undrawn) > 1:
            raise HawkError(f"none of the {len(undrawn)} prompts of block {block.number} is drawn: {undrawn[0].reason}")
        return pictures, unread + undrawn
