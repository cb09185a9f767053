# %% [markdown]
# # Read a diagnosis
#
# A student that fits its teacher's text may still drift when it writes by itself. `bridgegarden diagnose` measures
# that on any pair; here it is done in a world so small that the truth can be computed, so that you see what the
# numbers mean.

# %%
import torch

from bridgegarden import exact
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.exact import ProcessPolicy, TablePolicy, TabularProcess

# %% [markdown]
# ## A world
#
# Four places; from the third, the *edge*, the second token leads into *disaster*, which the teacher seldom sees.
# The student is unsure everywhere, and in the disaster it knows nothing.

# %%
following = torch.tensor([[1, 2], [1, 1], [1, 3], [3, 3]])
teacher = torch.tensor([[0.9, 0.1]] * 3 + [[0.95, 0.05]], dtype=torch.float64).log()
student = torch.tensor([[0.7, 0.3]] * 3 + [[0.05, 0.95]], dtype=torch.float64).log()
process = TabularProcess(teacher, following, torch.zeros(4, dtype=torch.bool), horizon=8, initial=0)

# %% [markdown]
# ## The truth
#
# By dynamic programming: what the student loses on the teacher's texts (*fit*), on its own (*inference*), and the
# difference, which is its exposure bias. In nats a text.

# %%
truth = exact.solve(process, student)
print(f"L_dT {truth.teacher_loss:.2f}, L_dθ {truth.student_loss:.2f}, exposure bias {truth.exposure_bias:.2f}")

# %% [markdown]
# ## The estimate
#
# What `diagnose` does: both write, the student is scored on both kinds of texts, and every number has an error.

# %%
policies = ProcessPolicy(process), TablePolicy(process, student)
sampling = Sampling(samples=2, max_new_tokens=8, max_rows=2000)
found = exposure_bias(*policies, [()] * 400, sampling, generator=torch.Generator().manual_seed(0))
for name in ("teacher_loss", "student_loss", "exposure_bias"):
    estimate = getattr(found, name)
    print(
        f"{name}: {estimate.mean:.2f} ± {estimate.stderr:.2f} (one standard error), in truth {getattr(truth, name):.2f}"
    )
    assert abs(estimate.mean - getattr(truth, name)) < 4 * estimate.stderr

# %% [markdown]
# ## How to read it
#
# * An interval of the exposure bias that holds zero says that you cannot tell; take more prompts.
# * Above zero, the student drifts: what it writes leads where it knows less. Here that is the disaster, and labels
#   that keep it off the edge are worth more than labels that fit the calm places.
# * Below zero is no praise. A student that is bad at the teacher's texts and writes something simple has a low one,
#   so choose by `student_loss`, the loss on its own texts.
# * The curve says where: it parts at the token at which the two begin to write differently.

# %%
for point in found.student_curve:
    print(point)
