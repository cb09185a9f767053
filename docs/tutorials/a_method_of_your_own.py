# %% [markdown]
# # A method of your own
#
# A method is one objective with another rule in it. A rule is a small class: it looks at what the teacher says at a
# position, and at the student, and gives the share of the soft label there. Here is one that is soft where the
# teacher's two likeliest tokens are close together, and hard where the first leads.

# %%
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig

from bridgegarden import HybridDistillationTrainer, HybridObjective, TeacherSignal, hybrid_loss_from_logits
from bridgegarden.exact.process import sample
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.objective.methods import Method
from bridgegarden.quickstart import TEACHER

# %% [markdown]
# ## The rule
#
# `signal.logp` has the log-probabilities of the tokens that the teacher kept, likeliest first, in the last dimension;
# [what else there is](../methods.md#rules). Options are fields.


# %%
@dataclass(frozen=True)
class Lead:
    """Soft where the teacher's first token does not lead: one minus the lead in probability, to a power."""

    power: float = 1.0

    def __call__(self, signal, student=None, position=None, progress=None) -> Tensor:
        first, second = signal.logp[..., :2].exp().unbind(-1)
        return (1 - (first - second)) ** self.power


# %% [markdown]
# ## Try it on numbers
#
# Three positions over four tokens: the teacher is sure, of two minds, and knows nothing.

# %%
teacher_logits = torch.tensor([[9.0, 0.0, 0.0, 0.0], [3.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
weights = Lead()(TeacherSignal.from_logits(teacher_logits))
print("soft weight:", [round(weight, 3) for weight in weights.tolist()])
assert weights[0] < 0.01
assert torch.allclose(weights[1:], torch.ones(2))

# %% [markdown]
# In the objective, the total at every position is the weighted sum that the rule asks for.

# %%
objective = HybridObjective(soft_weight=Lead(power=2.0))
student_logits = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
labels = torch.tensor([[-100, 0, 1, 2]])
terms = hybrid_loss_from_logits(
    student_logits, torch.cat([teacher_logits, teacher_logits[:1]])[None], labels, objective
)
assert torch.allclose(terms.total, terms.soft_weight * terms.soft + (1 - terms.soft_weight) * terms.hard)
print("total:", [round(total, 3) for total in terms.total.flatten().tolist()], "nats")

# %% [markdown]
# ## Train with it
#
# On rows of the one world that the packaged teacher knows. `soft_weight` in the log says how soft the rule was on them.

# %%
tokenizer, teacher = AutoTokenizer.from_pretrained(TEACHER), AutoModelForCausalLM.from_pretrained(TEACHER)
shape = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)
world, generator = ArithmeticWorld(), torch.Generator().manual_seed(0)
rows = []
for problem in world.problems(16, 0, split="train"):
    question, answer = world.prompt(problem, generator), sample(world.process(problem), generator)
    rows.append({"prompt": question, "completion": world.decode(answer[:-1])})  # the last token ends the turn
trainer = HybridDistillationTrainer(
    model=LlamaForCausalLM(shape),
    teacher=teacher,
    objective=objective,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    args=SFTConfig("run", max_steps=4, per_device_train_batch_size=8, logging_steps=4, report_to="none", bf16=False),
)
trainer.train()
logged = trainer.state.log_history[0]
print({name: logged[name] for name in ("loss", "soft_loss", "hard_loss", "soft_weight")})
assert 0 < logged["soft_weight"] < 1

# %% [markdown]
# ## Give it a name
#
# In recipes and comparisons a method goes by its name: `objective: {preset: lead}`, and `bridgegarden compare my.yaml
# --objectives hard,soft,lead` trains all three at equal budget. The name is an entry point of an installed package;
# two lines of its `pyproject.toml`, where `lead.py` has the class above and this method:

# %%
METHOD = Method(label="lead", fields={"soft_weight": Lead()})
assert HybridObjective(**METHOD.fields) == HybridObjective(soft_weight=Lead())

# %% [markdown]
# ```toml
# [project.entry-points."bridgegarden.methods"]
# lead = "lead:METHOD"
#
# [project.entry-points."bridgegarden.soft_weights"]
# lead = "lead:Lead"
# ```
#
# [A whole package](../methods.md#a-method-of-your-own), and what rules may look at beside the teacher.
