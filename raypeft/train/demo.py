"""The demo's inputs: a tiny base, adapters that help, one that harms, one that does not fit.

Decides what is trained on what, so that the sweep over it has something to find: the base has read
the valley's stories and met each question in one wording only; the adapters have learned to answer
every wording, about people other than those they are evaluated on. How to train is decided in
`raypeft.train.base` and `raypeft.train.fine_tune`, how to evaluate in the rest of raypeft.
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from raypeft.core.records import Json
from raypeft.core.yaml_text import write_yaml
from raypeft.train.artifact import content_of, is_intact, making
from raypeft.train.demo_tasks import TASKS, task_files
from raypeft.train.recipes import (
    AdapterRecipe,
    BaseRecipe,
    Example,
    TrainerSettings,
    adapter_seal,
    base_seal,
    texts_digest,
)
from raypeft.train.world import Valley, examples, make_valley, stories

BASE = "valley"
"""The base's name in the sweep."""
WRONG_LABELS = "wrong-labels"
MISFIT = "misfit"
MISFIT_OF = "lora-r4"
"""The adapter whose tensors the misfit holds under foreign names."""
FOREIGN_NAMES = (".model.layers.", ".transformer.h.")
"""What Llama calls its layers, and what models of GPT's family call theirs."""

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# One thread: the matrices are too small to share, and where other processes want the cores too,
# two threads that wait for each other took ten times as long as one.
_BASE_RECIPE = BaseRecipe(
    trainer=TrainerSettings(
        steps=1200, batch_size=8, learning_rate=4e-3, warmup_steps=30, threads=1
    ),
    num_layers=3,
)
_ADAPTER_TRAINER = TrainerSettings(
    steps=100, batch_size=16, learning_rate=5e-3, weight_decay=0.0, warmup_steps=5, threads=1
)


def _lora(rank: int, **settings: Json) -> AdapterRecipe:
    lora = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": _LINEAR}
    return AdapterRecipe(peft={**lora, **settings}, trainer=_ADAPTER_TRAINER)


_IA3 = AdapterRecipe(
    peft={
        "peft_type": "IA3",
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    # IA3 has a few hundred weights that scale what is there: it takes larger steps.
    trainer=replace(_ADAPTER_TRAINER, learning_rate=2e-2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """How large the demo is. The defaults take about two minutes on two cores.

    Attributes:
        base: The base.
        adapters: The adapters that are trained, by name.
        quiz_share: Quizzes in the base's texts, as a share of them.
        readings: How often the base's texts tell every fact, each time in other words.
        num_documents: Documents of each task.
    """

    base: BaseRecipe = _BASE_RECIPE
    adapters: Mapping[str, AdapterRecipe] = field(
        default_factory=lambda: {
            "lora-r4": _lora(4),
            "lora-r16": _lora(16),
            "dora-r8": _lora(8, use_dora=True),
            "ia3": _IA3,
            WRONG_LABELS: _lora(16),
        }
    )
    quiz_share: float = 0.1
    readings: int = 20
    num_documents: int = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoInputs:
    """Where the demo's inputs lie.

    Attributes:
        folder: All of them.
        base: The base's folder.
        adapters: The adapters' folders by name, the misfit among them.
        tasks: The folder to include in lm-eval's tasks.
        sweep: The sweep file.
    """

    folder: Path
    base: Path
    adapters: Mapping[str, Path]
    tasks: Path
    sweep: Path


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the making of one part is.

    Attributes:
        part: Its name: the base's or an adapter's.
        step: Optimizer steps done.
        steps: Of how many.
        loss: The loss of the last step.
    """

    part: str
    step: int
    steps: int
    loss: float


OnProgress = Callable[[Progress], None]


def build_demo(
    folder: Path,
    *,
    seed: int = 0,
    settings: DemoSettings | None = None,
    on_progress: OnProgress | None = None,
) -> DemoInputs:
    """Make whatever of the demo's inputs is missing, damaged or made from other settings.

    A second call finds everything in place and imports no torch.

    Args:
        folder: Where to. The sweep file names it in full, so that it can be run from anywhere.
        seed: Decides the valley, the training and the tasks.
        settings: How large the demo is.
        on_progress: Called after each optimizer step.
    """
    builder = _Builder(folder, seed, settings or DemoSettings(), on_progress)
    builder.make_base()
    for name in builder.settings.adapters:
        builder.make_adapter(name)
    builder.make_misfit()
    builder.make_tasks()
    builder.make_sweep()
    return builder.inputs


class _Builder:
    """Makes the parts of one demo, each only if it is not there already."""

    def __init__(
        self, folder: Path, seed: int, settings: DemoSettings, on_progress: OnProgress | None
    ) -> None:
        self.seed = seed
        self.settings = settings
        self.on_progress = on_progress
        self.valley: Valley = make_valley(seed)
        names = [*settings.adapters, MISFIT]
        folder = folder.absolute()
        self.inputs = DemoInputs(
            folder=folder,
            base=folder / "base",
            adapters={name: folder / "adapters" / name for name in names},
            tasks=folder / "tasks",
            sweep=folder / "demo.yaml",
        )

    def make_base(self) -> None:
        """Train the base."""
        rng = random.Random(f"stories-{self.seed}")
        texts = [
            text
            for _ in range(self.settings.readings)
            for text in stories(self.valley.known, rng, quiz_share=self.settings.quiz_share)
        ]
        recipe = self.settings.base
        recipe = replace(recipe, trainer=replace(recipe.trainer, seed=self.seed))
        if is_intact(self.inputs.base, base_seal(recipe, texts)):
            return
        # Importing torch takes seconds, and most calls find everything made.
        from raypeft.train.base import train_base

        train_base(
            self.inputs.base,
            recipe=recipe,
            texts=texts,
            on_step=self._on_step(BASE, recipe.trainer),
        )

    def make_adapter(self, name: str) -> None:
        """Fine-tune one adapter."""
        recipe = self.settings.adapters[name]
        recipe = replace(recipe, trainer=replace(recipe.trainer, seed=self.seed))
        lessons = self._lessons(correct=name != WRONG_LABELS)
        folder = self.inputs.adapters[name]
        if is_intact(folder, adapter_seal(recipe, lessons, self.inputs.base)):
            return
        # As in make_base.
        from raypeft.train.fine_tune import fine_tune

        fine_tune(
            self.inputs.base,
            folder,
            recipe=recipe,
            examples=lessons,
            on_step=self._on_step(name, recipe.trainer),
        )

    def make_misfit(self) -> None:
        """Copy an adapter and give its tensors the names they would have in another model."""
        source = self.inputs.adapters[MISFIT_OF]
        folder = self.inputs.adapters[MISFIT]
        recipe = {"kind": "misfit", "source": content_of(source), "names": FOREIGN_NAMES}
        if is_intact(folder, recipe):
            return
        from safetensors.numpy import load_file, save_file

        with making(folder, recipe) as partial:
            shutil.copy(source / "adapter_config.json", partial)
            tensors = load_file(source / "adapter_model.safetensors")
            renamed = {name.replace(*FOREIGN_NAMES): value for name, value in tensors.items()}
            save_file(renamed, partial / "adapter_model.safetensors", {"format": "pt"})

    def make_tasks(self) -> None:
        """Write the tasks."""
        folder = self.inputs.tasks
        count = self.settings.num_documents
        files = task_files(
            folder,
            documents=self.valley.strangers[:count],
            fewshot=self.valley.known[: max(8, count // 4)],
            seed=self.seed,
        )
        # They take no time to think up: their whole text is the recipe.
        recipe = {"kind": "tasks", "digest": texts_digest(map(json.dumps, files.items()))}
        if is_intact(folder, recipe):
            return
        with making(folder, recipe) as partial:
            for name, text in files.items():
                (partial / name).write_text(text, encoding="utf-8")

    def make_sweep(self) -> None:
        """Write the sweep file, unless one for this place is there: edits to it are kept."""
        sweep = self.inputs.sweep
        if not sweep.exists() or str(self.inputs.base) not in sweep.read_text(encoding="utf-8"):
            sweep.write_text(sweep_text(self.inputs), encoding="utf-8")

    def _lessons(self, *, correct: bool) -> tuple[Example, ...]:
        rng = random.Random(f"examples-{self.seed}")
        return examples(self.valley.known, rng, correct=correct)

    def _on_step(self, part: str, trainer: TrainerSettings) -> Callable[[int, float], None] | None:
        report = self.on_progress
        if report is None:
            return None
        return lambda step, loss: report(Progress(part, step, trainer.steps, loss))


def sweep_text(inputs: DemoInputs) -> str:
    """Return the sweep file of the demo."""
    sweep = {
        "name": "demo",
        "output": str(inputs.folder / "run"),
        "store": str(inputs.folder / "store"),
        "bases": [
            {
                "path": str(inputs.base),
                "name": BASE,
                "dtype": "float32",
                "adapters": [str(path) for path in inputs.adapters.values()],
            }
        ],
        "tasks": list(TASKS),
        "include_path": [str(inputs.tasks)],
        "evaluation": {"num_fewshot": None, "seed": 1234},
        "engine": {"kind": "hf", "batch_size": 16},
        "hardware": {"cpus": 1},
        "schedule": {"slots": 2},
    }
    return write_yaml(sweep)
