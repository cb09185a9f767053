"""Write ``docs/methods.md`` from the table of methods: ``make docs``."""

from pathlib import Path

from bridgegarden.objective.methods import METHODS, PAPER

PAGE = Path(__file__).with_name("methods.md")
OWN = Path(__file__).parents[1] / "examples" / "own_method"

FORMULA = (
    "l = w \\, \\Big[ \\lambda \\, T^2 D(p \\| q) + (1 - \\lambda) "
    "\\Big( -\\log q(a^*) + \\tfrac{\\alpha}{4} \\Delta^2 \\Big) \\Big],"
)
HOW: dict[str, str] = {
    "hard": "$-\\log q(a^*)$ at the teacher's likeliest token (at the token in the data: `hard_target: data`)",
    "soft": "$KL(p \\| q)$",
    "static": "$\\lambda = \\frac12$",
    "confidence": "$\\lambda_t = 1 - \\max_a p_t(a)$",
    "entropy": "$\\lambda_t = H(p_t) / \\log V$",
    "curriculum": "$\\lambda$ grows from 0 to 1 over the first fifth of training",
    "risk_guided": "$\\lambda = \\frac12$, and $\\frac{\\alpha}{4} \\Delta^2$ beside the hard label, $\\alpha = 0.1$",
    "sharpened": "$KL(p^2 / \\sum p^2 \\| q)$",
    "soft_risk": "$KL(p \\| q) + \\frac{\\alpha}{4} \\Delta^2$",
    "reverse_kl": "$KL(q \\| p)$",
    "jensen_shannon": "$\\frac12 KL(p \\| m) + \\frac12 KL(q \\| m)$, $m = \\frac12 (p + q)$",
    "skewed_forward_kl": "$KL(p \\| 0.1 p + 0.9 q)$",
    "skewed_reverse_kl": "$KL(q \\| 0.9 p + 0.1 q)$",
    "total_variation": "$\\frac12 \\sum |p - q|$",
    "adaptive_kl": "forward and reverse KL, the surer side's more",
    "head_tail_kl": "forward and reverse KL by where the two differ, in the teacher's head (half of its mass) or tail",
    "alpha_beta": "alpha-beta divergence, $\\alpha = 0.2$, $\\beta = 0.7$",
    "token_wise_kl": "forward and reverse KL token by token, by $\\sigma(\\log p / q)$ held fast",
    "lk_hybrid": "$\\lambda KL(p \\| q) + (1 - \\lambda) TV$, $\\lambda = e^{-3 \\alpha}$, $\\alpha$ the acceptance",
    "entropy_gated": "$KL(q \\| p)$, and $KL(p \\| q)$ added where $H(p_t) > 0.8$",
    "early_positions": "$KL(q \\| p)$ on the first 30 % of each answer",
    "late_positions": "$w_t KL(p \\| q)$, $w_t$ from 0.25 to 1 along each answer",
    "token_importance": "$KL(q \\| p)$ on the half of each answer where $q$ is unsure, or far from $p$",
    "label_corrected": "$KL(p' \\| q)$, $p'$ the teacher moved towards the token in the data until it leads by 0.2",
    "dft": "$-q \\log q$ of the token in the data, the factor held fast",
}


PROBE = "$\\lambda_t = \\sigma(-(\\hat\\kappa_t - c) / s)$, $\\hat\\kappa$ a linear probe of this pair's kappa"
"""Of the rule that is no preset, since it has a file."""
PROBE_PAPER = f"what [{PAPER}](https://arxiv.org/abs/{PAPER}) asks a rule for"


def page() -> str:
    """The whole page."""
    return f"""# Methods

Written by `make docs` from the table of methods. Every one is a preset of one objective,

$${FORMULA}$$

p the teacher, q the student: `objective: {{preset: NAME}}` in a recipe, `HybridObjective.preset(NAME)` in Python, and
`bridgegarden compare my.yaml --objectives NAME,NAME`, or `--objectives all`. Any field can be changed beside the
preset; [recipe.md](recipe.md#objective) has the fields that each stands for. What came out on a small pair:
[results/methods.md](results/methods.md).

| preset | paper | what is minimised |
|---|---|---|
{_rows()}
| rule `kappa_probe` | {PROBE_PAPER} | {_escaped(PROBE)} |

*Held fast* means that no gradient flows through a factor. † is a method whose paper has the student write the texts
that it is trained on: `on_policy: {{lmbda: 1.0}}` in a recipe, `on_policy:NAME` in a comparison.

## Where ours is not the paper's

* All divergences are over the support's cells: with a top-k teacher the kept tokens and one tail, never a renormalised
  top-k.
* `entropy_gated`: the paper takes the reverse KL of the sampled token by a clipped policy gradient and the forward KL
  over 16 tokens; here both are whole. The threshold is its.
* `early_positions` is the paper's observation that the first 30 % teach as much as all. Its own weight grows with the
  discrepancy of all earlier tokens of the answer; that is not known while a chunk of positions is finished, so it is
  not here.
* `late_positions` has the release's schedule. There every answer weighs the same and the divergence is clipped token by
  token; here every position does, and nothing is clipped.
* `head_tail_kl` is the authors' code, term by term: the head is the likeliest token and then those that end within
  half of the mass; its share of the summed differences weighs the forward KL, the tail's the reverse one. Where the
  two models do not differ at all that code divides zero by zero; here either has half.
* `token_wise_kl`: a weight for every token of the vocabulary at every position, held fast, as in the paper. Its *value*
  is that of $KL(p \\| q) + KL(q \\| p)$ exactly; it differs in its gradient alone.
* `lk_hybrid` takes the acceptance at each position. SpecForge's code takes the mean over the batch, one weight for all
  positions, and by a reading of it so does the paper; here nothing depends on how a batch is cut. For the heads of
  MEDUSA the paper has 10 in the place of 3 (`divergence_options: {{eta: 10}}`).
* `token_importance` is TIP's Soft-OR score: the student's entropy (the batch's highest 2 % count as one) and
  $KL(q \\| p)$, each scaled from the batch's least to its most, $\\hat h + \\hat\\delta - \\hat h \\hat\\delta$; of
  each answer the best half is kept (the paper's other share: `position_weight: {{rule: token_importance, share:
  0.2}}`). It is the only method here that compares positions with each other, so what a position counts depends on the
  micro-batch that it is read in. Ranking takes a further pass over both heads, which the FLOPs of `plan` and `compare`
  leave out. The paper saves memory by leaving positions out; here the loss's memory does not grow with them.
* `label_corrected`: the teacher's probabilities at temperature 1 decide how much is moved. With a top-k teacher it
  needs the log-probability of the data's token, which live teachers and caches have.
* Weights of positions below 1 make the loss smaller: it is divided by the number of supervised positions, whatever
  their weights.

Held against what: `head_tail_kl` against a copy of its authors' code, `lk_hybrid` against SpecForge's `lk_loss.py` and
a reading of the paper, `token_wise_kl` against the abstract and a review that quotes the formula, `token_importance`
against three descriptions of the paper by others that agree. The full text of these four could not be read for this, so
the numbers of their equations are unchecked.

## Rules

A rule is asked with `(signal, student, position, progress)` and gives one number for each position: the soft weight,
the weight of the position (`objective.position_weight`), or how much of a second divergence
(`objective.divergence: {{first, second, rule, how}}`). [recipe.md](recipe.md#objective) lists them.

```yaml
objective:
  divergence: {{first: reverse_kl, second: forward_kl, rule: {{rule: high_entropy, threshold: 1.2}}, how: add}}
  soft_weight: 0.8
  position_weight: {{rule: early_positions, share: 0.5}}
```

* `signal`: the teacher's kept tokens with exact log-probabilities, the rest's mass, its entropy and its likeliest
  token.
* `student`: its logits at the same tokens and at the hard target, its log-normaliser, and what is left. Its
  distribution over the support's cells is `shared_cells(signal, student)`; its entropy over them is that of the whole
  vocabulary only where the teacher is kept whole.
* `position`: the token in the data, and the position's `index` and the `length` of its answer.
* `progress`: steps done and planned; None outside training.

Gradients are off while a rule is asked; one whose definition has a gradient turns them on itself
(`torch.enable_grad()`). Rules with the two arguments `(signal, progress)` work as before.

## A rule fitted on the pair

The theory asks a rule to be hard where much hangs on the token, that is where $\\kappa(s)$ is high. `bridgegarden
diagnose` measures it at a few hundred positions and fits a ridge regression of it on what a rule sees of a position:
the teacher's entropy, the lead of its likeliest token over the second, how much of the likeliest the student does not
have ($1 - q(a^*)$), and what kind of token that is (digits, letters, marks, special, other). It is written to
`kappa_probe.json` beside the report, with how well it did on prompts that it was not fitted on; the verdict says
whether to use it ([diagnose.md](diagnose.md#a-rule-fitted-on-the-pair)).

    objective: {{soft_weight: {{rule: kappa_probe, file: runs/diagnosis/student/kappa_probe.json}}}}

The soft weight is a half where the probe predicts its mean, and a standard deviation more makes it $\\sigma(-1) =
0.27$. What lies beyond the range that was seen counts as its end. `compare --objectives soft,static,recipe` holds it
against others. The file is for one tokenizer and one teacher, and is refused with others; a run goes on, and a
comparison keeps what it has, only with the same content. It is fitted on the student's own texts, of the student as
it was: fit it again when the student has changed much. It looks at the teacher's two likeliest tokens, so that
`teacher.top_k: 1` is refused when the recipe is read, and `--samples` and `--top-k 1` before a cache is built.

## A method of your own

One file, and one line that registers it. In another package (`examples/own_method`):

<!-- runs -->
```python
{OWN.joinpath("own_method.py").read_text(encoding="utf-8").strip()}
```

```toml
{OWN.joinpath("pyproject.toml").read_text(encoding="utf-8").strip()}
```

Once it is installed (`pip install ./examples/own_method`), its names are known wherever ours are:

<!-- not run: needs the package above installed -->
```python
from bridgegarden import HybridObjective

objective = HybridObjective.preset("agreement", hard_target="data")
```

The entry point groups are `bridgegarden.methods` (a `Method`), `bridgegarden.soft_weights` and
`bridgegarden.position_weights` (a frozen dataclass that can be called; its fields are the rule's options) and
`bridgegarden.divergences` (a function of teacher and student log-probabilities; keyword arguments with defaults are
options). An entry point that cannot be loaded, is something else, or takes a name that is taken is an error that names
it, when a name that is not ours is looked up or all are listed. In this repository the line goes into `METHODS` of
`objective/methods.py`.
"""


def _rows() -> str:
    rows = []
    for name, method in METHODS.own.items():
        links = [f"[{number}](https://arxiv.org/abs/{number})" for number in method.papers]
        papers = ", ".join(links) or "none: a baseline"
        mark = " †" if method.on_policy else ""
        rows.append(f"| `{name}`{mark} | {papers} | {_escaped(HOW[name])} |")
    return "\n".join(rows)


def _escaped(text: str) -> str:
    """A bar would end the cell of a table."""
    return text.replace("\\|", "\\Vert").replace("|p - q|", "\\vert p - q \\vert")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
