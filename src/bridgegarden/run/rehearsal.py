"""A rehearsal of ``training``: every library that a run hands the settings to gets them once, with a model of a few
numbers, before anything large is loaded."""

import copy
import dataclasses
import gc
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from bridgegarden.errors import ConfigError, foreign
from bridgegarden.objective.loss_route import loss_route
from bridgegarden.recipe import Recipe, TrainingSection
from bridgegarden.recipe.training import Refused, blamed
from bridgegarden.run.checked import training_arguments
from bridgegarden.run.models import usable_device
from bridgegarden.run.output import OutputFolder, check_writable
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import FREE_RUNNING, TERMS
from bridgegarden.run.save import hub_target
from bridgegarden.training.arguments import check_arguments, withheld

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

STEPS = 2
"""After the first, an evaluation, if the run has any."""
LETTERS = "abcdefghijkl"
WORKERS = 1
"""Processes that read rows ahead here, where a run has that many or more."""
OF_THE_MODEL = ("eos_token", "pad_token", "router_aux_loss_coef")
"""Settings that only the student itself can be tried with."""


def check_settings(recipe: Recipe) -> None:
    """Whatever can be found wrong with `recipe` on this machine without models or data.

    Raises:
        ConfigError: a setting cannot be trained with, there is no such device, or the output cannot be written.
    """
    folder = OutputFolder(recipe.output)
    check_writable(folder.path, "output")
    usable_device(recipe.teacher.device, "teacher.device")
    hub_target(recipe)
    # Making arguments with FSDP tells accelerate so by a variable, for good.
    environment = dict(os.environ)
    try:
        with quiet_libraries(interactive=False):
            rehearse(recipe, training_arguments(recipe, folder))
    finally:
        os.environ.clear()
        os.environ.update(environment)


def rehearse(recipe: Recipe, arguments: "SFTConfig") -> None:
    """Train a stand-in for two steps with a run's arguments, in a temporary folder.

    What is out of range, not installed or contradicts another setting is found by whoever uses it: TRL, transformers,
    accelerate, PyTorch, a tracker's package. Trackers are built and told nothing. Processes of a distributed run do
    not rehearse, since a stand-in cannot be wrapped and cut as the student is.

    Args:
        recipe: of the run.
        arguments: what :func:`~bridgegarden.run.checked.training_arguments` makes of it; they are not changed.

    Raises:
        ConfigError: names the setting, in the words of the library that refuses it.
    """
    loss_route(recipe.training.loss_kernel, arguments.device, torch.float32)
    if arguments.world_size > 1 or arguments.deepspeed:
        return
    if arguments.eval_on_start and recipe.data.eval is None:
        raise ConfigError("training.eval_on_start: there are no rows for it; set data.eval.")
    check_arguments(arguments, {})
    try:
        _try_out(recipe, arguments)
    except Refused as refused:

        def tried(section: TrainingSection) -> None:
            without = dataclasses.replace(recipe, training=section)
            _try_out(without, training_arguments(without, OutputFolder(recipe.output)))

        raise blamed(recipe.training, str(refused), tried) from refused


def _try_out(recipe: Recipe, arguments: "SFTConfig") -> None:
    with tempfile.TemporaryDirectory(prefix="bridgegarden-rehearsal-") as folder, _undisturbed(), foreign(Refused):
        if arguments.torch_compile:
            _compile_something(arguments)
        _trainer(_arguments(arguments, folder), evaluates=recipe.data.eval is not None).train()


def _compile_something(arguments: "SFTConfig") -> None:
    """One operation, where and how models will be compiled: a backend may call a compiler that is not installed."""
    backend, mode = arguments.torch_compile_backend or "inductor", arguments.torch_compile_mode
    double = torch.compile(lambda numbers: numbers * 2 + 1, backend=backend, mode=mode)
    with torch.no_grad():
        double(torch.ones(4, device=arguments.device))


def _arguments(arguments: "SFTConfig", folder: str) -> "SFTConfig":
    """What a run of a few rows needs otherwise; everything else is as it will be."""
    theirs = copy.copy(arguments)
    theirs.output_dir = folder
    theirs.disable_tqdm = True
    theirs.dataloader_num_workers = min(arguments.dataloader_num_workers, WORKERS)
    if theirs.optim_target_modules is not None:
        theirs.optim_target_modules = "all-linear"
    theirs.dataset_kwargs = {"skip_prepare_dataset": True}
    for name in OF_THE_MODEL:
        setattr(theirs, name, None)
    return theirs


def _trainer(arguments: "SFTConfig", *, evaluates: bool) -> "SFTTrainer":
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks
    from transformers.trainer_utils import SaveStrategy
    from trl.trainer.sft_trainer import SFTTrainer

    class FewSteps(TrainerCallback):
        """In them, whatever a run does after some of its steps."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_log = True
            if state.global_step == 1:
                control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"
            control.should_training_stop = control.should_training_stop or state.global_step >= STEPS

    class StandIn(SFTTrainer):
        """With the metrics that a run has, for whoever chooses by one of them."""

        def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            names = {f"{metric_key_prefix}_{name}": 0.0 for name in (*TERMS, *FREE_RUNNING)}
            return output._replace(metrics={**names, **(output.metrics or {})})

    rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 4, "labels": [[1, 2, 3, 4]] * 4})
    with withheld(arguments):
        trainer = StandIn(
            model=_stand_in(),
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows if evaluates else None,
            processing_class=_letters(),
            callbacks=[FewSteps()],
        )
    # Nothing is saved: the disk of temporary files may be full, which is no fault of these settings.
    arguments.save_strategy, arguments.load_best_model_at_end = SaveStrategy.NO, False
    for callback in (PrinterCallback, *get_reporting_integration_callbacks(arguments.report_to)):
        trainer.remove_callback(cast(Any, callback))
    return trainer


def _stand_in() -> "PreTrainedModel":
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _letters() -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: index for index, letter in enumerate(LETTERS)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), eos_token="b", pad_token="c"
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Random numbers and what is printed are afterwards as if there had been no rehearsal."""
    import numpy
    import torch
    from transformers.utils import logging as transformers_logging

    python, arrays, verbosity = random.getstate(), numpy.random.get_state(), transformers_logging.get_verbosity()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    # A trainer collects garbage at its end: not among all that is loaded, which takes longer than the rest. What the
    # process keeps from the collector itself could not be told apart afterwards.
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            yield
    finally:
        if freezes:
            gc.unfreeze()
        logging.disable(disabled)
        transformers_logging.set_verbosity(verbosity)
        random.setstate(python)
        numpy.random.set_state(arrays)
