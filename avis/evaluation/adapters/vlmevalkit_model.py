"""What VLMEvalKit meets of AVIS: the model that it asks, and the scorer of free-answer tables, which it leaves open.

The launcher `avis.evaluation.adapters.vlmevalkit` registers both. Read in VLMEvalKit at commit e8e78f05.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from avis.config import AvisConfig
from avis.evaluation.adapters.asker import Asker
from avis.messages import check_item_keys
from avis.prompts import with_options
from avis.video import open_video, sample_frame_indices

_TOKEN = 28 * 28  # pixels of one visual token
_IMAGE_PIXELS = (1280 * _TOKEN, 16384 * _TOKEN)
_FRAME_PIXELS = (128 * _TOKEN, 768 * _TOKEN)
_VIDEO_PIXELS = 24576 * _TOKEN
# Both are numbers, as the harness replaces only what is one. A data set that says neither gets the rate.
_FPS, _NFRAME = 2.0, 128
_GARDEN_TABLE = re.compile(r"garden_\w+_(mcq|vqa)")  # as `avis.garden.make` names them

# The scorers get this for an abstention, so that they guess no answer from a thought that was cut off. They take it for
# no option, yes, no or number: it is their own letter for "none of the options".
ABSTAINED = "Z"
# What the harness itself writes for a question without an answer: scored as wrong, and asked again with `--reuse`.
FAILED = "Failed to obtain answer via API."


@dataclass
class Progress:
    """What launcher and model share of a run under way.

    Attributes:
        data: the name under `--data` of the set that is asked. The harness gives the model another one for sets of
            videos: the same one however they are sampled, or that of a part.
        failed: how many questions this process could not answer.
    """

    data: str | None = None
    failed: int = 0


class Avis:
    """VLMEvalKit's model interface over `AvisPipeline`. `register` gives it the harness's `BaseModel` as its base."""

    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(self, config: AvisConfig, progress: Progress | None = None, use_vllm: bool = False, **asker: Any):
        """Load the model.

        Args:
            config: for every question. Pixel bounds that are None are the paper's.
            progress: of the run; None: the harness's own names of data sets are used.
            use_vllm: the harness sets it for models with Qwen2.5-VL in their name; not used.
            **asker: the other arguments of `Asker`.
        """
        super().__init__()
        self.avis_config, self.progress = config, progress or Progress()
        self.asker = Asker("vlmevalkit", config=config, **asker)
        self.fps: float | None = _FPS
        self.nframe: int | None = _NFRAME

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """Return whether `build_prompt` makes a data set's questions: the garden's tables, and no other."""
        return _GARDEN_TABLE.fullmatch(dataset or "") is not None

    def build_prompt(self, line: Any, dataset: str | None = None) -> list[dict]:
        """Return a question as `avis.questions` puts it, which is how the garden's models were trained.

        Args:
            line: of the table, a `pandas.Series`.
            dataset: its name.
        """
        import pandas  # which the harness needs

        names = ("hint", *ascii_uppercase)
        given = {name: _as_written(line[name]) for name in names if name in line and pandas.notna(line[name])}
        hint = given.pop("hint", None)
        text = line["question"] if hint is None else f"{hint}\n{line['question']}"
        cells = line["image"] if isinstance(line["image"], list) else [line["image"]]
        # The harness names the files of these by their content. Its own `dump_image` names them by the row, and finds
        # there what an earlier table of the same name has left.
        images = [{"type": "image", "value": f"data:image/png;base64,{cell}"} for cell in cells]
        return [*images, {"type": "text", "value": with_options(text, given)}]

    def generate_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """Return the voted answer to one question, as the scorers are to see it.

        Args:
            message: parts `{"type": "text", "image" or "video", "value": text or path}`, in order.
            dataset: its name; the launcher's is used where there is one.
        """
        # MVBench begins the answer itself ("Best option:("), which nothing that thinks first can continue. All other
        # parts are the user's, a system role's too, as in the harness's own Qwen2.5-VL.
        parts = [part for part in message if part.get("role") != "assistant"]
        fps, nframe = self._take_sampling()
        # The harness gives no number of a question, so its content names it: without folders, which differ between
        # machines, and with the number of frames, which the name of a data set of videos does not always say.
        named: list = [[p["type"], p["value"] if p["type"] == "text" else _name_and_size(p["value"])] for p in parts]
        if any(part["type"] == "video" for part in parts):
            named.append([fps, nframe])
        if any(map(_own_keys, parts)):
            named.append([_own_keys(part) for part in parts])
        id = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
        key = {"dataset": self.progress.data or dataset or "", "id": id}
        record = self.asker.ask(key, int(id, 16), partial(self._query, parts, fps, nframe))
        if "error" in record:
            self.progress.failed += 1
            return FAILED
        return record.get("answer") or ABSTAINED

    def _take_sampling(self) -> tuple[float | None, int | None]:
        """Return (fps, nframe) of this question, one of them None.

        Before each question the harness replaces one by its data set's and sets the other to None: for good, as it asks
        the next data set with the same model and finds None there. So both are numbers again afterwards.
        """
        fps, nframe = self.fps, self.nframe
        if fps is None and nframe is None:
            fps = _FPS
        self.fps, self.nframe = fps or _FPS, nframe or _NFRAME
        return fps, None if fps is not None else nframe

    def _query(self, parts: list[dict], fps: float | None, nframe: int | None) -> tuple[list[dict], AvisConfig]:
        # Some data sets give a part keys of qwen-vl-utils, as `nframes`.
        content = [{"type": part["type"], part["type"]: part["value"]} | _own_keys(part) for part in parts]
        videos = [part for part in parts if part["type"] == "video"]
        return [{"role": "user", "content": content}], self.config_for(
            [part["value"] for part in videos], fps, nframe, [_own_keys(part) for part in videos]
        )

    def config_for(
        self, videos: list[str], fps: float | None, nframe: int | None, keys: list[dict] | None = None
    ) -> AvisConfig:
        """Return the configuration of a question: with its pixel bounds, and how its videos are sampled.

        Args:
            videos: files that the question shows; images are shown when there are none.
            fps: frames a second of its videos; None: `nframe` is given.
            nframe: frames of each of its videos.
            keys: of each video its own, which replace the two above.

        Raises:
            ValueError: a video that cannot be read, or a key that cannot be honoured.
        """
        least, most = _IMAGE_PIXELS
        sampling: dict[str, Any] = {}
        if videos:
            found = [open_video(path) for path in videos]
            sampling = {"fps": fps}
            if nframe is not None:
                # As in the harness: a video with fewer frames shows those it has.
                available = [max(len(video.times), 2) // 2 * 2 for video in found]
                sampling = {"num_frames": min(nframe, *available)}
            requests = [_sampling(own, sampling) for own in keys or [{}] * len(videos)]
            count = max(
                len(sample_frame_indices(video, **request)[0]) for video, request in zip(found, requests, strict=True)
            )
            least = _FRAME_PIXELS[0]
            most = min(_FRAME_PIXELS[1], max(_VIDEO_PIXELS * 2 // count, int(1.05 * least)))
        set_least, set_most = self.avis_config.min_pixels, self.avis_config.max_pixels
        least = set_least if set_least is not None else min(least, set_most or least)
        most = set_most if set_most is not None else max(most, least)
        return replace(self.avis_config, min_pixels=least, max_pixels=most, **sampling)


def _own_keys(part: dict) -> dict[str, Any]:
    """Return the keys of a part of a harness's message that are no part of its form."""
    return {key: value for key, value in part.items() if key not in ("type", "value", "role")}


def _sampling(keys: dict, default: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `sample_frame_indices` for a video with these keys of its own. Raises ValueError."""
    values = check_item_keys("video", None, keys)
    names = {"fps": "fps", "nframes": "num_frames", "video_start": "video_start", "video_end": "video_end"}
    own = {names[key]: value for key, value in values.items() if key in names}
    return own if own.keys() & {"fps", "num_frames"} else default | own


def _as_written(value: Any) -> Any:
    """Return a cell of a table, without the ".0" that pandas gives whole numbers in a column with empty cells."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _name_and_size(path: str) -> list[str | int | None]:
    """Return what names a file in a question's key: a table's next version may name another image as this one's."""
    file = Path(path)
    return [file.name, file.stat().st_size if file.is_file() else None]


def exact_match(self: Any, eval_file: str, **judge: Any) -> Any:
    """Score a free-answer table: an answer is right when it is the reference but for case and outer white space.

    It is put in place of `CustomVQADataset.evaluate`, which VLMEvalKit leaves open (NotImplementedError).

    Args:
        self: the harness's data set; not used.
        eval_file: the table with a column of predictions, as the harness wrote it.
        **judge: not used.

    Returns:
        A `pandas.DataFrame` of one line, the share that is right: overall, and of each category. It is also written as
        `<eval_file>_acc.csv`.

    Raises:
        ValueError: the table has no references.
    """
    import pandas
    from vlmeval.smp import load

    table = load(eval_file)
    if "answer" not in table:
        raise ValueError("the table has no column named answer")
    columns = (table["prediction"], table["answer"])
    forms = [[str(_as_written(value)).strip().lower() for value in column] for column in columns]
    right = pandas.Series([given == due for given, due in zip(*forms, strict=True)], index=table.index, dtype=float)
    shares = {"Overall": right.mean()}
    if "category" in table:
        shares |= right.groupby(table["category"].astype(str)).mean().to_dict()
    result = pandas.DataFrame([shares])
    path = Path(eval_file)
    result.to_csv(path.with_name(f"{path.stem}_acc.csv"), index=False)
    return result
