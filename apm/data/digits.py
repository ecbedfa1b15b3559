"""Digits without a download: handwritten ones (scikit-learn's scans), and signs printed in the fonts that matplotlib carries."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apm.data import prompts
from apm.data.dataset import Dataset, made

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32  # pixels of the made sets
FONTS = {  # family -> files that matplotlib carries
    "DejaVu Sans": "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique",
    "DejaVu Sans Mono": "DejaVuSansMono DejaVuSansMono-Bold DejaVuSansMono-Oblique DejaVuSansMono-BoldOblique",
    "DejaVu Serif": "DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic DejaVuSerif-BoldItalic",
    "STIX": "STIXGeneral STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta",
    "Computer Modern": "cmr10 cmb10 cmss10 cmtt10",
}
_FACES = [file for files in FONTS.values() for file in files.split()]
# The faces that draw Eastern Arabic numerals; the bundled LastResort has them too, but draws placeholders.
_ARABIC_FACES = ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold"]
_CANVAS = 256  # pixels at which a glyph is drawn before it is reduced


def handwritten(half: str, seed: int = 0) -> Dataset:
    """One stratified half, "train" or "test", of scikit-learn's 1797 digits: 8 x 8 scans, enlarged to 32 x 32 (bicubic)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    halves = train_test_split(np.arange(len(bunch.target)), test_size=0.5, stratify=bunch.target, random_state=seed)
    chosen = np.sort(halves[half == "test"])
    return made(
        _enlarged(bunch.images[chosen]),
        bunch.target[chosen],
        name=f"digits-{half}",
        classnames=NAMES,
        templates=prompts.DIGITS,
        notes=f"Handwritten digits bundled with scikit-learn (UCI optdigits test set, CC BY 4.0), {half} half of a "
        f"stratified split with seed {seed}, 8 x 8 px enlarged to 32 x 32.",
    )


def _enlarged(counts: np.ndarray) -> np.ndarray:
    """Scans (N, 8, 8) of values 0..16 -> uint8 (N, 32, 32, 3): bicubic, three equal channels."""
    small = np.rint(counts * (255 / 16)).astype(np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(s).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for s in small])
    return np.repeat(grey[..., None], 3, axis=-1)


def _printed(
    name: str, signs: str, faces: list[str], copies: int, seed: int, *, notes: str, draws: bytes, **fields: Any
) -> Dataset:
    """One class per sign; for every face and sign some jittered copies, by a generator of the seed and `draws`.

    They are scanned as the handwritten ones were: a 32 x 32 bitmap, the set pixels counted in 4 x 4 blocks. So the shift
    is in what is written, not in resolution or sharpness.
    """
    import matplotlib

    rng = np.random.default_rng([seed, *draws])
    images = []
    for face in faces:
        path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
        font = ImageFont.truetype(str(path), _CANVAS // 2)
        for glyph in (_glyph(font, sign) for sign in signs):
            images += [_jittered(glyph, rng) for _ in range(copies)]
    bitmaps = np.stack(images) >= 64  # (N, 32, 32); set where a quarter is covered, so that hairlines survive
    return made(
        _enlarged(bitmaps.reshape(-1, 8, 4, 8, 4).sum(axis=(2, 4))),
        np.tile(np.repeat(np.arange(len(signs)), copies), len(faces)),
        name=name,
        notes=notes.format(faces=len(faces), seed=seed),
        **{"classnames": NAMES, "templates": prompts.DIGITS, **fields},
    )


def _glyph(font: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    """The glyph centred on a black canvas of _CANVAS px, 0.88 of it high (the handwritten ones fill their frame too)."""
    bounds = font.getbbox(text)
    sized = font.font_variant(size=round(font.size * 0.88 * _CANVAS / (bounds[3] - bounds[1])))
    left, top, right, bottom = sized.getbbox(text)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    place = ((_CANVAS - (left + right)) / 2, (_CANVAS - (top + bottom)) / 2)
    ImageDraw.Draw(canvas).text(place, text, fill=255, font=sized)
    return canvas


def _jittered(glyph: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """(32, 32) uint8: rotation within 6 degrees, size within 8 %, shear within 0.08, shift within 1 px."""
    angle = np.deg2rad(rng.uniform(-6, 6))
    scale, shear = rng.uniform(0.92, 1.08), rng.uniform(-0.08, 0.08)
    shift = rng.uniform(-1, 1, size=2) * _CANVAS / SIDE
    forward = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1, shear], [0, 1]]
    inverse = np.linalg.inv(forward)  # PIL asks where each output pixel comes from
    centre = np.full(2, _CANVAS / 2)
    offset = centre - inverse @ (centre + shift)
    matrix = (inverse[0, 0], inverse[0, 1], offset[0], inverse[1, 0], inverse[1, 1], offset[1])
    moved = glyph.transform(glyph.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC)
    return np.asarray(moved.resize((SIDE, SIDE), Image.Resampling.BOX))


# name -> the set for a seed: of the split of the handwritten ones, of the jitter of the printed ones
SETS: dict[str, Callable[[int], Dataset]] = {
    "digits-train": partial(handwritten, "train"),
    "digits-test": partial(handwritten, "test"),
    "printed-digits": partial(
        _printed, "printed-digits", "0123456789", _FACES, 4, draws=b"\1",
        notes=f"Digits rendered in {{faces}} faces of {len(FONTS)} font families bundled with matplotlib (DejaVu, STIX and BaKoMa "
        "Computer Modern, free licences), 4 jittered copies each, seed {seed}; scanned to 8 x 8 px and enlarged to 32 x 32 as the "
        "handwritten digits were. The dotted zero of DejaVu Sans Mono is close to an 8 at this size.",
        groups=tuple(np.repeat(list(FONTS), 4 * 10 * 4).tolist()),
    ),
    "printed-arabic-indic": partial(
        _printed, "printed-arabic-indic", "".join(map(chr, range(0x0660, 0x066A))), _ARABIC_FACES, 7,
        draws=b"\2printed-arabic-indic",
        notes="Eastern Arabic numerals, the digits zero to nine in another script, in {faces} faces of DejaVu, jittered and scanned "
        "as printed-digits, seed {seed}. Some look like Latin digits, of the same value or another.",
    ),
    "printed-letters": partial(
        _printed, "printed-letters", "ABCDEFGHIJ", _FACES, 2, draws=b"\2printed-letters",
        classnames=tuple(f"letter {letter}" for letter in "ABCDEFGHIJ"),
        templates=prompts.templates("general"),
        notes="The capital letters A to J in the {faces} faces of printed-digits, jittered and scanned as they are, seed {seed}.",
    ),
}  # fmt: skip
SETS = {name: cache(make) for name, make in SETS.items()}  # in a process each is made once: its arrays are read-only
