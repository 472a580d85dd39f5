"""Every clip's sample rate, and how a recording's channels are chosen."""

SAMPLE_RATE = 16_000  # Hz, of everything after decoding
CHANNELS = ("auto", "mean", "left", "right")  # or a channel's number, from 0
