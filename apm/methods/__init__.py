"""Other ways to use a frozen CLIP at test time, run on the same teacher and images as the APM.

Some classify by looking at an image many times: ZERO lets confident crops vote (`zero`), MTA seeks the mode of their features
(`mta`). Others train a few parameters for every image and forget them again: TENT the scale and shift of normalisation layers
(`tent`), TPT the words of the prompt (`prompt_tuning`; with it CoOp, which learns them once, from labelled training images).
TDA trains nothing but remembers earlier images (`tda`): it is online, the others are episodic. And the APM itself can distil
the mean feature of confident crops instead of the image's own (`apm`). All see the same views (`views`), and
methods that run at the same seed in one process share the teacher's features of them; `teacher_passes` in the records counts
what a method needs by itself, and milliseconds + saved_milliseconds what it would have taken. None reads a label of a test image.
All have the prompts of the dataset, so that rows differ in the method alone; ZERO, MTA and TDA have those of their own releases with
`prompts: original`, to stand beside their papers' numbers.

To add a method, write one file here and import it below; docs/your-own.md has an example of twenty lines. `Method` is the interface and the base
of all, `WithViews` and `WithPrompts` add the options that many have, and `create("mine", teacher, views=32)` builds what is
registered as "mine".

When an episodic method raises an error, `apm.runs` halves its images down to the one at fault. Images of an online method cannot be
halved without losing its state: those that cannot be read are left out of the sequence, and for the rest it handles failures image by
image itself, records them by `status`, and leaves its state as it was before the image (`tda` shows how). A method that learns
from a set of its own says by `data_identity(dataset)` which images these are, so that other ones make other records.

Uses `project`, `data` and `teachers`.
"""

from apm.methods.method import REGISTRY, Method, Predictions, create, outcome, readable, register

from apm.methods import mta, prompt_tuning, tda, tent, zero  # isort: skip
from apm.methods.apm import APM, PICTURES, BetterTargets, adapt_dataset, student_pictures, training_config
from apm.methods.zero_shot import LinearHead, ZeroShot

__all__ = [
    "APM",
    "PICTURES",
    "REGISTRY",
    "BetterTargets",
    "LinearHead",
    "Method",
    "Predictions",
    "ZeroShot",
    "adapt_dataset",
    "create",
    "mta",
    "outcome",
    "prompt_tuning",
    "readable",
    "register",
    "student_pictures",
    "tda",
    "tent",
    "training_config",
    "zero",
]
