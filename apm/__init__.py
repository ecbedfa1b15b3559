"""apm: the Asynchronous Perception Machine (Modi & Rawat, NeurIPS 2024), experiment by experiment.

    adapt(images, targets, TTTConfig(preset("mini")))     test-time training of one student per image: losses, features or scores
    TestTimeTrained         the same as a module: images in, scores out
    APM, APMConfig, preset(NAME), PRESETS                 the network and its sizes
    data.load(NAME)         images, labels, class names: "digits-test", "folder:PATH", published sets; data.names()
    teachers.load(NAME)     a frozen CLIP: transform, encode, text_features
    methods.REGISTRY        the APM's rivals; methods.training_config(teacher, student, training)
    runs.records.run        a method over a dataset, every prediction kept; analysis makes tables and figures of them

README.md begins with one image by hand. Names come from their modules at the first use: `import apm` alone loads no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_HOME = {
    **dict.fromkeys(("TTTConfig", "TTTResult", "adapt", "cosine_scores", "initial_parameters"), "apm.ttt"),
    **dict.fromkeys(("APM", "APMConfig", "PRESETS", "preset"), "apm.model"),
    "TestTimeTrained": "apm.methods.module",
}
__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'apm' has no attribute {name!r}. Known: {', '.join(__all__)}, and its modules")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
