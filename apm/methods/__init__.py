"""Other ways to use a frozen CLIP at test time, run on the same teacher and images as the APM.

ZERO lets confident crops vote (`zero`), MTA seeks the mode of their features (`mta`), TENT trains normalisation layers (`tent`), TPT
the words of the prompt, and CoOp learns these once, from labelled training images (`prompt_tuning`). TDA remembers earlier images
(`tda`): it is online, the others are episodic. The APM distils the image's feature, the mean of its confident crops' (`apm`) or
of its own and its mirror image's (`mirror`). None reads a label of a test image. Methods of one seed and process share the teacher's
features of their views (`views`): `teacher_passes` counts what each needs by itself, milliseconds + saved_milliseconds what it would have
taken. All have the dataset's prompts; with `prompts: original` ZERO, MTA and TDA have those of their releases.

To add a method, write one file here and import it below (docs/your-own.md): `Method` is the base of all, `WithViews` and
`WithPrompts` add options, `create("mine", teacher, views=32)` builds what is registered as "mine". Where an episodic method raises,
`apm.runs` halves its images down to the one at fault; an online one records failures by `status` and keeps its state (`tda`).

Uses `project`, `data` and `teachers`.
"""

from apm.methods.method import REGISTRY, Method, Predictions, create, outcome, register

from apm.methods import mirror, mta, prompt_tuning, tda, tent, zero  # isort: skip
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
    "mirror",
    "mta",
    "outcome",
    "prompt_tuning",
    "register",
    "student_pictures",
    "tda",
    "tent",
    "training_config",
    "zero",
]
