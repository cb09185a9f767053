# %% [markdown]
# # Export and run in llama.cpp
#
# A trained student becomes a file that llama.cpp and Ollama read, in fewer bits if you like: let it answer, and see
# what the bits cost. It needs `pip install 'bridgegarden[export]' xllamacpp`; the packaged teacher stands in for your
# student.

# %%
import json
import urllib.request
from pathlib import Path

import torch
import xllamacpp
from transformers import AutoModelForCausalLM, AutoTokenizer

from bridgegarden.quickstart import TEACHER
from bridgegarden.run.export import ExportTarget, export_model

# %% [markdown]
# ## Files
#
# `bridgegarden export my.yaml --to gguf --quantise F32,Q8_0,Q4_0`. Of a recipe its trained student is meant. What
# llama.cpp would compute or cut otherwise is refused by name; what stays different is said as a note.

# %%
target = ExportTarget(source=str(TEACHER), to="gguf", quantise=("F32", "Q8_0", "Q4_0"), output=Path("export"))
exported = export_model(target)
for note in exported.notes:
    print(f"note: {note}")
for file in exported.files:
    print(f"{file.path}  {file.size / 1e6:.2f} MB")
print(*exported.beside)

# %% [markdown]
# ## Run one
#
# In a shell: `llama-cli -m export/teacher-Q8_0.gguf`, or `ollama create mine -f export/teacher-Q8_0.Modelfile` and
# `ollama run mine`. From Python, llama.cpp is a package:


# %%
def serve(path):
    """llama.cpp with a file, and a function that asks it."""
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.n_ctx, params.n_parallel = str(path), 0, 128, 1
    params.warmup = params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(what, **body):
        request = urllib.request.Request(
            f"{server.listening_address}/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with opener.open(request) as reply:
            return json.loads(reply.read())

    return ask


ask = serve(exported.files[0].path)
question = [{"role": "user", "content": "What is 3 plus 4 times 2?"}]
prompt = ask("apply-template", messages=question)["prompt"]
answer = ask("completion", prompt=prompt, n_predict=60, temperature=0, return_tokens=True)
print(answer["content"])

# %% [markdown]
# The chat template is in the file. The same model in transformers writes the same tokens:

# %%
tokenizer, model = AutoTokenizer.from_pretrained(TEACHER), AutoModelForCausalLM.from_pretrained(TEACHER).float()
own = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
assert own == prompt
ids = tokenizer(own, return_tensors="pt").input_ids
written = model.generate(ids, do_sample=False, max_new_tokens=60)[0, ids.shape[1] :].tolist()
assert written == answer["tokens"]
print(f"transformers and llama.cpp write the same {len(written)} tokens")

# %% [markdown]
# ## What the bits cost
#
# How far each file is from the weights, in nats at the next token, and whether it writes the same answer. Measure
# yours on its task, too: `bridgegarden evaluate` scores a folder that `--to hf` wrote, and `bridgegarden bench
# run/model export/*.gguf` the size, memory and speed of all side by side.

# %%
with torch.no_grad():
    exact = model(ids).logits[0, -1].log_softmax(-1)
for file in exported.files:
    ask = serve(file.path)
    said = ask("completion", prompt=prompt, n_predict=1, n_probs=len(tokenizer), temperature=1.0, top_k=0)
    listed = said["completion_probabilities"][0]["top_logprobs"]
    logp = torch.tensor([one["logprob"] for one in listed], dtype=torch.float64)
    there = exact.double()[[one["id"] for one in listed]]
    divergence = (there.exp() * (there - logp)).sum().item()
    same = ask("completion", prompt=prompt, n_predict=60, temperature=0, return_tokens=True)["tokens"] == written
    print(f"{file.path.name}: {divergence:.6f} nats away, the same answer: {'yes' if same else 'no'}")
    assert divergence < 0.1
