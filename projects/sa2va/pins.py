"""The pinned packages: the one table that setup.py, the Makefile and the start-up check share.

Plain data and no import from this project, because setup.py and the Makefile run this file by its
path before anything is installed: ``python projects/sa2va/pins.py NO_DEPS`` prints one table.
"""

from __future__ import annotations

import sys

PROJECT = "sa2va-vessel"

# What `pip install -e .` installs. Versions that were seen to train, resume and test together.
REQUIRED: dict[str, str] = {
    "torch": "2.13.0",
    "transformers": "5.23.0",  # 5.17.0 and 4.57.6 mis-read Sam2 configs or lose buffers
    "tokenizers": "0.23.3",
    "safetensors": "0.8.0",
    "huggingface-hub": "2.4.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "mmengine": "0.10.7",
    "deepspeed": "0.19.8",  # 0.16 to 0.19.7 each break ZeRO-2 or ZeRO-3 with offload
    "numpy": "2.4.6",
    "pillow": "12.3.0",  # gradio 6.31 wants less than 13; both resize bit for bit alike
    "opencv-python": "5.0.0.93",
    "pycocotools": "2.0.11",
    "scikit-image": "0.26.0",
    "scipy": "1.17.1",
    "requests": "2.34.2",
    "einops": "0.8.2",
    "setuptools": "80.10.2",  # 84 has no pkg_resources, which mmengine imports
    "monai": "1.6.1",
    "matplotlib": "3.11.2",
    "tqdm": "4.70.1",
    "bitsandbytes": "0.50.2",
    "ninja": "1.13.2",
}

# Installed with --no-deps: xtuner's metadata pins old versions of transformers and mmengine that
# it does not need; torchvision exists as a CUDA build only, and would replace a CPU build of torch.
NO_DEPS: dict[str, str] = {"torchvision": "0.28.0", "xtuner": "0.2.0"}

# The extra `quantization`: for prediction in int8 only, which asks for it by name. Where it is
# installed, peft imports it at every start, which takes 0.4 s.
QUANTIZATION: dict[str, str] = {"torchao": "0.18.0"}

# The extra `tensorboard`: only for runs whose config says `tensorboard = True`. It brings a web
# server, gRPC and protobuf, which nothing else here needs.
TENSORBOARD: dict[str, str] = {"tensorboard": "2.21.0"}

# The extra `page`: tools/demo.py. It brings a web server.
PAGE: dict[str, str] = {"gradio": "6.31.0"}

# The extra `dev`: what `make test` and `make lint` need; torchao, so that int8 is tested; gradio
# and playwright, so that the page is tested in a browser (Chromium itself is the system's).
DEV: dict[str, str] = {
    "pytest": "9.2.0",
    "pytest-xdist": "3.8.0",
    "hypothesis": "6.170.15",
    "ruff": "0.17.5",
    **QUANTIZATION,
    **PAGE,
    "playwright": "1.65.2",
}

# Missing ones are no error at start: only some work needs them, and it names them when it begins.
ON_DEMAND: dict[str, str] = {
    "bitsandbytes": "quantized weights and 8-bit optimiser states",
    "torchao": "prediction in int8",
    "gradio": "the page of tools/demo.py",
    "ninja": "compiling DeepSpeed's operators, once",
    "setuptools": "mmengine's check of installed packages",
}

# Other distributions that provide the same module and serve as well.
ALTERNATIVES: dict[str, tuple[str, ...]] = {"opencv-python": ("opencv-python-headless",)}


def specs(table: dict[str, str]) -> list[str]:
    """``{'a': '1'}`` as pip requirements ``['a==1']``."""
    return [f"{name}=={version}" for name, version in table.items()]


if __name__ == "__main__":
    print(*specs(globals()[sys.argv[1]]))
