"""Fine-tuning and honest evaluation of Sa2VA on blood vessels.

Importing this package checks the installed versions, applies the library shims and registers every
model, data set, metric, loop and runner with mmengine's registries.
"""

from .versions import check_versions

check_versions()  # before the packages it names are imported

from . import compat  # noqa: E402

compat.apply()

from . import baselines, datasets, engine, evaluation, models  # noqa: E402, F401
