"""A stand-in for VLMEvalKit's checkout, which is on no package index: its interface and its traps, in our own words.

It has what VLMEvalKit has at commit e8e78f05, as far as a model meets it: a table of constructors, a base class, sets
of questions that ask in a layout of their own, and a program that makes the model by its name, asks it once a question,
scores the answers, writes what came of it into `status.json`, and survives whatever a data set raises.
"""

import csv
import json
import textwrap
from pathlib import Path

FILES = {
    "vlmeval/__init__.py": "",
    "vlmeval/config.py": "supported_VLM = {}\n",
    "vlmeval/smp.py": """
        import pandas as pd

        def load(path):
            return pd.read_csv(path, sep="\\t")
        """,
    "vlmeval/vlm/__init__.py": "",
    "vlmeval/vlm/base.py": """
        import base64, hashlib
        from pathlib import Path

        class BaseModel:
            INTERLEAVE = False
            allowed_types = ["text", "image", "video"]

            def __init__(self):
                self.dump_image_func = None

            def set_dump_image(self, dump_image_func):
                self.dump_image_func = dump_image_func

            def dump_image(self, line, dataset):
                return self.dump_image_func(line)

            def use_custom_prompt(self, dataset):
                return False

            def generate(self, message, dataset=None):
                assert all(part["type"] in self.allowed_types for part in message)
                for part in message:
                    if part["value"].startswith("data:image/png;base64,"):
                        data = base64.b64decode(part["value"].partition(",")[2])
                        path = Path(hashlib.md5(data).hexdigest() + ".png")
                        path.write_bytes(data)
                        part["value"] = str(path)
                return self.generate_inner(message, dataset)
        """,
    "vlmeval/dataset.py": """
        import ast, base64, json, os
        from pathlib import Path
        import pandas as pd

        class Messages:
            MODALITY = "VIDEO"

            def __init__(self, name):
                held = json.loads(Path(name + ".json").read_text())
                self.dataset_name, self.messages = held["dataset"] or name, held["messages"]
                self.nframe, self.fps, self.score = held["nframe"] or 0, held["fps"] or -1, held["score"]
                self.data = pd.DataFrame({"index": range(len(self.messages))})

            def build_prompt(self, line):
                return self.messages[line["index"]]

            def evaluate(self, eval_file, **judge):
                if self.score is None:
                    raise RuntimeError("no judge\\nat all")
                path = Path(eval_file)
                path.with_name(path.stem + "_rating.json").write_text(json.dumps({"overall": [1, 2, self.score]}))
                return {"overall": self.score}

        class CustomVQADataset:
            MODALITY = "IMAGE"

            def __init__(self, name):
                self.dataset_name = name
                self.data = pd.read_csv(Path(os.environ["LMUData"]) / (name + ".tsv"), sep="\\t")
                cells = [ast.literal_eval(c) if c.startswith("[") else c for c in self.data["image"]]
                self.data["image"] = pd.Series(cells, dtype=object)

            def dump_image(self, line):
                cells = line["image"] if isinstance(line["image"], list) else [line["image"]]
                paths = [Path(f"{self.dataset_name}_{line['index']}_{n}.png") for n in range(len(cells))]
                for path, cell in zip(paths, cells):
                    if not path.exists():
                        path.write_bytes(base64.b64decode(cell))
                return [str(path) for path in paths]

            def build_prompt(self, line):
                asked = "Question: " + line["question"] + "\\nOptions:\\n"
                asked += "".join(f"{letter}. {line[letter]}\\n" for letter in "ABCD" if letter in line)
                images = [dict(type="image", value=path) for path in self.dump_image(line)]
                return [*images, dict(type="text", value=asked + "Please select the correct answer. \\n")]

            def evaluate(self, eval_file, **judge):
                raise NotImplementedError

        class CustomMCQDataset(CustomVQADataset):
            def evaluate(self, eval_file, **judge):
                table, path = pd.read_csv(eval_file, sep="\\t"), Path(eval_file)
                found = pd.DataFrame({"split": ["none"], "Overall": [(table.prediction == table.answer).mean()]})
                found.to_csv(path.with_name(path.stem + "_acc.csv"), index=False)
                return found

        def build_dataset(name):
            if Path(name + ".json").exists():
                return Messages(name)
            path = Path(os.environ.get("LMUData", ".")) / (name + ".tsv")
            if not path.exists():
                return None
            return (CustomMCQDataset if "A" in pd.read_csv(path, sep="\\t") else CustomVQADataset)(name)
        """,
    "run.py": """
        import argparse, json, os
        from pathlib import Path
        from vlmeval.config import supported_VLM
        from vlmeval.dataset import build_dataset

        def load_env():
            for line in Path(".env").read_text().splitlines() if Path(".env").exists() else []:
                name, _, value = line.partition("=")
                os.environ[name] = value

        def build_dataset_from_cli(name, config, kwargs):
            return build_dataset(name, **kwargs)

        def infer(model, name, data, asked):
            kwargs = {"use_vllm": False} if "Qwen2.5-VL" in name else {}
            model = supported_VLM[name](**kwargs) if isinstance(model, str) else model
            if data.MODALITY == "IMAGE":
                model.set_dump_image(data.dump_image)
            found = []
            for _, line in data.data.iterrows():
                if data.MODALITY == "VIDEO":
                    for sampling in ("nframe", "fps"):
                        if getattr(model, sampling):
                            own = getattr(data, sampling)
                            setattr(model, sampling, own if own > 0 else None)
                is_custom = data.MODALITY == "IMAGE" and model.use_custom_prompt(data.dataset_name)
                struct = model.build_prompt(line, dataset=data.dataset_name) if is_custom else data.build_prompt(line)
                found.append(str(model.generate(message=struct, dataset=data.dataset_name)))
            return model, found

        def main():
            parser = argparse.ArgumentParser()
            parser.add_argument("--data", nargs="+")
            parser.add_argument("--model", nargs="+")
            parser.add_argument("--work-dir")
            parser.add_argument("--judge")
            parser.add_argument("--mode", default="all", choices=["all", "infer", "eval"])
            args = parser.parse_args()
            name, model = args.model[0], args.model[0]
            root = Path(os.environ.get("MMEVAL_ROOT", args.work_dir)) / name
            run = root / f"T20260101-{len(list(root.glob('T*'))):06d}"
            run.mkdir(parents=True)
            statuses = {}
            for asked in args.data:
                statuses[asked] = status = {"status": "pending"}
                try:
                    data = build_dataset_from_cli(asked, {}, {})
                    if data is None:
                        status |= {"status": "done", "skip_reason": "invalid_dataset"}
                        continue
                    model, found = infer(model, name, data, asked)
                    path = run / f"{name}_{asked}.tsv"
                    data.data["prediction"] = found
                    data.data.drop(columns="image", errors="ignore").to_csv(path, sep="\\t", index=False)
                    if args.mode == "infer":
                        status |= {"status": "done", "skip_reason": "mode_infer"}
                        continue
                    data.evaluate(str(path), model=args.judge)
                    status |= {"status": "done", "metrics": {"some": 1}}
                except Exception as error:
                    print("the stand-in runs its next data set after", type(error).__name__, error)
                    status |= {"status": "done", "error_message": str(error)}
                finally:
                    (run / "status.json").write_text(json.dumps({"datasets": statuses}))
        """,
}


def write_checkout(folder: Path) -> None:
    """Write the stand-in's files into a folder."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def write_messages(
    folder: Path,
    name: str,
    *messages: list[dict],
    nframe: int | None = None,
    fps: float | None = None,
    dataset: str | None = None,
    score: str | None = "50%",
) -> None:
    """Write a data set of ready questions.

    Args:
        folder: the current one of the run.
        name: under `--data`.
        messages: one a question.
        nframe: of its videos.
        fps: of its videos.
        dataset: the harness's own name for it; None: the same.
        score: in its score file; None: the scorer fails.
    """
    held = {"messages": messages, "nframe": nframe, "fps": fps, "dataset": dataset, "score": score}
    (folder / f"{name}.json").write_text(json.dumps(held))


def write_table(folder: Path, name: str, rows: list[dict]) -> Path:
    """Write a table as `avis.garden.make` does; the columns are the first row's."""
    path = folder / f"{name}.tsv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return path


def predictions(folder: Path, data: str) -> list[str]:
    """Return what the scorers got of a data set, in the newest run of a model's folder."""
    path = max(folder.glob(f"T*/{folder.name}_{data}.tsv"))
    with path.open(newline="") as file:
        return [row["prediction"] for row in csv.DictReader(file, delimiter="\t")]
