"""A pickle that shows whether it was loaded with care."""

from pathlib import Path


class RunsCode:
    """Touches a file when it is loaded without care."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.file,))
