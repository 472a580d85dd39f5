"""docs/own-data.md: its commands and its Python run as they are written, on speech in three languages.

A file named `own_data` in the folder where the commands run takes the place of the packaged recipe. It has
the packaged one's values, with a tiny checkpoint and few steps. Nothing in the blocks is replaced.
"""

import ast
import contextlib
import importlib
import importlib.util
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from helpers.commands import run
from helpers.pages import Block, blocks, codes, rows
from helpers.small_run import encoder_checkpoint, recipe

from flax_wavlm.cli import app
from flax_wavlm.data.corpora.espeak import open_espeak
from flax_wavlm.data.corpora.grammar import count, draw
from flax_wavlm.data.corpora.sentences import GRAMMARS
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.text import TextRule
from flax_wavlm.training import trial
from flax_wavlm.training.config import field_names, lookup

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")
RUN = [block for block in blocks(PAGE) if block.language != "text"]

# --- What is said on the page is there ----------------------------------------------------------------------


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a block."""
    return [shlex.split(line) for line in block.code.splitlines()]


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.code.splitlines()[0][:40])
def test_blocks_are_right(block: Block) -> None:
    """Every flag exists and is taken; every name that is imported is there. Nothing is run."""
    if block.language == "python":
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("flax_wavlm"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), block.code
    else:
        assert block.language == "sh"
        for program, name, *given in commands(block):
            assert program == "flax-wavlm"
            command = app.COMMANDS[name]
            command.parse(command, given)


def settings(page: str) -> Iterator[tuple[str, str]]:
    """Each field that a page names in a sentence or a table, and the value: "" for a name alone."""
    groups = {name.partition(".")[0] for name in field_names() if "." in name}
    for code in codes(page):
        name, _, value = code.removeprefix("--config.").partition("=")
        if re.fullmatch(rf"({'|'.join(groups)})(\.[a-z]\w*)+", name):
            yield name, value


@pytest.mark.parametrize("page", ["own-data.md", "training.md"])
def test_fields_of_the_pages_exist(page: str) -> None:
    named = {name for name, _ in settings((ROOT / "docs" / page).read_text(encoding="utf-8"))}
    assert len(named) >= 10
    groups = {name.rpartition(".")[0] for name in field_names()}
    assert sorted(named - set(field_names()) - groups - {"model.config"}) == []


def test_settings_of_the_page_are_taken() -> None:
    """By the command line that the page tells to write, and by what checks a configuration."""
    train = app.COMMANDS["train"]
    found = [(name, value) for name, value in settings(PAGE) if value]
    assert len(found) >= 10
    for name, value in found:
        given = ["--config=own_data", "--config.data.path=x", f"--config.{name}={value}"]
        config = train.parse(train, given).values.config
        config.workdir = "x"
        config.check()
        assert str(lookup(config, name)).lower() == value or float(lookup(config, name)) == float(value)


def test_texts_become_what_the_page_says() -> None:
    table = rows(PAGE, "Language")
    assert {language.split(",")[0] for language, *_ in table} == {
        "German",
        "Vietnamese",
        "Turkish",
        "Mandarin",
    }
    for _, setting, text, learnt in table:
        assert TextRule(**rule(setting))(text) == learnt


def rule(setting: str) -> dict[str, str]:
    """The fields of a text rule that a cell of the table sets."""
    chosen = [code.removeprefix("text.").split("=") for code in codes(setting)]
    return {name: value for name, value in chosen}


def test_the_recipe_reads_a_folder_with_a_pretrained_model() -> None:
    config = recipe("own_data")
    config.workdir = "x"
    config.check()
    assert (config.data.corpus, config.data.path, config.name) == ("folder", "", "own_data")
    assert config.model.checkpoint == recipe("timit").model.checkpoint
    assert config.train.head_first_steps < config.optim.warmup_steps < config.train.steps
    assert config.train.early_stopping * config.train.eval_every < config.train.steps


# --- The whole page, followed -------------------------------------------------------------------------------

VOICES = ("f1", "m3", "f2", "m1")  # the last one speaks for test
CLIPS = 24

VIETNAMESE = """
Hôm nay trời đẹp quá!
Ngày mai trời có mưa không?
Tôi muốn uống một ly cà phê sữa đá.
Chị ấy đang đọc một quyển sách mới.
Bạn tên là gì?
Gia đình tôi sống ở Hà Nội.
Anh ấy làm việc ở bệnh viện.
Chúng tôi đi chợ mua rau và cá.
Con mèo ngủ trên cái ghế cũ.
Mẹ nấu phở rất ngon.
Xe buýt đến lúc bảy giờ sáng.
Em bé thích ăn chuối chín.
Quê tôi có nhiều đồng lúa xanh.
Cô giáo viết chữ lên bảng.
Buổi tối cả nhà xem phim.
Đường phố hôm nay rất đông người.
Ông bà kể chuyện ngày xưa.
Tôi học tiếng Việt hai năm rồi.
Bố sửa lại cái xe đạp hỏng.
Mùa hè chúng tôi đi biển.
Quả xoài này ngọt lắm.
Cửa hàng mở cửa đến chín giờ.
Hãy nói chậm một chút!
Chiếc áo đỏ giá bao nhiêu?
"""


def sentences(voice: str) -> list[str]:
    """Different sentences of a language, as it is written."""
    if voice in GRAMMARS:
        grammar = GRAMMARS[voice]
        numbers = draw(np.random.default_rng(0), CLIPS, count(grammar.templates))
        return [grammar.spell(grammar.templates, number) for number in numbers]
    return VIETNAMESE.strip().splitlines()


def speak(folder: Path, voice: str) -> None:
    """Recordings as the page wants them: folders train and test, a folder a speaker, a text beside each.

    As it happens, one recording is in train and in test, and one text is missing.
    """
    with open_espeak() as espeak:
        for number, sentence in enumerate(sentences(voice)):
            variant = VOICES[number % len(VOICES)]
            samples, _ = espeak.speak(sentence, voice=f"{voice}+{variant}", rate=200, pitch=50)
            place = folder / ("test" if variant == VOICES[-1] else "train") / variant
            place.mkdir(parents=True, exist_ok=True)
            file = place / f"{number:03}.wav"
            soundfile.write(file, soxr.resample(samples, espeak.rate, SAMPLE_RATE), SAMPLE_RATE)
            file.with_suffix(".txt").write_text(f"{sentence}\n", encoding="utf-8")
    leak, lost = folder / "train" / VOICES[0] / "000", folder / "train" / VOICES[1] / "001.txt"
    for suffix in (".wav", ".txt"):
        shutil.copy(leak.with_suffix(suffix), folder / "test" / VOICES[-1] / f"024{suffix}")
    lost.unlink()


SMALL = """
import importlib.util
spec = importlib.util.spec_from_file_location("packaged_own_data", {packaged!r})
packaged = importlib.util.module_from_spec(spec)
spec.loader.exec_module(packaged)

def get_config():
    config = packaged.get_config()
    config.model.checkpoint = "pretrained"
    config.data.buckets = 1
    config.train.batch_size, config.train.steps, config.train.eval_every = 4, 4, 2
    config.train.log_every, config.train.head_first_steps, config.optim.warmup_steps = 2, 1, 2
    config.train.aligner = False
    return config
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the reader works. The recipe there is small."""
    encoder_checkpoint(tmp_path / "pretrained", num_hidden_layers=1)
    packaged = str(ROOT / "configs/own_data.py")
    (tmp_path / "own_data").write_text(SMALL.format(packaged=packaged))
    monkeypatch.setattr(trial, "TIMED_CALLS", 1)
    monkeypatch.setattr(trial, "TIMED_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(block: Block, added: Sequence[str]) -> str:
    """Runs a block; what it prints. `added` are the reader's own settings for `train`."""
    if block.language == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, "docs/own-data.md", "exec"), {})
        return printed.getvalue()
    printed_by_commands = []
    for _, name, *given in commands(block):
        ended = run(name, *given, *(added if name == "train" else ()))
        assert ended.status == 0, ended.stderr
        printed_by_commands.append(ended.stdout)
    return "".join(printed_by_commands)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("voice", "language"),
    [("de", "German, as written"), ("vi", "Vietnamese"), ("cmn", "Mandarin")],
)
def test_the_page_followed(desk: Path, voice: str, language: str) -> None:
    speak(desk / "my-speech", voice)
    shutil.copy(desk / "my-speech/test" / VOICES[-1] / "003.wav", desk / "new.wav")
    [setting] = [row[1] for row in rows(PAGE, "Language") if row[0] == language]
    added = [f"--config.text.{name}={value}" for name, value in rule(setting).items()]

    printed = [follow(block, added) for block in RUN]
    checked, shown, trained, used, exported, recognised = printed

    assert "Dry run: nothing was trained." in checked
    assert "left out 1: no .txt or .lab file beside the audio" in checked
    assert "leak: test: 1 clips have the same audio as a clip of train: test/m1/024" in checked
    assert re.search(r"so \d of the 17 clips of train are it \(whole speakers", trained)
    assert shown.count(" -> ") == 3
    learnt = TextRule(**rule(setting))
    vocabulary = json.loads((desk / "my-model/vocab.json").read_text(encoding="utf-8"))
    spoken = sentences(voice)
    for sentence in [spoken[0], *spoken[2:]]:  # the second one's text is missing
        assert set(learnt(sentence).replace(" ", "|")) <= vocabulary.keys()
    assert ("the lowest CER" in trained) == (voice == "cmn")
    *_, scores, transcribed = used.splitlines()
    assert "7 clips" in scores
    assert transcribed == f"new.wav\t{recognised.rstrip()}"
    assert re.fullmatch(r"step \d of runs/my-speech is in my-model\n", exported)
    if not added:  # as in the run that the page shows
        begun = {beginning(line) for text in printed for line in text.splitlines()}
        assert [line for line in shown_as_printed() if beginning(line) not in begun] == []


def shown_as_printed() -> list[str]:
    """The lines that the page shows as printed, but for the ids of clips, which stand alone on a line."""
    _tree, *prints = [block.code for block in blocks(PAGE) if block.language == "text"]
    return [line for text in prints for line in text.splitlines() if len(line.split()) > 1]


def beginning(line: str) -> str:
    """The first two words of a line, a number being one of them; one where the reader's own follows."""
    first, *rest = re.sub(r"\d[\d.,]*", "#", line).split() or [""]
    return " ".join([first, *([] if first in BEFORE_OWN else rest[:1])])


BEFORE_OWN = ("model:", "reference", "hypothesis", "new.wav")
