# %% [markdown]
# # Label rows with llama.cpp's server
#
# The teacher stands on a server, and says at every token of your rows what it expected there. Here llama.cpp serves
# the packaged teacher, from a file that `bridgegarden export` writes; vLLM, SGLang and TRL's server are asked by the
# same command ([how](../teachers.md#a-server)). It needs `pip install 'bridgegarden[export]' xllamacpp`; the latter is
# llama.cpp as a package of Python.

# %%
import json
from pathlib import Path

import torch
import xllamacpp
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bridgegarden.exact.process import sample
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.quickstart import TEACHER
from bridgegarden.recipe import load_recipe
from bridgegarden.run.cache import CacheOptions, build_recipe_cache
from bridgegarden.run.export import ExportTarget, export_model
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.teachers import teacher_of
from bridgegarden.run.train import train
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of

# %% [markdown]
# ## A server
#
# Yours is `llama-server -m teacher-F32.gguf --parallel 2`, perhaps on another machine. Nothing here but the next block
# knows that it runs in this process.

# %%
gguf = export_model(ExportTarget(source=str(TEACHER), to="gguf", quantise=("F32",), output=Path("teacher"))).files[0]
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx, params.n_parallel = str(gguf.path), 0, 512, 2
params.warmup = params.fit_params = False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(f"{gguf.path} is served at {server.listening_address}")

# %% [markdown]
# ## Rows and a student
#
# The rows are scored as they are, whoever wrote them; these are of the one world that the packaged teacher knows. The
# student has the teacher's tokens; with [another tokenizer](../tokenizers.md) what the teacher says is translated.

# %%
world, generator = ArithmeticWorld(), torch.Generator().manual_seed(0)
rows = []
for problem in world.problems(12, 0, split="train"):
    question, answer = world.prompt(problem, generator), sample(world.process(problem), generator)
    rows.append({"question": question, "answer": world.decode(answer[:-1])})  # the last token ends the turn
Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
print(rows[0])
tokenizer = AutoTokenizer.from_pretrained(TEACHER)
shape = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)
LlamaForCausalLM(shape).save_pretrained("student")
_ = tokenizer.save_pretrained("student")

# %% [markdown]
# ## The recipe
#
# `server` is all that is new. `check_against` names the same weights on this machine: one text is then read by both
# before anything is kept, and a server with other weights is refused. Leave it out where you do not have them.

# %%
Path("my.yaml").write_text(
    f"""
teacher:   {{server: "{server.listening_address}", model: teacher, cache: cache, check_against: "{TEACHER}"}}
student:   {{model: student}}
data:      {{train: rows.jsonl, prompt: question, completion: answer}}
objective: {{preset: confidence}}
training:  {{max_steps: 4, per_device_train_batch_size: 6, learning_rate: 1.0e-2, logging_steps: 2}}
output:    run
""",
    encoding="utf-8",
)
recipe = load_recipe("my.yaml")

# %% [markdown]
# ## Labels
#
# `bridgegarden cache build my.yaml --top-k 20`. What has been answered is on the disk at once: killed, the same command
# goes on. llama.cpp writes one token for every token that it scores; the other servers read a row at once.

# %%
print(build_recipe_cache(recipe, CacheOptions(top_k=20)))

# %% [markdown]
# What is kept is the server's own numbers; here they can be held against the weights themselves, at the labels.

# %%
teacher, kept, furthest = LlamaForCausalLM.from_pretrained(TEACHER).float(), TeacherCache("cache"), 0.0
for document in documents_of(teacher_of(recipe).rows(recipe_pair(recipe)).train):
    ids, labels = torch.tensor(document.ids).long(), torch.tensor(document.labels[1:]).long()
    with torch.no_grad():
        logp = teacher(ids[None]).logits[0].log_softmax(-1)[:-1][labels != -100]
    said = torch.tensor(kept.signals(document.key).label_logp)
    furthest = max(furthest, (logp.gather(1, labels[labels != -100, None])[:, 0] - said).abs().max().item())
print(f"the server's log-probabilities of the labels and the weights' own are at most {furthest:.4f} nats apart")
assert furthest < 0.1

# %% [markdown]
# ## The training
#
# `bridgegarden train my.yaml`. It reads the cache; the server can be gone.

# %%
del server
print(train(recipe))
