"""Metadata and pinned requirements; the pins themselves are in projects/sa2va/pins.py.

``pip install -e .`` installs all but torchvision and xtuner, whose metadata contradicts the pins:
``make setup`` (or the command that a tool prints when they are missing) adds those two.
"""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
# By path: `import projects.sa2va` would need torch, which is not installed yet.
PINS = runpy.run_path(str(ROOT / "projects" / "sa2va" / "pins.py"))

setup(
    name=PINS["PROJECT"],
    version="0.1.0",
    description="Sa2VA (InternVL3 + SAM2) fine-tuned to segment vessels in angiograms",
    python_requires=">=3.11",
    packages=find_packages(include=["projects", "projects.*"]),
    install_requires=PINS["specs"](PINS["REQUIRED"]),
    extras_require={
        "dev": PINS["specs"](PINS["DEV"]),
        "quantization": PINS["specs"](PINS["QUANTIZATION"]),
        "page": PINS["specs"](PINS["PAGE"]),
        "tensorboard": PINS["specs"](PINS["TENSORBOARD"]),
    },
)
