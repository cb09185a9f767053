r"""Which labels are better where: theorem 4.4 of the paper, as it can be proved for a finite process.

Fix a process and any losses :math:`\ell \ge 0`, say those of some student. At a node s let a* = argmax p. The
*hard-label optimum* puts all mass on a* (the minimiser of :math:`-\log q(a^*)`), the *soft-label optimum* is q = p (the
minimiser of :math:`D(p \| q)`, for any divergence that is zero only between equals). Compared is what writing by one or
the other does to the text, with the losses of all other nodes as they are.

1. **Drift.** One visit of the hard optimum adds :math:`\kappa(a^*|s)` to exposure bias, one of the soft optimum adds 0,
   since :math:`\sum_a p(a|s) \kappa(a|s) = 0`. So as to exposure bias the hard optimum is the better one at s exactly
   where :math:`\kappa(a^*|s) < 0`.
2. **Bridges.** If a* is the safest token, :math:`Q(s,a^*) \le Q(s,a)` wherever p(a) > 0, then
   :math:`\kappa(a^*|s) = -\sum_a p(a) [Q(s,a) - Q(s,a^*)] \le 0`: hard is never worse, and better by the teacher's
   expected slip unless Q is constant on the teacher's support.
3. **Gardens.** :math:`|\kappa(a^*|s)| \le (1 - p(a^*)) (\max Q - \min Q)` over the teacher's support. Where Q is
   constant there, neither drifts, but the soft optimum has no loss and the entropy of the teacher, the hard one a
   positive loss and no entropy (unless p is certain): soft is better.
4. **Both.** Under a bounded divergence the hard optimum costs less in all, :math:`D(p \| q) + \sum_a q(a) Q(s,a)`,
   exactly where :math:`-\kappa(a^*|s) > D(p \| \mathrm{onehot}(a^*))`.
5. **A hybrid has both.** A writer that takes a* on a set B of nodes with :math:`\kappa(a^*|s) < 0` and samples from p
   elsewhere loses :math:`L_d - L_{d_T} = \sum_{s \in B} d(s) \, \kappa(a^*|s) \le 0`, d being its own visitation, and
   strictly less than the teacher if it ever comes to B.

What is **not** true is that hard labels are better wherever :math:`\kappa(s) = \sum_a \kappa(a|s)` is high. With two
tokens it is: :math:`\kappa(s) = (2 p(a^*) - 1) [Q(s,a) - Q(s,a^*)]` is positive exactly where :math:`\kappa(a^*|s)` is
negative (unless p is even). With three it is not: p = (0.50, 0.49, 0.01) and Q = (1, 0, 10) give
:math:`\kappa(s) = 9.2` but :math:`\kappa(a^*|s) = 0.4`: a rare disaster makes the sum high while the likeliest token is
not the safest. So the sign of :math:`\kappa(a^*|s)` decides, and that is what is computed here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.errors import NonFiniteError
from bridgegarden.exact.solution import ExactSolution


class LabelDrift(NamedTuple):
    """What the two optima do at each node, ``(N,)`` each; see the module's docstring."""

    hard: Tensor
    """kappa(a*|s), nats: exposure bias that a visit of the hard-label optimum adds. The soft one adds none."""

    spread: Tensor
    """Largest minus smallest Q(s,a) over the teacher's support, nats: zero in an ideal Garden."""

    safest: Tensor
    """bool: no token of the teacher's support has a lower Q than a*."""


def label_drift(solution: ExactSolution) -> LabelDrift:
    """Where the hard-label optimum drifts less than the soft-label optimum (`hard` < 0), and by how much.

    Among equally likely tokens a* is the one with the smallest id.

    Raises:
        NonFiniteError: a Q is infinite.
    """
    if not solution.cost.finite:
        raise NonFiniteError("exact: a loss is infinite, so drifts are not comparable. Use a bounded divergence.")
    nodes = torch.arange(len(solution))
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece in nodes.split(max(1, (1 << 20) // solution.unrolled.following.shape[1])):
        q = solution.q_at(piece)
        teacher = solution.unrolled.teacher[solution.nodes.row[piece]]
        chosen = q.gather(1, teacher.argmax(-1, keepdim=True)).squeeze(1)
        lowest = q.masked_fill(teacher == 0, torch.inf).amin(-1)
        highest = q.masked_fill(teacher == 0, -torch.inf).amax(-1)
        columns.append((chosen - solution.q_bar[piece], highest - lowest, chosen <= lowest))
    hard, spread, safest = (torch.cat(column) for column in zip(*columns, strict=True))
    return LabelDrift(hard, spread, safest)
