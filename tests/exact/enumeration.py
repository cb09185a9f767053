"""The slow, obvious reference: every text written out, its probability multiplied up, its losses added.

And small random processes to try it on.
"""

import torch

from bridgegarden.exact import TabularProcess


def random_process(seed, states, tokens, horizon, *, acyclic=False, zeros=0.3):
    """A process and a student with mass everywhere; the teacher has some zeros, and some states end the text."""
    generator = torch.Generator().manual_seed(seed)
    teacher = random_rows(generator, states, tokens, zeros)
    student = random_rows(generator, states, tokens, 0.0)
    following = torch.randint(0, states, (states, tokens), generator=generator)
    terminal = torch.rand(states, generator=generator) < 0.3
    if acyclic:
        following = torch.maximum(following, 1 + torch.arange(states).unsqueeze(1)).clamp(max=states - 1)
        terminal[-1] = True
    terminal[0] = False
    return TabularProcess(teacher, following, terminal, horizon=horizon), student


def random_rows(generator, states, tokens, zeros):
    """Log-probabilities, a share `zeros` of them minus infinity (never a whole row)."""
    logits = 1.5 * torch.randn(states, tokens, generator=generator, dtype=torch.float64)
    empty = torch.rand(states, tokens, generator=generator) < zeros
    empty[torch.arange(states), logits.argmax(-1)] = False
    return logits.masked_fill(empty, -torch.inf).log_softmax(-1)


def is_over(process, tokens):
    return len(tokens) == process.horizon or process.is_terminal(state_after(process, tokens))


def state_after(process, tokens):
    state = process.initial
    for token in tokens:
        state = process.step(state, token)
    return state


def texts(process, writer, tokens=()):
    """Every text that begins with `tokens` and its probability given them. `writer(tokens)` are V probabilities."""
    if is_over(process, tokens):
        yield tokens, 1.0
        return
    for token, prob in enumerate(writer(tokens)):
        if prob > 0:
            for text, rest in texts(process, writer, (*tokens, token)):
                yield text, prob * rest


def total_loss(process, writer, loss, tokens=(), since=0):
    """Expected sum of ``loss(prefix)`` over the prefixes of a text, from the one of length `since` on."""
    return sum(
        prob * sum(loss(text[:t]) for t in range(since, len(text))) for text, prob in texts(process, writer, tokens)
    )


def writer_of(process, table):
    """Follows the rows of `table` (log-probabilities by state)."""
    return lambda tokens: table[state_after(process, tokens)].exp().tolist()


def loss_of(process, student):
    """KL(p || q) at a prefix, cell by cell."""

    def loss(tokens):
        state = state_after(process, tokens)
        p, q = process.log_probs(state).exp().tolist(), student[state].exp().tolist()
        return sum(
            a * torch.tensor(a / b, dtype=torch.float64).log().item() for a, b in zip(p, q, strict=True) if a > 0
        )

    return loss


def override(process, tokens_before, token):
    """The teacher, except that `token` is written after `tokens_before`: the paper's one-step override policy."""
    teacher = writer_of(process, process.table)

    def writer(tokens):
        if tokens == tokens_before:
            return [float(a == token) for a in range(process.vocab_size)]
        return teacher(tokens)

    return writer


def prefixes(process):
    """Every prefix that some sequence of tokens makes and that is not over."""
    found = [()]
    for prefix in found:
        found += [(*prefix, a) for a in range(process.vocab_size) if not is_over(process, (*prefix, a))]
    return found
