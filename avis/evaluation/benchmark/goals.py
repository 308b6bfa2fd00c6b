"""The goals of a sweep: what was to be reached, what was measured, and whether it is reached::

judge_goals(document)  # [{"goal": .., "wanted": .., "at_least": .., "measured": .., "reached": ..}, ..]
"""

from typing import Any

# Words of the first published documents, by what they are called today.
_RENAMED = {"the tower's": "the vision encoder's", "tower over": "vision encoder over", "one picture": "one image"}
_QUERY_GOALS = "K = 5 at rho = {rho:g} over upstream, N = 1024"


def current_words(text: str) -> str:
    """Return a goal or an assumption of a published document in today's words.

    >>> current_words("tower over upstream's loop, N = 1024, rho = 0.0")
    "vision encoder over upstream's loop, N = 1024, rho = 0.0"
    """
    for old, new in _RENAMED.items():
        text = text.replace(old, new)
    return text


def judge_goals(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the goals that a document's measurements can judge, each judged by its median.

    Args:
        document: of `summary.summarize`, with "config", "points" and "stages", and where they were measured "latency"
            and "video_memory".
    """
    judge = _Judge(document)
    judge.judge_stages()
    judge.judge_cache()
    judge.judge_queries()
    judge.judge_latency()
    judge.judge_video_memory()
    worst = max((abs(error) for point in document["points"] for error in point["error"].values()), default=None)
    judge.add("largest error of the cost model", worst, 0.25, at_least=False)
    return judge.found


class _Judge:
    def __init__(self, document: dict[str, Any]):
        self.document, self.config = document, document["config"]
        self.points = {(point["visual_tokens"], point["rho"], point["k"]): point for point in document["points"]}
        self.found: list[dict[str, Any]] = []

    def add(self, goal: str, measured: float | None, wanted: float, at_least: bool) -> None:
        if measured is None:
            return
        reached = measured >= wanted if at_least else measured <= wanted
        line = {"goal": goal, "wanted": wanted, "at_least": at_least, "measured": measured, "reached": reached}
        self.found.append(line)

    def judge_stages(self) -> None:
        for stage in self.document["stages"]:
            where = f"N = {stage['visual_tokens']}, rho = {stage['rho']}"
            if stage["visual_tokens"] == 4096 and "scoring" in stage:
                share = stage["scoring_share_of_tower"]["median"]
                self.add(f"scoring over the vision encoder's time, {where}", share, 0.01, at_least=False)
            if stage["rho"] == 0.75 and stage.get("prefill_is_compute_bound"):
                off = abs(stage["prefill_over_its_flops"]["median"] - 1)
                self.add(f"prefill off what its FLOPs predict from rho = 0, {where}", off, 0.15, at_least=False)
            if stage["rho"] == 0 and stage["visual_tokens"] >= 1024 and self.config["device"] == "cpu":
                gain = stage["windows_batched_gain"]["median"]
                self.add(f"vision encoder over upstream's loop, {where}", gain, 1.5, at_least=True)
        scored = {s["visual_tokens"]: s["scoring"]["median"] for s in self.document["stages"] if s["rho"] == 0.75}
        if {1024, 4096} <= scored.keys():
            growth = scored[4096] / scored[1024] / 4
            self.add("scoring's time a token at N = 4096 over that at N = 1024", growth, 1.0, at_least=False)

    def judge_cache(self) -> None:
        """Judge the cache at a prefix of 4,096 tokens; an image of 4,096 visual tokens has a few more."""
        one, seven = self.points.get((4096, 0.0, 1)), self.points.get((4096, 0.0, 7))
        if one and seven and self.config["new_tokens"] == 128:
            ratio = seven["cache_bytes"] / one["cache_bytes"]
            self.add("cache bytes at K = 7 over K = 1, N = 4096", ratio, 1.25, at_least=False)

    def judge_queries(self) -> None:
        one, seven = self.points.get((1024, 0.0, 1)), self.points.get((1024, 0.0, 7))
        growth = seven["whole"]["median"] / one["whole"]["median"] if one and seven else None
        if self.config["device"] == "cpu":
            if self.config["geometry"] == "mid" and self.config["new_tokens"] == 64:
                self.add(_QUERY_GOALS.format(rho=0), self._over_upstream(0.0), 2.5, at_least=True)
                self.add(_QUERY_GOALS.format(rho=0.75), self._over_upstream(0.75), 3.5, at_least=True)
                self.add("time of K = 7 over K = 1, N = 1024", growth, 2.0, at_least=False)
        elif self.config["geometry"] == "7b":
            for (visual_tokens, rho, k), point in self.points.items():
                if visual_tokens == 1024 and rho == 0:
                    share = point["of_floor"]["decode_step"]
                    self.add(f"floor over a step's time, N = 1024, K = {k}", share, 0.7, at_least=True)
            self.add("time of K = 7 over K = 1, N = 1024", growth, 1.15, at_least=False)
            self.add(_QUERY_GOALS.format(rho=0.75), self._over_upstream(0.75), 5.0, at_least=True)

    def _over_upstream(self, rho: float) -> float | None:
        ratio = self.points.get((1024, rho, 5), {}).get("faster_than_upstream")
        return ratio["median"] if ratio else None

    def judge_latency(self) -> None:
        """Judge the rows that prune by the paper's ratios, which are of a 7B on a GPU."""
        if self.config["device"] == "cpu" or self.config["geometry"] != "7b" or "latency" not in self.document:
            return
        for row in self.document["latency"]["rows"][2:]:
            goal = f"{row['setting']} over vanilla, {self.document['latency']['pairs']} pairs"
            self.add(goal, row["faster_than_vanilla"], row["paper"], at_least=True)

    def judge_video_memory(self) -> None:
        video = self.document.get("video_memory", {})
        if video.get("visual_tokens") != 16384:
            return
        for key, scope in (("of_least", "the video's pixels aside"), ("of_least_with_pixels", "with its pixels")):
            goal = f"peak memory, {scope}, over weights, pruned cache and one layer, N = 16384, rho = 0.75"
            self.add(goal, video.get(key), 1.3, at_least=False)
