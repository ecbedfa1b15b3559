"""Frozen teachers: networks of open_clip and timm by name or file, and what they say of images and texts.

Uses `project`, `data` and the modules below all rooms. Offers `load` and `Teacher`; `features` and `features_at`, kept in files of the
cache as all that `stored` makes; `token_grid`; what the student sees of an image (`student_images`, `patch_colours`); `save` for
checkpoints; `remembered` for what else is kept. The small teachers are trained by `train`, a command, and no door stands open to it.
"""

from apm.teachers.cached import features, features_at, identity, reading, stored
from apm.teachers.given import preprocess, student_images
from apm.teachers.images import IMAGENET_MEAN, IMAGENET_STD, Images, fitted, patch_colours, pictures
from apm.teachers.loading import load
from apm.teachers.teacher import Encoding, Teacher, token_grid
from apm.teachers.weights import kept, remembered, save, weights_sha256
