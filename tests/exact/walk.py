"""Worlds walked through without the library's own sums: every text, one by one, with its probability."""

from collections.abc import Iterator

from bridgegarden.exact.process import Process


def texts(process: Process) -> Iterator[tuple[list[int], float]]:
    """Every text on script, the end token included, and how likely the process writes it."""

    def go_on(state, tokens, prob):
        if process.is_terminal(state):
            yield tokens, prob
            return
        logp = process.log_probs(state)
        for token in process.continuations(state):
            yield from go_on(process.step(state, token), [*tokens, token], prob * logp[token].exp().item())

    return go_on(process.initial, [], 1.0)


def success_rate(world, problem) -> float:
    """Probability that the process of `problem` writes a text that succeeds: states merged, one text kept for each."""
    process = world.process(problem)
    layer = {process.initial: (1.0, [])}
    total = 0.0
    while layer:
        following = {}
        for state, (prob, tokens) in layer.items():
            logp = process.log_probs(state)
            for token in process.continuations(state):
                child, mass = process.step(state, token), prob * logp[token].exp().item()
                if process.is_terminal(child):
                    total += mass * world.succeeds(problem, [*tokens, token])
                else:
                    before, text = following.get(child, (0.0, [*tokens, token]))
                    following[child] = (before + mass, text)
        layer = following
    return total


def reachable_states(process):
    """Every state of a text on script, terminal ones included, in breadth-first order."""
    states = [process.initial]
    seen = set(states)
    for state in states:
        if process.is_terminal(state):
            continue
        for token in process.continuations(state):
            following = process.step(state, token)
            if following not in seen:
                seen.add(following)
                states.append(following)
    return states
