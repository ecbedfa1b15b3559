"""apm: the Asynchronous Perception Machine (Modi & Rawat, NeurIPS 2024), experiment by experiment.

    from apm import TTTConfig, adapt, preset        # test-time training of one student per image
    from apm import TestTimeTrained                 # the same as a module: images in, scores out
    from apm import data, methods, teachers         # any room, as always

What these names stand for is imported at their first use: `import apm` alone loads no torch.
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
