import itertools
import json
import math
import re
import xml.etree.ElementTree as ET

import huggingface_hub
import numpy as np
import pytest

from flax_wavlm.errors import UserError
from flax_wavlm.recognition.ctc_task import ctc_scoring
from flax_wavlm.training.report.curves import curves, spread
from flax_wavlm.training.report.metrics import evaluations, read_metrics, results_table
from flax_wavlm.training.report.model_card import model_card


def train_row(step, loss):
    return {"step": step, "epoch": step / 125, "split": "train", "loss": loss, "learning_rate": 1e-4}


def eval_row(step, wer, **more):
    rates = {"loss": 0.5, "wer": wer, "cer": wer / 4, "wer_hf_padded": wer + 0.1}
    return {"step": step, "epoch": step / 125, "split": "test", **rates, "clips": 1680, **more}


ROWS = [
    train_row(250, 3.0),
    train_row(500, 1.2),
    eval_row(500, 0.4),
    eval_row(1000, 0.2),
    train_row(1000, 0.7),
    eval_row(1500, 0.2),
]


# ------------------------------------------------------------------------------------------------ metrics


def test_read_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    assert read_metrics(path) == ROWS
    path.write_text("")
    assert read_metrics(path) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"step": 1', "line 2: not JSON"),
        (b"[1, 2]", "line 2: expected a JSON object, found list"),
        (b'{"step": "\xff"}', "line 2: not JSON"),
        (b"[" * 100_000, "line 2: not JSON"),
    ],
)
def test_read_metrics_names_the_bad_line(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=re.escape(f"{path}, {message}")):
        read_metrics(path)


def test_read_metrics_without_a_file(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.jsonl: cannot be read \(No such file"):
        read_metrics(tmp_path / "nothing.jsonl")


def test_the_best_row_is_the_last_with_the_lowest_wer():
    assert ctc_scoring("timit").best(ROWS) is ROWS[5]
    assert ctc_scoring("timit").best([eval_row(1, float("nan")), *ROWS])["step"] == 1500
    assert ctc_scoring("timit").best(ROWS[:2]) is None
    assert {step: rank[0] for step, rank in ctc_scoring("timit").ranks(ROWS).items()} == {
        500: 0.4,
        1000: 0.2,
        1500: 0.2,
    }
    assert [row["step"] for row in evaluations(ROWS)] == [500, 1000, 1500]


# ------------------------------------------------------------------------------------------------ table


def test_results_table():
    rows = [eval_row(500, 1.0), eval_row(12_500, 0.2746), {"step": 9, "epoch": 0.1, "wer": 0.5}]
    assert results_table(rows, ctc_scoring("timit")).splitlines() == [
        "|   Step |  Epoch |   Loss |    WER |    CER | WER, HF-padded |      |",
        "| -----: | -----: | -----: | -----: | -----: | -------------: | ---: |",
        "|    500 |   4.00 | 0.5000 | 1.0000 | 0.2500 |         1.1000 |      |",
        "| 12,500 | 100.00 | 0.5000 | 0.2746 | 0.0687 |         0.3746 | best |",
        "|      9 |   0.10 |      - | 0.5000 |      - |              - |      |",
    ]


def test_averaged_weights_in_table_and_card():
    rows = [eval_row(500, 0.4), eval_row(500, 0.3) | {"averaged": 3}]
    table = results_table(rows, ctc_scoring("timit"))
    assert table.splitlines()[3].endswith("| mean of 3, best |")
    text = card(rows=rows, exported=500, averaged=3)
    assert "The weights are the mean of the 3 checkpoints evaluated last, up to step 500: WER 0.3000" in text
    assert "The weights are those of step 500: WER 0.4000" in card(rows=rows, exported=500)


# ------------------------------------------------------------------------------------------------ model card

CONFIG = {
    "seed": 42,
    "workdir": "/home/somebody/run",
    "optim": {"learning_rate": 1e-4, "warmup_steps": 1000, "clip_norm": 1.0},
    "train": {"batch_size": 32, "steps": 12500, "epochs": None},
    "model": {"freeze_feature_encoder": True, "overrides": {}},
}


def card(**changes) -> str:
    arguments = {
        "name": "timit-wavlm-large",
        "base_model": "microsoft/wavlm-large",
        "dataset": "TIMIT",
        "dataset_id": "timit_asr",
        "config": CONFIG,
        "rows": ROWS,
        "scoring": ctc_scoring("timit"),
        "language": "en",
    }
    return model_card(**arguments | changes)


def test_the_hub_reads_the_cards_front_matter():
    data = huggingface_hub.ModelCard(card()).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "automatic-speech-recognition"
    assert data.base_model == "microsoft/wavlm-large"
    assert data.license == "unknown"
    assert data.language == "en"
    assert data.metrics == ["wer", "cer"]
    assert "wavlm" in data.tags
    assert data.model_name == "timit-wavlm-large"
    assert [
        (r.task_type, r.dataset_type, r.dataset_name, r.dataset_split, r.metric_type, r.metric_value)
        for r in data.eval_results
    ] == [
        ("automatic-speech-recognition", "timit_asr", "TIMIT", "test", "wer", 0.2),
        ("automatic-speech-recognition", "timit_asr", "TIMIT", "test", "cer", 0.05),
    ]


def test_the_card_says_what_a_reader_needs():
    text = card()
    assert results_table(ROWS, ctc_scoring("timit")) in text
    assert "step 1,500: WER 0.2000 on 1,680 clips of test. The same clips chose them" in text
    assert 'pipeline("automatic-speech-recognition"' in text
    assert "WavLMForCTC.from_pretrained" in text
    assert "licence of WavLM's weights is unclear" in text
    settings = dict(re.findall(r"^\| `([\w.]+)`\s*\| `(.*?)`\s*\|$", text, re.MULTILINE))
    assert settings == {
        "optim.learning_rate": "0.0001",
        "optim.warmup_steps": "1000",
        "optim.clip_norm": "1.0",
        "train.batch_size": "32",
        "train.steps": "12500",
        "model.freeze_feature_encoder": "True",
        "seed": "42",
    }


def test_the_card_keeps_paths_to_itself(tmp_path):
    checkpoint = tmp_path / "somebody" / "wavlm-large"
    checkpoint.mkdir(parents=True)
    text = card(base_model=str(checkpoint))
    assert huggingface_hub.ModelCard(text).data.base_model is None
    assert "the checkpoint `wavlm-large`" in text
    assert str(tmp_path) not in text
    assert "/home/" not in text


def test_a_relative_folder_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "large").mkdir(parents=True)
    assert huggingface_hub.ModelCard(card(base_model="models/large")).data.base_model is None


def test_a_card_of_a_model_from_scratch_and_never_evaluated():
    text = card(base_model=None, rows=[], language=None)
    data = huggingface_hub.ModelCard(text).data
    assert data.license is None
    assert data.eval_results is None
    assert "from random weights" in text
    assert "Not evaluated." in text


# ------------------------------------------------------------------------------------------------ curves

SVG = "{http://www.w3.org/2000/svg}"
LINES = ("train loss", "eval loss", "WER", "CER", "WER, HF-padded")


def points(root: ET.Element, name: str) -> list[tuple[float, float]]:
    """The corners of a line, in the picture's coordinates."""
    path = root.find(f".//{SVG}g[@id='{name}']/{SVG}path")
    assert path is not None, name
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_curves_are_one_valid_picture(tmp_path):
    curves(ROWS, tmp_path / "curves.svg", ctc_scoring("timit"))
    root = ET.parse(tmp_path / "curves.svg").getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for name in LINES:
        line = points(root, name)
        assert len(line) == (3 if name != "train loss" else sum(row["split"] == "train" for row in ROWS))
        for x, y in line:
            assert 0 < x < width
            assert 0 < y < height
    words = " ".join(text.text for text in root.iter(f"{SVG}text"))
    for word in ("train loss 0.7", "eval loss 0.5", "WER 0.2", "CER 0.05", "best 0.2", "1,000", "step"):
        assert word in words


def test_curves_as_pixels_lie_beside_them(tmp_path):
    curves(ROWS, tmp_path / "curves.svg", ctc_scoring("timit"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "curves.svg"]


def test_the_same_rows_give_the_same_curves(tmp_path):
    curves(ROWS, tmp_path / "one.svg", ctc_scoring("timit"))
    curves(ROWS, tmp_path / "two.svg", ctc_scoring("timit"))
    text = (tmp_path / "one.svg").read_text()
    assert text.startswith("<svg")
    assert text == (tmp_path / "two.svg").read_text()


def test_names_at_the_ends_of_lines_do_not_touch(tmp_path):
    rows = [eval_row(500, 0.4), {**eval_row(1000, 0.2), "cer": 0.2, "wer_hf_padded": 0.2}]
    curves(rows, tmp_path / "curves.svg", ctc_scoring("timit"))
    root = ET.parse(tmp_path / "curves.svg").getroot()
    heights = sorted(
        float(text.attrib["y"])
        for text in root.iter(f"{SVG}text")
        if text.text in ("WER 0.2", "CER 0.2", "WER, HF-padded 0.2")
    )
    assert len(heights) == 3
    assert all(second - first > 10 for first, second in itertools.pairwise(heights))


@pytest.mark.parametrize("lowest", [0.0, 0.1, -math.inf])
def test_spread(lowest):
    random = np.random.default_rng(0)
    for count in (0, 1, 2, 3, 6) * 20:
        heights, gap = random.uniform(0, 1, count).tolist(), random.uniform(0.01, 0.3)
        placed = spread(heights, gap, lowest=lowest)
        order = sorted(range(count), key=lambda i: heights[i])
        assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in itertools.pairwise(order))
        assert all(height >= lowest for height in placed)
        apart = all(heights[b] - heights[a] >= gap for a, b in itertools.pairwise(order))
        if apart and min(heights, default=1) >= lowest:
            assert placed == pytest.approx(heights)  # nothing moves without need
        if lowest == -math.inf:
            assert sum(placed) == pytest.approx(sum(heights))


@pytest.mark.parametrize(
    "rows",
    [
        [train_row(1, 2.0)],
        [eval_row(10, 0.0)],
        [eval_row(10, 1.0), eval_row(20, 3.7)],
        [train_row(1, 1e-6), train_row(10**7, 1e6)],
        [train_row(1, -0.001), train_row(2, 0.5)],  # CTC can go slightly below 0
        [train_row(1, float("nan")), train_row(2, float("inf")), eval_row(2, 1.0)],
        [{"step": 5, "split": "test", "wer": 0.5}],
        [train_row(3, 1.0), train_row(4, 1.0)],
    ],
)
def test_curves_of_odd_runs(tmp_path, rows):
    curves(rows, tmp_path / "curves.svg", ctc_scoring("timit"))
    text = (tmp_path / "curves.svg").read_text()
    ET.fromstring(text)
    assert not re.search(r"\b(nan|inf)\b", text)


def test_curves_of_nothing(tmp_path):
    with pytest.raises(UserError, match="no metrics"):
        curves([], tmp_path / "curves.svg", ctc_scoring("timit"))
