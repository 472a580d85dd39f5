"""The checkpoint that the cases damage copies of."""

import pytest
from helpers.bad_input import LETTERS
from helpers.reference import Reference, tiny_reference

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A small fine-tuned checkpoint with its tokenizer and preprocessor."""
    reference = tiny_reference(
        "large",
        tmp_path_factory.mktemp("tiny"),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(4,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        scale=0.01,
    )
    CTCTokenizer.from_texts([LETTERS]).save(reference.folder)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(reference.folder)
    return reference
