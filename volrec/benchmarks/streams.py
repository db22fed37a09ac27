"""The scores of one stream on one side of a split: video after video, kept as they come, bad videos counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from volrec.benchmarks.partial import PartialScores
from volrec.benchmarks.scores import ScoreSet
from volrec.benchmarks.sets import Video
from volrec.benchmarks.testing import StreamScorer
from volrec.errors import ConfigError, DataError, Problem, RunError, VolrecError
from volrec.progress import track

__all__ = ["each_video", "score_videos"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def score_videos(
    scorer: StreamScorer,
    videos: Sequence[Video],
    path: Path,
    *,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    decoder: str,
    extracted: str | None,
    jobs: int,
    description: str,
) -> tuple[ScoreSet, list[Problem]]:
    """Score videos and keep the scores; videos whose scores are there already are not scored again.

    Parameters
    ----------
    scorer : StreamScorer
        Network and views.
    videos : sequence of Video
        One side of a split.
    path : path
        ``….safetensors``; on the way a ``….partial`` beside it. Scores of other settings are replaced.
    classes, facts
        As `ScoreSet` keeps them.
    decoder, extracted
        As `Footage` takes them.
    jobs : int
        Videos in hand at a time, in threads.
    description : str
        For the progress bar.

    Returns
    -------
    ScoreSet
        Of the videos that could be read.
    list of Problem
        Of the others.

    Raises
    ------
    DataError
        None could be read.
    RunError
        The file on the way belongs to other settings.
    """
    stage = scorer.views.stage
    problems: list[Problem] = []
    partial_path = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _scored_before(path, classes=classes, stage=stage, facts=facts)
    if before is not None and before.videos == tuple(video.name for video in videos):
        return before, []

    def score(video: Video) -> Any:
        with scorer.reader.open(video, decoder=decoder, extracted=extracted) as footage:
            return scorer.score(footage)

    with PartialScores(partial_path, classes=classes, stage=stage, facts=facts) as partial:
        if before is not None:
            _take_over(before, partial)
        todo = [video for video in videos if video.name not in partial.done]
        for video, found in each_video(score, todo, jobs=jobs, description=description):
            if isinstance(found, Problem):
                problems.append(found)
                continue
            best = found.clips.argmax(axis=1)
            partial.add(
                video.name,
                labels=video.labels,
                logits=found.logits,
                probabilities=found.probabilities,
                clips=len(best),
                clip_hits=int(sum(int(place) in video.labels for place in best)),
            )
        kept = [video.name for video in videos if video.name in partial.done]
        if not kept:
            raise DataError(
                f"none of {len(videos)} videos could be scored; the first: {problems[0].reason}",
                remedy=problems[0].remedy,
                where=problems[0].where,
                code="no-videos",
            )
        scores = partial.finish(kept)
    scores.write(path)
    partial_path.unlink(missing_ok=True)
    return scores, problems


def each_video(
    work: Callable[[Video], Result], videos: Sequence[Video], *, jobs: int, description: str
) -> Iterator[tuple[Video, Result | Problem]]:
    """Do something with each video, in their order, several at a time; what fails becomes a problem.

    Threads are enough: decoding and networks let go of the interpreter while they work.

    Raises
    ------
    ConfigError
        As `work` raises it: it would be the same for every video.
    """
    if jobs <= 1:
        for video in track(videos, description):
            yield video, _outcome(lambda video=video: work(video), video)  # type: ignore[misc]
        return
    with ThreadPoolExecutor(jobs) as pool:
        ahead: list[tuple[Video, Future[Result]]] = []
        waiting = iter(videos)
        try:
            for _ in track(videos, description):
                while len(ahead) < 2 * jobs and (coming := next(waiting, None)) is not None:
                    ahead.append((coming, pool.submit(work, coming)))
                video, future = ahead.pop(0)
                yield video, _outcome(future.result, video)
        finally:
            for _, future in ahead:
                future.cancel()


def _scored_before(path: Path, *, classes: Sequence[str], stage: str, facts: Mapping[str, Any]) -> ScoreSet | None:
    """Return the scores of an earlier test with the same settings, where there are some."""
    if not path.is_file():
        return None
    try:
        found = ScoreSet.read(path)
    except RunError as error:
        log.warning("%s is written anew: %s", path, error)
        return None
    plain = json.loads(json.dumps(dict(facts)))
    same = found.classes == tuple(classes) and found.stage == stage
    return found if same and all(found.facts.get(name, found) == plain[name] for name in plain) else None


def _take_over(scores: ScoreSet, partial: PartialScores) -> None:
    for row, name in enumerate(scores.videos):
        if name not in partial.done:
            partial.add(
                name,
                labels=scores.labels[row],
                logits=scores.logits[row],
                probabilities=scores.probabilities[row],
                clips=int(scores.clips[row]),
                clip_hits=int(scores.clip_hits[row]),
            )


def _outcome(result: Callable[[], Result], video: Video) -> Result | Problem:
    try:
        return result()
    except ConfigError:
        raise
    except VolrecError as error:
        return Problem.of(error, where=error.where or str(video.path), study=video.name)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise DataError(
            "memory ran out.",
            remedy="Score fewer videos at a time (--jobs 1); what is scored is kept.",
            where=video.path,
            code="memory",
        ) from error
    except torch.AcceleratorError:
        raise  # no video's fault, and the next one would meet it too
    except Exception as error:  # noqa: BLE001 - one bad video never stops a set
        text = f"it could not be scored ({type(error).__name__}: {error})."
        return Problem(str(video.path), "unexpected", text, "Look at the video with a player.", video.name)
