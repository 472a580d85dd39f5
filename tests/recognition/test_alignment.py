"""Forced alignment: the best of all paths, in both ways of keeping the trellis, and stars."""

import itertools

import numpy as np
import pytest

from flax_wavlm.errors import UserError
from flax_wavlm.recognition import alignment
from flax_wavlm.recognition.alignment import Alignment, align_labels, frames_needed

BLANK = 0


def random_log_probs(rng: np.random.Generator, frames: int, width: int) -> np.ndarray:
    posterior = rng.dirichlet(np.full(width, 0.4), size=frames)
    return np.log(np.maximum(posterior, 1e-30)).astype(np.float32)


def every_path(frames: int, labels: list[int], stars: np.ndarray | None) -> list[tuple[int, ...]]:
    """All sequences of states, numbered 3 * pair + kind, that spell the labels."""
    count = len(labels)
    allowed = [
        state for state in range(3 * count + 2) if state % 3 != 1 or (stars is not None and stars[state // 3])
    ]

    def follows(before: int, state: int) -> bool:
        (pair_before, kind_before), (pair, kind) = divmod(before, 3), divmod(state, 3)
        if before == state:
            return True
        if kind_before < 2:  # a blank or a star: the star or the label in its place
            return pair == pair_before and (kind == 2 or (kind_before, kind) == (0, 1))
        if pair != pair_before + 1:
            return False
        return kind < 2 or labels[pair] != labels[pair_before]

    return [
        path
        for path in itertools.combinations_with_replacement(allowed, frames)
        if path[0] <= 2 and path[-1] >= 3 * count - 1 and all(map(follows, path, path[1:]))
    ]


def best_of(paths, log_probs, labels, penalty, entry) -> tuple[tuple[int, ...], np.float32]:
    """By enumeration, added up in float32 in the order of time; of equals the one that is further on."""
    star = np.maximum(log_probs[:, BLANK], log_probs.max(axis=1) - np.float32(penalty))

    def score(path: tuple[int, ...]) -> np.float32:
        total = np.float32(0)
        for t, state in enumerate(path):
            if state % 3 == 1 and (t == 0 or path[t - 1] != state):
                total = total - np.float32(entry)
            now = (log_probs[t, BLANK], star[t], log_probs[t, [*labels, BLANK][state // 3]])
            total = total + now[state % 3]
        return total

    best, path = max((score(path), path[::-1]) for path in paths)
    return path[::-1], best


def spans(path: tuple[int, ...], labels: list[int]) -> list[list[int]]:
    places = [[t for t, state in enumerate(path) if state == 3 * i + 2] for i in range(len(labels))]
    return [[place[0], place[-1] + 1] for place in places]


CASES = [
    (1, [1]),
    (3, [1, 1]),
    (4, [2, 1]),
    (5, [1, 1, 2]),
    (6, [1, 2, 1]),
    (7, [2, 2, 2]),
    (6, []),
    (7, [1, 2, 2, 1]),
]


@pytest.mark.parametrize("blocks", ["whole", "blocks"])
@pytest.mark.parametrize("starred", [False, True], ids=["", "stars"])
def test_it_is_the_best_of_all_paths(blocks: str, starred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocks == "blocks":
        monkeypatch.setattr(alignment, "_WHOLE", 2)
        monkeypatch.setattr(alignment, "_BLOCKS", 2)
    rng = np.random.default_rng(0)
    for frames, labels in CASES:
        for _ in range(10):
            log_probs = random_log_probs(rng, frames, 3)
            stars = rng.random(len(labels) + 1) < 0.5 if starred else None
            found = align_labels(log_probs, labels, BLANK, stars=stars, star_penalty=0.5, star_entry=0.7)
            path, score = best_of(every_path(frames, labels, stars), log_probs, labels, 0.5, 0.7)
            assert found.frames.tolist() == spans(path, labels), (frames, labels)
            assert found.score == pytest.approx(float(score), rel=1e-5)
            means = [
                np.exp(log_probs[a:b, x]).mean()
                for x, (a, b) in zip(labels, spans(path, labels), strict=True)
            ]
            np.testing.assert_allclose(found.confidences, means, rtol=1e-5)


@pytest.mark.parametrize("whole", [1024, 2])
def test_of_equal_paths_the_one_that_is_further_on(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "_WHOLE", whole)
    monkeypatch.setattr(alignment, "_BLOCKS", 3)
    rng = np.random.default_rng(1)
    for frames, labels in CASES:
        for _ in range(10):
            log_probs = rng.integers(-2, 0, size=(frames, 3)).astype(
                np.float32
            )  # sums are exact, many are equal
            stars = rng.random(len(labels) + 1) < 0.5
            path, _ = best_of(every_path(frames, labels, stars), log_probs, labels, 1, 1)
            found = align_labels(log_probs, labels, BLANK, stars=stars, star_penalty=1, star_entry=1)
            assert found.frames.tolist() == spans(path, labels)


@pytest.mark.parametrize(("frames", "count"), [(400, 60), (400, 190), (300, 1)])
@pytest.mark.parametrize("starred", [False, True], ids=["", "stars"])
def test_a_trellis_in_blocks_gives_the_same(
    frames: int, count: int, starred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(frames + count)
    log_probs, labels = random_log_probs(rng, frames, 12), rng.integers(1, 12, count)
    stars = rng.random(count + 1) < 0.3 if starred else None
    whole = align_labels(log_probs, labels, BLANK, stars=stars)
    monkeypatch.setattr(alignment, "_WHOLE", 20)
    monkeypatch.setattr(alignment, "_BLOCKS", 5)
    same(align_labels(log_probs, labels, BLANK, stars=stars), whole)


def same(found: Alignment, expected: Alignment) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sum_over_many_frames_keeps_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a score of -1e7, float32 would not see the nats that place the labels."""
    monkeypatch.setattr(alignment, "_WHOLE", 100)
    path = np.repeat([BLANK, 1, BLANK, 2, BLANK], [1500, 3, 1500, 3, 1500])
    log_probs = np.full((len(path), 3), -3001.0, np.float32)
    log_probs[np.arange(len(path)), path] = -3000.0
    found = align_labels(log_probs, [1, 2], BLANK)
    assert found.frames.tolist() == [[1500, 1503], [3003, 3006]]
    assert found.score == -3000.0 * len(path)


def said(path: list[int], sure: float = 0.97, width: int = 5) -> np.ndarray:
    posterior = np.full((len(path), width), (1 - sure) / (width - 1))
    posterior[np.arange(len(path)), path] = sure
    return np.log(posterior)


def test_a_star_takes_the_speech_that_the_text_lacks() -> None:
    foreign = [3, 0, 4, 4, 3, 0, 3]
    path = [0, *foreign, 0, 0, 1, 1, 0, 2, 0, *foreign, 0]
    stars = np.array([True, False, True])
    found = align_labels(said(path), [1, 2], BLANK, stars=stars, star_entry=2)
    assert found.frames.tolist() == [[10, 12], [13, 14]]
    assert found.absent.tolist() == [[1, 8], [15, 22]]
    # Speech of the text's own labels, before the text: without a star they are taken for it.
    path = [1, 0, 3, 0, 0, 1, 1, 0, 2]
    assert align_labels(said(path), [1, 2], BLANK).frames[0].tolist() == [5, 7]
    assert align_labels(said(path), [1, 2], BLANK, stars=stars, star_entry=2).absent.tolist() == [[0, 3]]


def test_to_begin_a_star_costs_so_a_text_stays_together() -> None:
    path = [4, 0, 1, 1, 0, 2, 0, 3, 0, 4, 4, 0, 1, 0, 2, 0, 3, 3, 0, 4]  # twice; 1 is longer at first, 3 then
    everywhere = np.ones(4, bool)
    free = align_labels(said(path), [1, 2, 3], BLANK, stars=everywhere, star_entry=0)
    assert free.frames[[0, 2]].tolist() == [[2, 4], [16, 18]]
    together = align_labels(said(path), [1, 2, 3], BLANK, stars=everywhere, star_entry=2)
    assert np.ptp(together.frames) <= 6


def test_a_text_that_fits_needs_no_star() -> None:
    path = [0, 1, 0, 2, 2, 0, 3]
    everywhere = np.ones(4, bool)
    starred = align_labels(said(path), [1, 2, 3], BLANK, stars=everywhere)
    assert len(starred.absent) == 0
    same(starred, align_labels(said(path), [1, 2, 3], BLANK))


def test_a_label_that_was_not_said_has_little_confidence() -> None:
    found = align_labels(said([0, 1, 0, 0, 0, 3, 0]), [1, 2, 3], BLANK)
    assert found.confidences.round(2).tolist() == [0.97, 0.01, 0.97]


def test_too_short_for_the_text_says_how_many_frames_it_needs() -> None:
    labels = np.array([1, 1, 2, 2, 2, 3])
    assert frames_needed(labels) == 9
    assert len(align_labels(said([0] * 9), labels, BLANK).frames) == 6
    with pytest.raises(UserError, match=r"a text of 6 labels, expected at least 9 frames .* there are 8"):
        align_labels(said([0] * 8), labels, BLANK)
    assert align_labels(np.zeros((0, 5)), np.zeros(0, int), BLANK).frames.shape == (0, 2)


def test_outputs_that_are_no_numbers_are_an_error_and_impossible_labels_are_not() -> None:
    log_probs = said([0, 1, 0, 2])
    log_probs[2, 4] = np.nan
    with pytest.raises(UserError, match="are not numbers"):
        align_labels(log_probs, [1, 2], BLANK)
    log_probs[2, 4], log_probs[:, 2] = -np.inf, -np.inf
    assert align_labels(log_probs, [1, 2], BLANK).confidences[1] == 0
