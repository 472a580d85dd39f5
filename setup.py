"""The packages: those of flax_wavlm/, and configs/ as flax_wavlm.recipes. pyproject.toml cannot list both."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["flax_wavlm*"]), "flax_wavlm.recipes"],
    package_dir={"flax_wavlm.recipes": "configs"},
)
