"""The ChArUco board of `robot-rl calibrate`: how it is built, printed, and found in pictures.

OpenCV counts squares from the upper left, x to the right and y down; the board's frame has its origin in that corner, in
metres, z into the board.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64, Int64, UInt8
from robot_rl.errors import ConfigError, DataError, closest

FORMAT, VERSION = "robot_rl.charuco_board", 1
PAGES_MM = {"A4": (297, 210), "A3": (420, 297), "letter": (279.4, 215.9)}
PX_PER_MM = 10
DPI = 25.4 * PX_PER_MM
FEWEST_CORNERS = 8
MARKERS_FOR_LAYOUT = 4
LAYOUT_ERROR = 0.35
WINDOWS = (2, 8)


@dataclass(frozen=True)
class BoardSpec:
    """A board as it lies on the table; measure a printed one with a ruler.

    Attributes:
        columns, rows: squares.
        square_m, marker_m: sides of a square and of a marker.
        dictionary: of the markers, as OpenCV names it.
        legacy: the pattern of OpenCV before 4.6; only differs for an even number of rows.
    """

    columns: int = 7
    rows: int = 5
    square_m: float = 0.036
    marker_m: float = 0.027
    dictionary: str = "DICT_4X4_50"
    legacy: bool = False

    def __post_init__(self) -> None:
        if min(self.columns, self.rows) < 3 or not 0 < self.marker_m < self.square_m:
            raise ConfigError(
                "board", expected="at least 3 x 3 squares, and markers smaller than squares",
                got=f"{self.columns} x {self.rows}, square {self.square_m} m, marker {self.marker_m} m", hint="",
            )  # fmt: skip

    def board(self) -> Any:
        """OpenCV's object of it.

        Raises:
            ConfigError: an unknown dictionary, or one with too few markers.
        """
        return _board(self)

    def centre_m(self) -> Float64[Array, "3"]:
        """The middle of the board in its own frame."""
        return np.array([self.columns * self.square_m / 2, self.rows * self.square_m / 2, 0.0])

    def text(self) -> str:
        """One line for people."""
        return (
            f"ChArUco {self.columns} x {self.rows} squares of {self.square_m * 1000:.2f} mm, markers "
            f"{self.marker_m * 1000:.2f} mm, {self.dictionary}{' (legacy pattern)' if self.legacy else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON types, with format and version."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


def read_board(path: Path) -> BoardSpec:
    """A board as `robot-rl calibrate board` wrote it.

    Raises:
        DataError: missing, damaged or foreign file.
    """
    hint = "Write it with `robot-rl calibrate board`."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if (data.pop("format", None), data.pop("version", None)) != (FORMAT, VERSION):
            raise DataError(str(path), expected=f"{FORMAT} version {VERSION}", got="another file", hint=hint)
        return BoardSpec(**data)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(str(path), expected="a board", got=str(error), hint=hint) from error


@cache
def _board(spec: BoardSpec) -> Any:
    import cv2

    names = [name for name in dir(cv2.aruco) if name.startswith("DICT_")]
    if spec.dictionary not in names:
        raise ConfigError(
            "board: dictionary", expected="a dictionary of OpenCV", got=spec.dictionary,
            hint=closest(spec.dictionary, names),
        )  # fmt: skip
    dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, spec.dictionary))
    if len(dictionary.bytesList) < spec.columns * spec.rows // 2:
        raise ConfigError(
            "board: dictionary", expected=f"{spec.columns * spec.rows // 2} markers",
            got=f"{len(dictionary.bytesList)} in {spec.dictionary}", hint="Take a larger dictionary, e.g. DICT_4X4_250.",
        )  # fmt: skip
    board = cv2.aruco.CharucoBoard((spec.columns, spec.rows), spec.square_m, spec.marker_m, dictionary)
    board.setLegacyPattern(spec.legacy)
    return board


def draw_page(spec: BoardSpec, *, page: str) -> UInt8[Array, "H W"]:
    """A page to print, 10 pixels a millimetre: the board, a bar of 100 mm to measure, and what to do.

    Args:
        spec: its sides must be whole tenths of a millimetre.
        page: a key of PAGES_MM, landscape.

    Raises:
        ConfigError: the board does not fit the page, or the grid of pixels.
    """
    import cv2

    wide, high = (round(side * PX_PER_MM) for side in PAGES_MM[page])
    square, marker = spec.square_m * 1000 * PX_PER_MM, spec.marker_m * 1000 * PX_PER_MM
    if abs(square - round(square)) > 1e-6 or abs(marker - round(marker)) > 1e-6 or round(square - marker) % 2:
        raise ConfigError(
            "board", expected="sides in whole tenths of a millimetre, square minus marker in even ones",
            got=f"{square / PX_PER_MM:g} and {marker / PX_PER_MM:g} mm", hint="E.g. 36 and 27 mm.",
        )  # fmt: skip
    size = (spec.columns * round(square), spec.rows * round(square))
    if size[0] > wide - 100 or size[1] > high - 220:
        raise ConfigError(
            "board", expected=f"at most {wide / 10 - 10:g} x {high / 10 - 22:g} mm on {page}",
            got=f"{size[0] / 10:g} x {size[1] / 10:g} mm", hint="Smaller squares, fewer of them, or a larger page.",
        )  # fmt: skip
    sheet = np.full((high, wide), 255, np.uint8)
    left, top = (wide - size[0]) // 2, (high - 120 - size[1]) // 2
    sheet[top : top + size[1], left : left + size[0]] = spec.board().generateImage(size)
    line = top + size[1] + 70
    cv2.line(sheet, (left, line), (left + 100 * PX_PER_MM, line), 0, 3)
    for end in (left, left + 100 * PX_PER_MM):
        cv2.line(sheet, (end, line - 20), (end, line + 20), 0, 3)
    notes = ("The bar is 100 mm long. Print at 100 %, no fit to page; glue it flat; measure again.", spec.text())
    for row, note in enumerate(notes):
        origin = (left + 100 * PX_PER_MM + 40, line - 15 + 45 * row)
        cv2.putText(sheet, note, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.85, 0, 2, cv2.LINE_AA)
    return sheet


def write_page(path: Path, spec: BoardSpec, *, page: str) -> None:
    """Write the page as PDF or PNG (its suffix) with its true size, and the board beside it as JSON.

    Raises:
        ConfigError: another suffix, or see `draw_page`.
    """
    from PIL import Image

    if path.suffix.lower() not in (".pdf", ".png"):
        raise ConfigError(str(path), expected="a name that ends in .pdf or .png", got=path.suffix, hint="")
    sheet = Image.fromarray(draw_page(spec, page=page)).convert("1", dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".pdf":
        sheet.save(path, resolution=DPI)
    else:
        sheet.save(path, dpi=(DPI, DPI))
    path.with_suffix(".json").write_text(json.dumps(spec.to_json(), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Sight:
    """What was found of the board in one picture.

    Attributes:
        name: of the picture.
        ids: of the inner corners.
        corners: pixels.
        points: the same corners in the board's frame, m.
        marker_ids: of the markers.
        markers: their four corners, pixels.
    """

    name: str
    ids: Int64[Array, " N"]
    corners: Float64[Array, "N 2"]
    points: Float64[Array, "N 3"]
    marker_ids: Int64[Array, " M"]
    markers: Float64[Array, "M 4 2"]

    def is_usable(self) -> bool:
        """Whether it has enough corners, and not all on one line."""
        if len(self.ids) < FEWEST_CORNERS:
            return False
        spread = np.linalg.svd(self.points[:, :2] - self.points[:, :2].mean(axis=0), compute_uv=False)
        return bool(spread[1] > 0.05 * spread[0])


def find_board(picture: UInt8[Array, "H W"], spec: BoardSpec, *, name: str) -> Sight:
    """Find markers and inner corners in a grey picture; none is no error.

    OpenCV 4.11's CharucoDetector puts every corner half a pixel too far right and down, measured on rendered boards and
    told by cv2.cornerSubPix on the same pictures, so that the latter has the last word.
    """
    import cv2

    board = spec.board()
    corners, ids, markers, marker_ids = cv2.aruco.CharucoDetector(board).detectBoard(picture)
    outlines = np.asarray(markers if markers is not None else (), np.float64).reshape(-1, 4, 2)
    found, numbers = np.zeros((0, 2)), np.zeros(0, np.int64)
    if ids is not None and len(ids):
        numbers = ids.reshape(-1).astype(np.int64)
        side = np.linalg.norm(outlines - np.roll(outlines, 1, axis=1), axis=2).mean()
        gap = side * (spec.square_m / spec.marker_m - 1) / 2  # the window must not reach a marker
        half = int(np.clip(gap, *WINDOWS))
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-4)
        first = np.asarray(corners, np.float32).reshape(-1, 1, 2) - np.float32(0.5)
        found = cv2.cornerSubPix(picture, first, (half, half), (-1, -1), criteria).reshape(-1, 2).astype(np.float64)
    return Sight(
        name=name, ids=numbers, points=np.asarray(board.getChessboardCorners(), np.float64)[numbers].reshape(-1, 3),
        corners=found, markers=outlines,
        marker_ids=np.zeros(0, np.int64) if marker_ids is None else marker_ids.reshape(-1).astype(np.int64),
    )  # fmt: skip


def read_pictures(folder: Path) -> dict[str, UInt8[Array, "H W"]]:
    """Every picture of a folder in the order of names, grey.

    Raises:
        DataError: no picture, one that can't be read, or pictures of several sizes.
    """
    import cv2

    paths = sorted(
        p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
    )
    if not paths:
        raise DataError(str(folder), expected="PNG or JPEG pictures", got="none", hint="Check --images.")
    pictures: dict[str, np.ndarray] = {}
    for path in paths:
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise DataError(str(path), expected="a picture", got="a file that OpenCV can't read", hint="Remove it.")
        first = next(iter(pictures.values()), picture)
        if picture.shape != first.shape:
            raise DataError(
                str(path), expected=f"{first.shape[1]} x {first.shape[0]} like the others",
                got=f"{picture.shape[1]} x {picture.shape[0]}", hint="A calibration is for one resolution.",
            )  # fmt: skip
        pictures[path.name] = picture
    return pictures


def find_boards(pictures: Mapping[str, UInt8[Array, "H W"]], spec: BoardSpec) -> list[Sight]:
    """The board in every picture.

    Raises:
        DataError: the markers are there, but not where this board has them: another board.
    """
    sights = [find_board(picture, spec, name=name) for name, picture in pictures.items()]
    check_layout(sights, spec)
    return sights


def check_layout(sights: Sequence[Sight], spec: BoardSpec) -> None:
    """Refuse another board than the one that was named: unknown markers, or markers in other places.

    Raises:
        DataError: in most pictures with markers; with the number of columns that would fit.
    """
    seen = [sight for sight in sights if len(sight.marker_ids) >= MARKERS_FOR_LAYOUT]
    if not seen:
        return
    errors = [_layout_error(sight, spec) for sight in seen]
    wrong = sum(error > LAYOUT_ERROR for error in errors)
    if wrong * 2 <= len(seen):
        return
    largest = max(int(sight.marker_ids.max()) for sight in seen)
    raise DataError(
        "board", expected=spec.text(),
        got=f"markers in other places in {wrong} of {len(seen)} pictures (largest number {largest})",
        hint=_layout_hint(seen, spec),
    )  # fmt: skip


def _layout_error(sight: Sight, spec: BoardSpec) -> float:
    """Root mean square distance of marker corners from where a flat board would have them, in sides of a marker."""
    import cv2

    places = np.asarray(spec.board().getObjPoints(), np.float64)[:, :, :2]
    if sight.marker_ids.max() >= len(places):
        return float("inf")
    given, found = places[sight.marker_ids].reshape(-1, 2), sight.markers.reshape(-1, 2)
    homography, _ = cv2.findHomography(given, found)
    if homography is None:
        return float("inf")
    there = cv2.perspectiveTransform(given[None], homography)[0]
    side = np.linalg.norm(sight.markers - np.roll(sight.markers, 1, axis=1), axis=2).mean()
    return float(np.sqrt(((there - found) ** 2).sum(axis=1).mean()) / side)


def _layout_hint(sights: Sequence[Sight], spec: BoardSpec) -> str:
    """Which number of columns fits, tried out; in the legacy pattern it matters whether the rows are even."""
    for legacy, rows in ((False, 16), (True, 16), (True, 15)):
        for columns in range(3, 16):
            other = BoardSpec(columns, rows, spec.square_m, spec.marker_m, _largest(spec.dictionary), legacy)
            if np.median([_layout_error(sight, other) for sight in sights]) < LAYOUT_ERROR / 2:
                pattern = " in the legacy pattern (--legacy)" if legacy and not spec.legacy else ""
                return f"A board of {columns} columns{pattern} fits these pictures: correct --columns and --rows."
    return "Name the printed board: --board FILE, or --columns, --rows, --square-mm, --marker-mm, --dictionary."


def _largest(dictionary: str) -> str:
    """The largest dictionary whose first markers are those of this one."""
    return f"{dictionary.rpartition('_')[0]}_1000" if dictionary.count("_") == 2 else dictionary
