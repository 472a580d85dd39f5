"""Every measurement that belongs into the table, as the command line that makes it."""

CPU = (
    "startup.py",
    "input_pipeline.py",
    "batch_shapes.py",
    "dry_run.py",
    "parity.py",
    "train_step.py --size demo --steps 10",
    "train_step.py --size demo --steps 10 --recipe",
    "train_step.py --size demo --steps 10 --keep_features",
    "train_step.py --size base --batch 4 --steps 3",
    "train_step.py --size large --batch 2 --blocks 3 --steps 2",
    "profile_step.py --size demo --steps 10",
    "profile_step.py --size base --batch 4 --steps 2",
    "inference.py --clips 16 --batch 4 --blocks 3",
    "scaling.py --seconds 1 5 10 20 40 60",
    "scaling.py --seconds 5 10 20 40 60 --attention pallas --plan_only",
    "languages.py",
    "language_model.py",
    "word_times.py",
)
LARGE = "train_step.py --device cuda --size large --batch 32 --dtype bfloat16"
CUDA = (
    LARGE,
    f"{LARGE} --baseline B2 B3",
    f"{LARGE} --recipe",
    f"{LARGE} --keep_features",
    f"{LARGE} --seconds 8",
    f"{LARGE} --seconds 8 --baseline B3",
    "parity.py --device cuda",
    "profile_step.py --device cuda --size large --batch 32 --dtype bfloat16 --steps 5",
    "inference.py --device cuda --size large --clips 256 --batch 32 --dtype bfloat16",
    "startup.py --device cuda",
    "scaling.py --device cuda --size large --layers 24 --batch 8 --dtype bfloat16 --blocks 3 --steps 10",
)
JOBS = {"cpu": CPU, "cuda": CUDA}
