"""Loss, WER and CER of a fine-tuned checkpoint on a corpus.

python scripts/evaluate.py --model FOLDER_OR_HUB_ID --corpus timit --data /path/to/TIMIT [--split test]
"""

import re
from pathlib import Path

from absl import flags

from flax_wavlm.cli import app as cli
from flax_wavlm.errors import UserError

MODEL = flags.DEFINE_string("model", None, "Fine-tuned checkpoint: a folder or a hub id.", required=True)
CORPUS = flags.DEFINE_string(
    "corpus", None, "timit, timit_sample, manifest, hub or synthetic.", required=True
)
DATA = flags.DEFINE_string("data", "", "The corpus's folder, or the data set's hub id.")
SPLIT = flags.DEFINE_string("split", "test", "Which split.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips at a time, a multiple of the devices.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of matrix products.")
HELD_OUT = flags.DEFINE_list("held_out_speakers", [], "timit_sample: the test split, with commas between.")
AUDIO_COLUMN = flags.DEFINE_string("audio_column", "audio", "hub: the column of the audio.")
TEXT_COLUMN = flags.DEFINE_string("text_column", "text", "hub: the column of the text.")
HUB_CONFIG = flags.DEFINE_string("hub_config", None, "hub: the data set's configuration.")
PREDICTIONS = flags.DEFINE_string("predictions", None, "Write id, reference and hypothesis as JSON lines.")

FIELDS = "corpus|held_out_speakers|audio_column|text_column|hub_config"  # of a configuration's `data`


def main(arguments: list[str]) -> None:
    from flax_wavlm.data.corpora.load import load_corpus
    from flax_wavlm.recognition.evaluate import figures_line, write_predictions
    from flax_wavlm.recognition.recogniser import Recogniser

    try:
        utterances, unusable = load_corpus(
            CORPUS.value,
            DATA.value,
            SPLIT.value,
            held_out_speakers=HELD_OUT.value,
            audio_column=AUDIO_COLUMN.value,
            text_column=TEXT_COLUMN.value,
            hub_config=HUB_CONFIG.value,
        )
    except UserError as error:  # it speaks of a configuration's fields, which are flags here
        message = re.sub(r"(--config\.)?\bdata\.path\b", "--data", str(error))
        message = re.sub(rf"(--config\.)?\bdata\.({FIELDS})\b", r"--\2", message)
        raise UserError(message) from None
    recogniser = Recogniser.from_pretrained(MODEL.value, dtype=DTYPE.value)
    result = recogniser.evaluate(utterances, unusable, name=SPLIT.value, batch_size=BATCH_SIZE.value)
    if PREDICTIONS.value:
        write_predictions(Path(PREDICTIONS.value), result.predictions)
    print(f"{figures_line(result.figures, recogniser.task.scoring)}  {result.figures['skipped']} skipped")


if __name__ == "__main__":
    cli.run(main)
