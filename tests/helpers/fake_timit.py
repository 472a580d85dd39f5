"""A miniature TIMIT in each layout in which the LDC's disc is found on people's disks.

    build_fake_timit(tmp_path, "ldc_upper")

60 clips of noise: 40 in train by 4 speakers, 20 in test by 2. Each speaker reads SA1, SA2, 3 SI and 5 SX
sentences, and each has clips of the lengths in CLIP_SAMPLES, two of them of 4 s and more. So train has 32
clips shorter than 4.0 s. The sentences hold every letter a-z and the apostrophe, and each fits the label
frames of even the shortest clip.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from flax_wavlm.data.sampling import SAMPLE_RATE

FOUR_SECONDS = 4 * SAMPLE_RATE


@dataclass(frozen=True)
class Layout:
    upper: bool  # names as on the LDC's disc; later copies are lower-case
    level: str = ""  # folders between the root and TRAIN
    sphere: bool = True  # .WAV, NIST SPHERE
    riff: bool = False  # .WAV.wav, RIFF copy


LAYOUTS = {
    "ldc_upper": Layout(upper=True, level="TIMIT"),
    "ldc_lower": Layout(upper=False, level="timit"),
    "flat_upper": Layout(upper=True),
    "flat_lower": Layout(upper=False),
    "two_levels": Layout(upper=True, level="LDC93S1/TIMIT"),
    "data_level_both": Layout(upper=True, level="data", riff=True),
    "data_level_riff_only": Layout(upper=True, level="data", sphere=False, riff=True),
    "flat_lower_both": Layout(upper=False, riff=True),
}

SPEAKERS = {
    "train": ("dr1/fcjf0", "dr1/mdpk0", "dr4/fjxp0", "dr8/mkrg0"),
    "test": ("dr1/faks0", "dr5/mrpp0"),
}

# The 10 clips of a speaker, in the order of `sentences`: one a sample short of 4 s, one of exactly 4 s.
CLIP_SAMPLES = (
    16_000,
    17_600,
    19_200,
    22_400,
    24_000,
    28_800,
    32_000,
    FOUR_SECONDS - 1,
    FOUR_SECONDS,
    70_000,
)

_SA = {"sa1": "The boy's dog ran down to the water.", "sa2": "Ask her, please, to close the gate."}
_TEXTS = {
    "train": (
        "Six jars of jam stood by the quiet oven.",
        "Why? Zoe's lazy fox had vexed him!",
        "We'll go north; they won't.",
        'She said: "Keep the blue box."',
        "A well-made quilt keeps you warm.",
        "Jack views the zebra at four.",
        "Bring milk, bread and ripe figs.",
        "Don't hurry the piano player.",
    ),
    "test": (
        "The semi-final was a great success.",
        "He'd mix quartz with a jug of sand.",
        "Every city needs a park, doesn't it?",
        "Look: the big van is parked here.",
        "Pay the fine by noon; then leave.",
        "Who'll fix my broken zip?",
        "It was only a joke!",
        "Quick, open the heavy door.",
    ),
}


def sentences(split: str) -> dict[str, str]:
    """Sentence name to text, 10 a split: SA1 and SA2, which both splits share, 3 SI and 5 SX."""
    names = [f"si{n}" for n in (453, 648, 1027)] + [f"sx{n}" for n in (37, 127, 217, 307, 397)]
    return _SA | dict(zip(names, _TEXTS[split], strict=True))


def fake_clips(split: str) -> dict[str, tuple[str, int]]:
    """What a reader should find: id to (text, samples), sorted by id."""
    clips = {
        f"{split}/{speaker}/{name}": (text, samples)
        for speaker in SPEAKERS[split]
        for (name, text), samples in zip(sentences(split).items(), CLIP_SAMPLES, strict=True)
    }
    return dict(sorted(clips.items()))


def fake_samples(id: str, samples: int) -> np.ndarray:
    """The int16 noise of one clip, another for each id."""
    rng = np.random.default_rng(list(id.encode()))
    return (rng.standard_normal(samples, np.float32) * 1000).astype(np.int16)


def build_fake_timit(root: Path, layout: str = "ldc_upper") -> Path:
    """Writes the miniature under `root` in one of LAYOUTS; returns the folder that holds TRAIN and TEST."""
    how = LAYOUTS[layout]
    top = root / how.level
    for split in SPEAKERS:
        for id, (text, samples) in fake_clips(split).items():
            stem = top / (id.upper() if how.upper else id)
            stem.parent.mkdir(parents=True, exist_ok=True)
            audio = fake_samples(id, samples)
            words = text.split()
            step = samples // len(words)
            files = {
                "txt": f"0 {samples} {text}\n",
                "wrd": "".join(f"{n * step} {(n + 1) * step} {word}\n" for n, word in enumerate(words)),
                "phn": f"0 {samples} h#\n",
            }
            for suffix, content in files.items():
                Path(f"{stem}.{suffix.upper() if how.upper else suffix}").write_text(content)
            wav = f"{stem}.{'WAV' if how.upper else 'wav'}"
            if how.sphere:
                soundfile.write(wav, audio, SAMPLE_RATE, format="NIST", subtype="PCM_16")
            if how.riff:
                soundfile.write(f"{wav}.wav", audio, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return top


def build_fake_sample(root: Path) -> Path:
    """Writes a miniature of NLTK's sample into `root`: three speakers with two clips each."""
    for speaker in ("dr1-mcpm0", "dr1-fvmh0", "dr8-mbcg0"):
        folder = root / speaker
        folder.mkdir(parents=True)
        for name in ("sa1", "sx9"):
            soundfile.write(folder / f"{name}.wav", np.ones(800, np.int16), SAMPLE_RATE, format="NIST")
            (folder / f"{name}.txt").write_text(f"0 800 {speaker} says {name}.\n")
            (folder / f"{name}.wrd").write_text("0 800 says\n")
    (root / "README").write_text("TIMIT CORPUS SAMPLE")
    return root
