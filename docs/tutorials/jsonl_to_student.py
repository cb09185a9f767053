# %% [markdown]
# # From a JSONL to a student
#
# Rows in a file, a teacher, a student: a trained model. This runs in seconds on a CPU with the packaged teacher;
# put your own names in their place. The file is a script, and a notebook for whoever opens it with jupytext.

# %%
import json
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bridgegarden.quickstart import TEACHER
from bridgegarden.recipe import load_recipe
from bridgegarden.run.cache import CacheOptions, build_recipe_cache
from bridgegarden.run.train import train

# %% [markdown]
# ## Rows
#
# One JSON object a line. Any names of columns will do, the recipe says which they are; conversations in `messages`
# work as well.

# %%
rows = [{"question": f"start with {a}", "answer": f" then add {b}"} for a in range(6) for b in range(6)]
Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

# %% [markdown]
# ## A student
#
# Yours would be a name on the hub. This one is made here, with the teacher's vocabulary and random weights.

# %%
tokenizer = AutoTokenizer.from_pretrained(TEACHER)
shape = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)
LlamaForCausalLM(shape).save_pretrained("student")
_ = tokenizer.save_pretrained("student")

# %% [markdown]
# ## A recipe
#
# In YAML; here written by Python, so that the teacher's folder can be filled in.

# %%
Path("my.yaml").write_text(
    f"""
teacher:   {{model: "{TEACHER}", cache: cache, top_k: 16}}
student:   {{model: student}}
data:      {{train: rows.jsonl, prompt: question, completion: answer}}
objective: {{preset: confidence}}
training:  {{max_steps: 4, per_device_train_batch_size: 9, learning_rate: 1.0e-2, logging_steps: 2}}
output:    run
""",
    encoding="utf-8",
)
recipe = load_recipe("my.yaml")

# %% [markdown]
# ## The teacher, once
#
# `bridgegarden cache build my.yaml`. What is printed says how well the teacher itself knows these rows.

# %%
print(build_recipe_cache(recipe, CacheOptions()))

# %% [markdown]
# ## The training
#
# `bridgegarden train my.yaml`. No teacher is in memory. Interrupted, the same command goes on.

# %%
summary = train(recipe)
print(summary)

# %% [markdown]
# `soft_weight` says how soft the labels were on average, `teacher_label_loss` what the teacher itself loses on the
# rows. The model is an ordinary folder, with what it was made of beside it.

# %%
student = LlamaForCausalLM.from_pretrained("run/model")
record = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
print(f"{student.num_parameters():,} parameters after {summary.steps} steps; run.json says {', '.join(record)}")
