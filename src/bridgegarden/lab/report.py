"""The lab's result as one HTML page."""

from collections import Counter

from markupsafe import Markup

from bridgegarden.lab.findings import Verdict, findings, summaries
from bridgegarden.lab.report_charts import (
    CHOICES,
    curve_objectives,
    labels,
    main_regime,
    optimum,
    position_chart,
    role_chart,
    roles_of,
    sweep_weights,
)
from bridgegarden.lab.report_tokens import tokens_data, tokens_section
from bridgegarden.lab.result import LabResult
from bridgegarden.lab.settings import REGIMES
from bridgegarden.lab.tables import effect_rows, mean_rows, verdict_rows
from bridgegarden.report.charts import responsive
from bridgegarden.report.page import Page, Section, details, figure, table, terms
from bridgegarden.study.arms import LAMBDAS

GLOSSARY = {
    "hard label": "One token as the target: the teacher's likeliest (argmax), or the one in the data.",
    "soft label": "The teacher's whole next-token distribution as the target.",
    "hybrid": "Both, mixed at each position by a soft weight λ from 0 (hard) to 1 (soft).",
    "Bridge": "A position that decides what the text means from here on. A slip spoils what follows.",
    "Garden": "A position where many words would do.",
    "L_dT": "KL from teacher to student summed over the teacher's answers.",
    "L_dθ": "The same over the student's own answers: what its user meets.",
    "exposure bias": (
        "L_dθ − L_dT. What drifting costs once the student runs by itself; below zero its own answers are easier for "
        "it than the teacher's, which alone is no merit."
    ),
    "error of a role": "The part of L_dθ at its positions on the teacher's answers, and the drift that they cause.",
    "κ": "How much choosing a token here changes the loss that is still to come, in nats.",
    "off script": "Answers that leave every text the world can produce.",
    "variety kept": "Entropy of the student over entropy of the teacher, at the Gardens of the teacher's answers.",
}


def report_page(result: LabResult) -> Page:
    """What the page says."""
    swept = [world for world in result.worlds if sweep_weights(result, world)]
    sections = [
        Section(anchor="claims", title="What came of the claims", body=_claims(result)),
        Section(anchor="means", title="Every objective", body=_means(result)),
        Section(anchor="roles", title="Bridges and Gardens", body=_roles(result)),
        Section(anchor="positions", title="Where exposure bias arises", body=_positions(result)),
    ]
    if swept:
        sections.append(Section(anchor="sweep", title="How much soft label", body=_sweep(result, swept)))
    sections += [
        Section(anchor="tokens", title="Answers, token by token", body=tokens_section(result)),
        Section(anchor="words", title="The words used here", body=terms(GLOSSARY)),
        Section(anchor="made", title="How it was made", body=_made(result)),
    ]
    return Page(
        title="Bridges, Gardens and exposure bias, computed",
        kicker=f"bridgegarden lab run, {result.started[:10]}",
        lead=_lead(result),
        sections=tuple(sections),
        data=tokens_data(result),
        footer="Made by bridgegarden. This file needs no network and holds all of its data.",
    )


def _lead(result: LabResult) -> Markup:
    counts = Counter(line.verdict for line in summaries(findings(result)))
    what = ", ".join(f"{counts[verdict]} × {verdict}" for verdict in Verdict if counts[verdict])
    return Markup(
        "<p>{} students were trained in {} and measured exactly: every probability below is summed over all texts that "
        "can be written, none is sampled. {}.</p><p>Each claim of the paper is judged in each world and regime. The "
        "verdicts: {}.</p>"
    ).format(
        len(result.runs),
        f"the world{'s' if len(result.worlds) > 1 else ''} {', '.join(result.worlds)}",
        _over(result),
        what or "no claim could be judged",
    )


def _claims(result: LabResult) -> Markup:
    found = findings(result)
    lines = summaries(found)
    body = Markup(
        "<p>A claim holds where the 95 % interval of its effect lies on the claimed side of zero, and does not hold "
        "where it lies on the other. A claim about hybrids holds if it does for one of them at an interval widened for "
        "their number.</p>"
    )
    for world in result.worlds:
        heads, rows = verdict_rows(result, world, lines)
        shown = [[row[0], *map(_verdict, row[1:])] for row in rows]
        body += _heading(world) + table(heads, shown, caption=f"Verdicts in the world {world}.", wordy=True)
        here = [finding for finding in found if finding.world == world]
        for regime in result.regimes(world):
            rows = effect_rows([finding for finding in here if finding.regime == regime])
            caption = f"Effects are the objective's value minus the other's. {_over(result)}."
            effects = table(*rows, caption=caption, wordy=True)
            body += details(f"Effects: {world}, {REGIMES[regime].label}", effects)
    return body


def _means(result: LabResult) -> Markup:
    body = Markup("")
    for world in result.worlds:
        body += _heading(world)
        for regime in result.regimes(world):
            caption = f"{world}, {REGIMES[regime].label}. Losses and exposure bias in nats an answer. {_over(result)}."
            made = table(*mean_rows(result, world, regime), caption=caption)
            main = regime == main_regime(result, world)
            body += made if main else details(f"{world}, {REGIMES[regime].label}", made)
    return body


def _roles(result: LabResult) -> Markup:
    body = Markup("")
    for world in result.worlds:
        run = result.objectives(world, main_regime(result, world))
        shown = labels([objective for objective in run if objective not in LAMBDAS])
        about = f"Inference error {_choices(result, world)} in the world {world}, one row per objective."
        caption = f"{_where(result, world)} Further left is better. What is missing to L_dθ is at forced positions."
        body += _heading(world) + figure(
            responsive(lambda size, w=world, s=shown, a=about: role_chart(result, w, s, a, size)), caption
        )
    return body


def _positions(result: LabResult) -> Markup:
    body = Markup("")
    for world in result.worlds:
        names = ", ".join(labels(curve_objectives(result, world)).values())
        caption = f"{_where(result, world)} Drawn: {names}; the others are in result.json. Bands: 95 % intervals."
        body += _heading(world) + figure(responsive(lambda size, w=world: position_chart(result, w, size)), caption)
    return body


def _sweep(result: LabResult, worlds: list[str]) -> Markup:
    seeds = len(result.settings.seeds)
    body = Markup("<p>One constant soft weight for all positions: λ = 0 is hard labels, λ = 1 soft ones.</p>")
    for world in worlds:
        shown = {name: f"λ = {weight:g}" for weight, name in sweep_weights(result, world).items()}
        about = f"Inference error {_choices(result, world)} in the world {world}, one row per soft weight."
        best = {role: optimum(result, world, role) for role in roles_of(result, world)}
        found = "; ".join(
            f"{CHOICES[role][0]} at λ = {where.weight:g} (so in {where.seeds} of {seeds} seeds)"
            for role, where in best.items()
        )
        body += _heading(world) + figure(
            responsive(lambda size, w=world, s=shown, a=about: role_chart(result, w, s, a, size)),
            f"{_where(result, world)} Lowest error: {found}.",
        )
    return body


def _made(result: LabResult) -> Markup:
    settings = result.settings
    facts: dict[str, str | Markup] = {
        "command": Markup("<code>{}</code>").format(result.command),
        "commit": result.commit or "unknown",
        "seeds": f"{', '.join(map(str, settings.seeds))}, for first weights, problems, answers and their order",
        "training": f"at most {settings.steps:,} steps of {settings.batch} answers, AdamW; the best by validation kept",
        "measured on": f"{settings.test_problems} test problems that no student saw",
        "training time": f"{sum(run.training.cpu_seconds for run in result.runs):,.0f} CPU seconds in all",
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "started": f"{result.started}; took {result.seconds / 60:.0f} min",
    }
    return terms(facts, small=True)


def _verdict(verdict: str) -> str | Markup:
    return Markup("<strong>{}</strong>").format(verdict) if verdict == Verdict.HOLDS else verdict


def _choices(result: LabResult, world: str) -> str:
    return " and ".join(CHOICES[role][0] for role in roles_of(result, world))


def _where(result: LabResult, world: str) -> str:
    return f"{world}, {REGIMES[main_regime(result, world)].label}; {_over(result)}."


def _over(result: LabResult) -> str:
    count = len(result.settings.seeds)
    return f"95 % t-intervals over {count} seeds" if count > 1 else "One seed, so there are no intervals"


def _heading(world: str) -> Markup:
    return Markup("<h3>{}</h3>").format(world)
