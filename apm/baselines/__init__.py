"""Other ways to use a frozen CLIP at test time, run on the same teacher, images and prompts as the APM.

Each method is one file with one class behind the interface `apm.methods.Method`, known by a name: `create("zero", teacher)`.
Methods that look at augmented views share them (`views`), and with the seed the teacher's features of them.
"""

from apm.baselines.registry import REGISTRY, create, register

__all__ = ["REGISTRY", "create", "register"]
