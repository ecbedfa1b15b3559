"""Datasets: images, labels, class names, prompts and a fingerprint, by name.

    load("digits-test")            handwritten digits, the held-out half (scikit-learn, real scans)
    load("printed-digits")         digits in matplotlib's bundled fonts: the natural shift of profile `mini`
    load("folder:/data/imagenet")  any tree with one folder of images per class
    load("imagenet-a", root=DATA)  a published benchmark (`apm.data.published_sets`)

A new set is a function under `@register("name")` that returns a `Dataset`. Images are uint8 RGB arrays; every model
applies its own preprocessing to them (`apm.teachers`). Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from apm.data import prompts
from apm.project import atomic_write, cache_dir, data_dir, sha256_of, unknown
from apm.project.progress import progress

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32  # pixels of the made sets


class UnreadableImage(ValueError):
    """An image file that cannot be decoded. `path` says which."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"cannot read the image {path}: {reason}. Replace or remove the file")
        self.path = path


@dataclass(frozen=True, eq=False)
class Dataset:
    """N labelled images. Shapes: images[i] (H, W, 3) uint8 RGB, labels (N,) int64, indices (N,) int64.

    Raises ValueError on construction when counts, labels or class names do not fit each other.
    """

    name: str
    images: Sequence[np.ndarray] | np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classnames: tuple[str, ...]
    templates: tuple[str, ...]  # prompts, each with one "{}"
    fingerprint: str  # sha256 over pixels (or the files' bytes), labels and class names of the full set
    indices: np.ndarray = field(repr=False)  # position of each image in the full set, kept by `subset`
    notes: str = ""  # where it comes from, its licence, what it stands for
    corruption: str = "none"
    severity: int = 0
    groups: tuple[str, ...] | None = field(default=None, repr=False)  # one per image: sub-populations (font families)
    origin: str = ""  # the set whose images these are, changed or renamed: `indices` are positions in that one
    remark: str = ""  # how these images differ from the published ones; stands under every table made of them

    def __post_init__(self) -> None:
        counts = {"images": len(self.images), "labels": len(self.labels), "indices": len(self.indices)}
        if self.groups is not None:
            counts["groups"] = len(self.groups)
        if len(set(counts.values())) != 1:
            raise ValueError(f"dataset {self.name}: expected equal counts, found {counts}")
        if not len(self.labels):
            raise ValueError(f"dataset {self.name}: expected at least one image, found none")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classnames):
            raise ValueError(
                f"dataset {self.name}: labels must lie in 0..{len(self.classnames) - 1} "
                f"({len(self.classnames)} class names), found {low}..{high}"
            )
        prompts.check(self.templates)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, which: int | Sequence[int] | np.ndarray, seed: int | None = None) -> Dataset:
        """Some of the images, as a Dataset with the same fingerprint and the matching `indices`.

        which: positions in this dataset, kept in the given order; or a count n, for a stratified choice in the set's
        order: the same (n, seed) gives the same images, and the choice for n contains the one for every smaller n.
        Raises ValueError for a count outside 1..N and for positions outside 0..N-1 or given twice.
        """
        if isinstance(which, int | np.integer):
            positions = _stratified(self.labels, int(which), seed or 0, self.name)
        else:
            positions = np.asarray(which, dtype=np.int64)
            if positions.ndim != 1 or not len(positions):
                raise ValueError(f"dataset {self.name}: expected a list of positions, found shape {positions.shape}")
            if positions.min() < 0 or positions.max() >= len(self):
                raise ValueError(
                    f"dataset {self.name}: positions must lie in 0..{len(self) - 1}, "
                    f"found {positions.min()}..{positions.max()}"
                )
            if len(np.unique(positions)) != len(positions):
                raise ValueError(f"dataset {self.name}: a position is given twice")
        images = self.images[positions] if isinstance(self.images, np.ndarray) else _View(self.images, positions)
        return replace(
            self,
            images=images,
            labels=self.labels[positions],
            indices=self.indices[positions],
            groups=None if self.groups is None else tuple(self.groups[i] for i in positions),
        )

    def array(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Images at these positions (all by default) as one uint8 array (n, H, W, 3).

        Raises ValueError when their sizes differ, naming the first that does.
        """
        positions = range(len(self)) if indices is None else [int(i) for i in indices]
        chosen = [np.asarray(self.images[i]) for i in positions]
        for i, image in zip(positions, chosen, strict=True):
            if image.shape != chosen[0].shape:
                raise ValueError(
                    f"dataset {self.name}: array() needs images of one size, found {chosen[0].shape[:2]} and "
                    f"{image.shape[:2]} at position {i}: use a teacher's transform instead"
                )
        return np.stack(chosen)


class _View(Sequence[np.ndarray]):
    """Chosen positions of a lazy sequence, read on access."""

    def __init__(self, parent: Sequence[np.ndarray], positions: np.ndarray) -> None:
        self._parent: Sequence[np.ndarray] = parent
        self._positions: np.ndarray = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: Any) -> Any:
        return self._parent[int(self._positions[i])]


def _stratified(labels: np.ndarray, n: int, seed: int, name: str) -> np.ndarray:
    """n positions (n,), sorted: each image gets its place (rank + 1/2) / count within its shuffled class; lowest n win."""
    if not 1 <= n <= len(labels):
        raise ValueError(f"dataset {name}: a subset needs 1..{len(labels)} images, found {n}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))  # also breaks ties between classes without favouring the first
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(place[order], kind="stable")][:n])


def fingerprint(images: np.ndarray, labels: np.ndarray, classnames: Sequence[str]) -> str:
    """sha256 over pixels (N, H, W, 3), labels (N,) and class names."""
    digest = hashlib.sha256()
    digest.update(json.dumps([list(images.shape), str(images.dtype), list(classnames)]).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------- registry

Loader = Callable[..., Dataset]
_LOADERS: dict[str, Loader] = {}


def register(name: str) -> Callable[[Loader], Loader]:
    """Decorator: makes `load(name)` call the function with `root` (Path or None) and `seed`."""

    def add(loader: Loader) -> Loader:
        _LOADERS[name] = loader
        return loader

    return add


def names() -> list[str]:
    """Names that `load` knows, besides "folder:PATH"."""
    from apm.data import derived_sets, published_sets  # here, because they build on this module

    return sorted([*_LOADERS, *published_sets.names(), *derived_sets.names()])


def load(name: str, *, root: str | Path | None = None, seed: int = 0, partial: bool = False) -> Dataset:
    """The dataset of that name.

    root: folder that holds datasets on disk, default: $DATA; a relative PATH of "folder:PATH" starts there. seed: of the split of the
    handwritten digits and of the jitter of the printed ones. partial: take a published set of which some images or classes
    are missing, and say so in its notes ($PARTIAL=1 does the same); the other sets are as large as they are.
    Raises ValueError for an unknown name and for a published set with other counts than its authors', FileNotFoundError for
    a missing folder.
    """
    base = data_dir() if root is None else Path(root)
    if name.startswith("folder:"):
        return _folder(name, base)
    if name in _LOADERS:
        return _LOADERS[name](root=base, seed=seed)
    from apm.data import derived_sets, published_sets

    partial = partial or os.environ.get("PARTIAL") == "1"
    if published_sets.knows(name):
        return published_sets.load(name, base, partial=partial)
    if name in derived_sets.names():
        return derived_sets.load(name, base, partial=partial)
    raise unknown("dataset", name, [*names(), "folder:PATH"])


# ------------------------------------------------------------------------------------------------ handwritten digits


def _digits(half: str, seed: int) -> Dataset:
    """One stratified half of scikit-learn's 1797 digits: 8 x 8 scans, enlarged to 32 x 32 (bicubic), three equal channels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, test = train_test_split(
        np.arange(len(bunch.target)), test_size=0.5, stratify=bunch.target, random_state=seed
    )
    chosen = np.sort(train if half == "train" else test)
    images = _enlarged(bunch.images[chosen])
    labels = bunch.target[chosen].astype(np.int64)
    images.flags.writeable = labels.flags.writeable = False
    return Dataset(
        name=f"digits-{half}",
        images=images,
        labels=labels,
        classnames=DIGIT_NAMES,
        templates=prompts.DIGITS,
        fingerprint=fingerprint(images, labels, DIGIT_NAMES),
        indices=np.arange(len(labels)),
        notes=f"Handwritten digits bundled with scikit-learn (UCI optdigits test set, CC BY 4.0), {half} half of a "
        f"stratified split with seed {seed}, 8 x 8 px enlarged to 32 x 32.",
    )


def _enlarged(counts: np.ndarray) -> np.ndarray:
    """Scans (N, 8, 8) of values 0..16 -> uint8 (N, 32, 32, 3): bicubic, three equal channels."""
    small = np.rint(counts * (255 / 16)).astype(np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(s).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for s in small])
    return np.repeat(grey[..., None], 3, axis=-1)


@register("digits-train")
def _digits_train(root: Path | None = None, seed: int = 0) -> Dataset:
    return _digits("train", seed)


@register("digits-test")
def _digits_test(root: Path | None = None, seed: int = 0) -> Dataset:
    return _digits("test", seed)


# ---------------------------------------------------------------------------------------------------- printed digits

FONTS: dict[str, tuple[str, ...]] = {  # family -> files that matplotlib carries
    "DejaVu Sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "DejaVu Sans Mono": (
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique",
        "DejaVuSansMono-BoldOblique",
    ),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    "Computer Modern": ("cmr10", "cmb10", "cmss10", "cmtt10"),
}
COPIES = 4  # jittered renderings of every digit in every face
_CANVAS = 256  # pixels at which a glyph is drawn before it is reduced


@register("printed-digits")
def _printed_digits(root: Path | None = None, seed: int = 0) -> Dataset:
    """Digits in the fonts of matplotlib, each with its own small affine jitter; groups = font family.

    They are scanned as the handwritten ones were: a 32 x 32 bitmap, the set pixels counted in 4 x 4 blocks. So the shift
    is in what is written, not in resolution or sharpness.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng([seed, 1])
    images, labels, groups = [], [], []
    for family, files in FONTS.items():
        for file in files:
            path = folder / f"{file}.ttf"
            if not path.is_file():
                raise FileNotFoundError(
                    f"printed-digits: font {path} is missing: reinstall matplotlib, which carries it"
                )
            font = ImageFont.truetype(str(path), _CANVAS // 2)
            for digit in range(10):
                glyph = _glyph(font, str(digit))
                for _ in range(COPIES):
                    images.append(_jittered(glyph, rng))
                    labels.append(digit)
                    groups.append(family)
    bitmaps = np.stack(images) >= 64  # (N, 32, 32); set where a quarter is covered, so that hairlines survive
    pixels = _enlarged(bitmaps.reshape(-1, 8, 4, 8, 4).sum(axis=(2, 4)))
    target = np.array(labels, dtype=np.int64)
    pixels.flags.writeable = target.flags.writeable = False
    return Dataset(
        name="printed-digits",
        images=pixels,
        labels=target,
        classnames=DIGIT_NAMES,
        templates=prompts.DIGITS,
        fingerprint=fingerprint(pixels, target, DIGIT_NAMES),
        indices=np.arange(len(target)),
        notes=f"Digits rendered in {sum(map(len, FONTS.values()))} faces of {len(FONTS)} font families bundled with "
        f"matplotlib (DejaVu, STIX and BaKoMa Computer Modern, free licences), {COPIES} jittered copies each, seed {seed}; scanned to 8 x 8 px and enlarged "
        "to 32 x 32 as the handwritten digits were. The dotted zero of DejaVu Sans Mono is close to an 8 at this size.",
        groups=tuple(groups),
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
    moved = glyph.transform(
        glyph.size,
        Image.Transform.AFFINE,
        (inverse[0, 0], inverse[0, 1], offset[0], inverse[1, 0], inverse[1, 1], offset[1]),
        resample=Image.Resampling.BICUBIC,
    )
    return np.asarray(moved.resize((SIDE, SIDE), Image.Resampling.BOX))


# ------------------------------------------------------------------------------------------------------ folder trees


PHOTOGRAPHS = {
    # name: (package, name there, licence as the package states it)
    "astronaut": ("skimage", "astronaut", "NASA, public domain"),
    "cat": ("skimage", "chelsea", "CC0, Stefan van der Walt"),
    "coffee": ("skimage", "coffee", "CC0, Rachel Michetti"),
    "rocket": ("skimage", "rocket", "CC0, SpaceX"),
    "china": ("sklearn", "china.jpg", "CC BY, Zoltan Vas"),
    "flower": ("sklearn", "flower.jpg", "CC BY, dany13"),
}


def photograph(name: str) -> np.ndarray:
    """A real photograph (H, W, 3) uint8 that scikit-image or scikit-learn ships. Raises ValueError with the known names."""
    if name not in PHOTOGRAPHS:
        raise unknown("photograph", name, PHOTOGRAPHS)
    package, inner, _ = PHOTOGRAPHS[name]
    if package == "skimage":
        from skimage import data

        return np.asarray(getattr(data, inner)())
    from sklearn.datasets import load_sample_image

    return np.asarray(load_sample_image(inner))


class ImageFiles(Sequence[np.ndarray]):
    """Image files, decoded on access to uint8 RGB (H, W, 3)."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: Any) -> Any:
        return read_image(self.paths[i])


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB (H, W, 3), upright by its EXIF tag, first frame only.

    Transparency is dropped and CMYK converted as CLIP's own preprocessing does (PIL's conversion to RGB); 16-bit grey is
    scaled to 8 bits. Raises UnreadableImage (a ValueError with the path) for missing, truncated or undecodable files.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16-bit grey (mode I;16), or integers that must be such
                values = np.asarray(image).astype(np.int64)
                if values.min() < 0 or values.max() > 65535:
                    raise ValueError(f"grey values {values.min()}..{values.max()} are no 16-bit image")
                image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
            elif image.mode == "F":
                raise ValueError("floating-point pixels have no defined range")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UnreadableImage(path, error) from error


def of_system(name: str) -> bool:
    """Whether a file or folder is hidden or left by a system: macOS archives, Windows, NAS indices, Python. Never data."""
    left = ("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")
    return name.startswith(".") or name.lower() in (*left, "thumbs.db", "desktop.ini")


def _folder(name: str, root: Path | None) -> Dataset:
    """A tree with one folder per class; class names are the folders' names, underscores read as spaces."""
    given = Path(name.removeprefix("folder:")).expanduser()
    path = (root / given if root is not None else given).resolve()
    layout = f"expected {path}/<class name>/<image>.jpg (or {', '.join(s for s in SUFFIXES if s != '.jpg')})"
    if not name.removeprefix("folder:"):
        raise ValueError("dataset 'folder:' needs a path: folder:PATH, PATH holding one folder of images per class")
    if not path.exists():
        raise FileNotFoundError(f"dataset {name}: folder {path} does not exist; {layout}")
    if not path.is_dir():
        raise NotADirectoryError(f"dataset {name}: {path} is a file; {layout}")
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not of_system(p.name))
    if not classes:
        raise ValueError(f"dataset {name}: {path} holds no class folders; {layout}")

    files: list[Path] = []
    labels: list[int] = []
    ignored: list[Path] = []
    for label, folder in enumerate(classes):
        visible = [
            p
            for p in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix())
            if p.is_file() and not any(of_system(part) for part in p.relative_to(folder).parts)
        ]
        found = [p for p in visible if p.suffix.lower() in SUFFIXES]
        ignored += [p for p in visible if p.suffix.lower() not in SUFFIXES]
        if not found:
            raise ValueError(
                f"dataset {name}: class folder {folder} holds no images ({len(visible)} other files); {layout}. "
                "Add images or remove the folder"
            )
        files += found
        labels += [label] * len(found)

    classnames = tuple(folder.name.replace("_", " ") for folder in classes)
    notes = f"Image tree {path}: {len(files)} images in {len(classes)} class folders."
    if ignored:
        notes += f" {len(ignored)} files that are no images were left out, the first: {ignored[0].relative_to(path)}."
    return Dataset(
        name=name,
        images=ImageFiles(files),
        labels=np.array(labels, dtype=np.int64),
        classnames=classnames,
        templates=prompts.SINGLE,
        fingerprint=files_fingerprint(path, files, labels, classnames),
        indices=np.arange(len(files)),
        notes=notes,
    )


def files_fingerprint(
    folder: Path, files: Sequence[Path], labels: Sequence[int] | np.ndarray, names: Sequence[str]
) -> str:
    """sha256 over names, labels, the files' paths below `folder` and their bytes: the same wherever the folder lies.

    A large tree is read once. Its fingerprint is kept in `apm.project.cache_dir()`, together with a digest of the listing
    (label, relative path, size, modification time in ns); while the listing is the same no file is read again. So a file
    that is replaced by one of the same size with its modification time set back goes unnoticed: delete
    `fingerprints/` in the cache after such a change. Raises UnreadableImage for a file that cannot be read.
    """
    relative = [file.relative_to(folder).as_posix() for file in files]
    listing = hashlib.sha256(json.dumps(list(names)).encode())
    for label, file, name in zip(labels, files, relative, strict=True):
        try:
            stat = file.stat()
        except OSError as error:
            raise UnreadableImage(file, error) from error
        listing.update(json.dumps([int(label), name, stat.st_size, stat.st_mtime_ns]).encode())
    kept = _kept_fingerprint(folder, names)
    if kept is not None and (known := _read_kept(kept)) and known.get("listing") == listing.hexdigest():
        return str(known["fingerprint"])

    digest = hashlib.sha256(json.dumps(list(names)).encode())
    with ThreadPoolExecutor(max_workers=8) as pool:  # reading waits for the disk, hashing releases the interpreter lock
        contents: Iterable[str] = pool.map(_file_digest, files)
        if len(files) > 2000:
            contents = progress(contents, total=len(files), desc=f"fingerprint of {folder.name}", unit="file")
        for label, name, content in zip(labels, relative, contents, strict=True):
            digest.update(json.dumps([int(label), name, content]).encode())
    if kept is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            atomic_write(kept, json.dumps({"listing": listing.hexdigest(), "fingerprint": digest.hexdigest()}))
    return digest.hexdigest()


def _kept_fingerprint(folder: Path, names: Sequence[str]) -> Path | None:
    try:
        return cache_dir() / "fingerprints" / f"{sha256_of([str(folder.resolve()), list(names)])}.json"
    except FileNotFoundError:  # outside a project: there is no cache
        return None


def _read_kept(path: Path) -> dict[str, str] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and isinstance(known.get("fingerprint"), str) else None


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableImage(path, error) from error


# ---------------------------------------------------------------------- domains of the same digits (natural shifts, Table 1)

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # float (H, W) in 0..1 -> (H, W) or (H, W, 3) in 0..1


def _domain(name: str, change: Change, what: str, seed: int) -> Dataset:
    """The held-out handwritten digits with every image changed; the same labels, names, prompts and indices."""
    base = _digits("test", seed)
    originals = np.asarray(base.images)
    pixels = np.empty_like(originals)
    for i, image in enumerate(originals):
        changed = change(image[..., 0] / 255, np.random.default_rng([seed, i]))
        pixels[i] = np.rint(255 * np.clip(changed, 0, 1)).reshape(SIDE, SIDE, -1)
    pixels.flags.writeable = False
    return replace(
        base,
        name=name,
        origin=base.name,
        images=pixels,
        fingerprint=fingerprint(pixels, base.labels, base.classnames),
        notes=f"The digits of digits-test, {what}.",
    )


@register("digits-inverted")
def _digits_inverted(root: Path | None = None, seed: int = 0) -> Dataset:
    return _domain("digits-inverted", lambda grey, rng: 1 - grey, "black on white", seed)


@register("digits-edges")
def _digits_edges(root: Path | None = None, seed: int = 0) -> Dataset:
    from skimage.feature import canny

    what = "as line drawings: Canny edges (sigma 1 px) of the stroke, white on black"
    return _domain("digits-edges", lambda grey, rng: canny(grey, sigma=1.0), what, seed)


@register("digits-thick")
def _digits_thick(root: Path | None = None, seed: int = 0) -> Dataset:
    from skimage.morphology import dilation, disk

    what = "strokes thickened by 2 px on each side (grey dilation)"
    return _domain("digits-thick", lambda grey, rng: dilation(grey, disk(2)), what, seed)


@register("digits-thin")
def _digits_thin(root: Path | None = None, seed: int = 0) -> Dataset:
    from skimage.filters import gaussian
    from skimage.morphology import skeletonize

    def redrawn(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        line = skeletonize(grey > grey.max() / 2).astype(np.float64)
        return 2.5 * gaussian(line, sigma=1.0)  # 2.5: a straight line is white in its middle again

    what = "reduced to the centre line of the stroke and redrawn with a soft pen (Gaussian, sigma 1 px)"
    return _domain("digits-thin", redrawn, what, seed)


@register("digits-coloured")
def _digits_coloured(root: Path | None = None, seed: int = 0) -> Dataset:
    def coloured(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        paper, ink = rng.uniform(0, 0.3, size=3), rng.uniform(0.7, 1, size=3)
        return paper + grey[..., None] * (ink - paper)

    what = "in a random light colour (channels 0.7 to 1) on a random dark one (0 to 0.3)"
    return _domain("digits-coloured", coloured, what, seed)


@register("digits-photo")
def _digits_photo(root: Path | None = None, seed: int = 0) -> Dataset:
    photos = [photograph(name) / 255 for name in PHOTOGRAPHS]

    def piece(rng: np.random.Generator) -> np.ndarray:
        photo = photos[rng.integers(len(photos))]
        y, x = (rng.integers(side - SIDE) for side in photo.shape[:2])
        return photo[y : y + SIDE, x : x + SIDE]

    def over(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        background = piece(rng)
        while background.std() < 0.05:  # a black sky would leave the digit as it is
            background = piece(rng)
        return np.abs(background - grey[..., None])

    what = f"each over a {SIDE} x {SIDE} px piece of one of {len(photos)} photographs, as the absolute difference (the recipe of MNIST-M)"
    return _domain("digits-photo", over, what, seed)


@register("digits-hard")
def _digits_hard(root: Path | None = None, seed: int = 0) -> Dataset:
    """Chosen as ImageNet-A was: real images that another classifier gets wrong. Here the nearest class mean of pixels."""
    train, test = _digits("train", seed), _digits("test", seed)
    flat = [np.asarray(d.images)[..., 0].reshape(len(d), -1).astype(np.float64) for d in (train, test)]
    means = np.stack([flat[0][train.labels == c].mean(axis=0) for c in range(len(DIGIT_NAMES))])  # (10, H * W)
    nearest = ((flat[1][:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    chosen = np.flatnonzero(nearest != test.labels)
    part = test.subset(chosen)
    return replace(
        part,
        name="digits-hard",
        origin=test.name,
        fingerprint=fingerprint(np.asarray(part.images), part.labels, part.classnames),
        notes=f"The {len(chosen)} digits of digits-test that a classifier by the nearest class mean of pixels, fitted on "
        "digits-train, gets wrong.",
    )


# ----------------------------------------------------------------- other label spaces and other signs (cross-dataset, Table 3)


def _relabelled(
    name: str, classes: dict[str, Sequence[int]], templates: Sequence[str], what: str, seed: int
) -> Dataset:
    """The held-out digits of some values under other class names: name of the class -> the digits that belong to it."""
    base = _digits("test", seed)
    label_of = {digit: label for label, digits in enumerate(classes.values()) for digit in digits}
    part = base.subset(np.flatnonzero(np.isin(base.labels, list(label_of))))
    labels = np.array([label_of[int(digit)] for digit in part.labels], dtype=np.int64)
    labels.flags.writeable = False
    return replace(
        part,
        name=name,
        origin=base.name,
        labels=labels,
        classnames=tuple(classes),
        templates=tuple(templates),
        fingerprint=fingerprint(np.asarray(part.images), labels, tuple(classes)),
        notes=f"The digits of digits-test, {what}.",
    )


_LABEL_SPACES: dict[str, tuple[dict[str, Sequence[int]], Sequence[str], str]] = {
    "digits-numerals": ({str(d): (d,) for d in range(10)}, prompts.DIGITS, "named by numerals, 0 to 9"),
    "digits-below-five": ({DIGIT_NAMES[d]: (d,) for d in range(5)}, prompts.DIGITS, "zero to four only"),
    "digits-lookalikes": (
        {DIGIT_NAMES[d]: (d,) for d in (1, 3, 5, 8, 9)},
        prompts.DIGITS,
        "only those easily mistaken for each other: one, three, five, eight and nine",
    ),
    "digits-lists": (
        {"zero, one, two, three or four": range(5), "five, six, seven, eight or nine": range(5, 10)},
        prompts.GENERAL,
        "two classes, each named by the list of its members",
    ),
    "digits-size": (
        {"number less than five": range(5), "number five or more": range(5, 10)},
        prompts.GENERAL,
        "two classes: less than five, and five or more",
    ),
    "digits-parity": (
        {"even number": range(0, 10, 2), "odd number": range(1, 10, 2)},
        prompts.GENERAL,
        "two classes: even and odd",
    ),
}


def _register_label_space(name: str) -> None:
    @register(name)
    def loader(root: Path | None = None, seed: int = 0) -> Dataset:
        return _relabelled(name, *_LABEL_SPACES[name], seed)


for _name in _LABEL_SPACES:
    _register_label_space(_name)


def _printed_signs(name: str, signs: str, files: Sequence[str], copies: int, seed: int, **fields: Any) -> Dataset:
    """One class per sign, rendered, jittered and scanned as the printed digits are."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng([seed, 2, *name.encode()])
    images, labels = [], []
    for file in files:
        path = folder / f"{file}.ttf"
        if not path.is_file():
            raise FileNotFoundError(f"{name}: font {path} is missing: reinstall matplotlib, which carries it")
        font = ImageFont.truetype(str(path), _CANVAS // 2)
        for label, sign in enumerate(signs):
            glyph = _glyph(font, sign)
            for _ in range(copies):
                images.append(_jittered(glyph, rng))
                labels.append(label)
    bitmaps = np.stack(images) >= 64
    pixels = _enlarged(bitmaps.reshape(-1, 8, 4, 8, 4).sum(axis=(2, 4)))
    target = np.array(labels, dtype=np.int64)
    pixels.flags.writeable = target.flags.writeable = False
    return Dataset(
        name=name,
        images=pixels,
        labels=target,
        fingerprint=fingerprint(pixels, target, fields["classnames"]),
        indices=np.arange(len(target)),
        **fields,
    )


# The faces that draw these numerals; the bundled LastResort has them too, but draws placeholders.
_ARABIC_FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold")


@register("printed-arabic-indic")
def _printed_arabic_indic(root: Path | None = None, seed: int = 0) -> Dataset:
    return _printed_signs(
        "printed-arabic-indic",
        "\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668\u0669",
        _ARABIC_FACES,
        7,
        seed,
        classnames=DIGIT_NAMES,
        templates=prompts.DIGITS,
        notes=f"Eastern Arabic numerals, the digits zero to nine in another script, in {len(_ARABIC_FACES)} faces of "
        f"DejaVu, jittered and scanned as printed-digits, seed {seed}. Some look like Latin digits, of the same value or another.",
    )


@register("printed-letters")
def _printed_letters(root: Path | None = None, seed: int = 0) -> Dataset:
    files = [file for family in FONTS.values() for file in family]
    return _printed_signs(
        "printed-letters",
        "ABCDEFGHIJ",
        files,
        2,
        seed,
        classnames=tuple(f"letter {letter}" for letter in "ABCDEFGHIJ"),
        templates=prompts.GENERAL,
        notes=f"The capital letters A to J in the {len(files)} faces of printed-digits, jittered and scanned as they are, seed {seed}.",
    )
