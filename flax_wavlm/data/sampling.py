"""The sample rate that every part but the reading of files works at; here, as that needs no audio package."""

SAMPLE_RATE = 16_000  # Hz
