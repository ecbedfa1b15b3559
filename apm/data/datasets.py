"""The former name of this room's door: `from apm.data import load`. Goes when no import of it is left."""

from apm.data import *  # noqa: F403
from apm.data import OWN as _LOADERS  # noqa: F401
from apm.data.digits import NAMES as DIGIT_NAMES  # noqa: F401
from apm.data.digits import SIDE  # noqa: F401
