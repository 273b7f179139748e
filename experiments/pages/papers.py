"""Sentences that the tables of the larger studies imply: remedies, and the two papers measured again."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pages.tables import Row, Tables, plus, ran

# Half the width of a 95 % interval is so many standard errors.
QUANTILE = 1.959964
# Of Cremer et al.: 3280 epochs of 600 minibatches.
PUBLISHED_STEPS = 1_968_000
NAMES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}


class Removed:
    """What remedies remove on held-out images."""

    def __init__(self, tables: Tables, folder: str, places: int) -> None:
        self._rows = tables.rows(f"{folder}/table.csv", split="test")
        self._places = places

    def row(self, remedy: str, steps: int = 0) -> Row:
        """Return the row of a remedy."""
        (row,) = (row for row in self._rows if (row["remedy"], row["steps"]) == (remedy, str(steps)))
        return row

    def __call__(self, remedy: str, steps: int = 0) -> str:
        """Return the nats that a remedy removes, with their standard error."""
        row = self.row(remedy, steps)
        return plus(float(row["removed"]), float(row["removed_se"]), self._places)

    def span(self, *remedies: str) -> str:
        """Return the least and the most that some remedies remove."""
        found = [float(self.row(remedy)["removed"]) for remedy in remedies]
        return f"{min(found):.{self._places}f} to {max(found):.{self._places}f}"

    def lost(self, remedy: str, gap: str = "inference_gap") -> float:
        """Return the nats that are left with a remedy."""
        return float(self.row(remedy)[gap])


SPLIT = ("approximation_gap", "amortization_gap")
FLOWS = ("coupling flow", "autoregressive flow", "auxiliary flow")


def _steps(tables: Tables, folder: str) -> int:
    """Return the training steps of the baseline."""
    study = tables.sidecar(f"{folder}/table.json")["config"]["study"]
    return study["training_evaluations"] // study["batch_size"]


def _certified(removed: Removed) -> str:
    """Return on how many images local VI is certified, in per cent."""
    return f"{100 * float(removed.row('local VI')['local_converged']):.0f} %"


def refined(tables: Tables, folder: str, places: int) -> str:
    """Return what five refinement steps remove of what local VI removes."""
    removed = Removed(tables, folder, places)
    rows = removed.row("refine", 5), removed.row("local VI")
    return " of ".join(f"{float(row['removed']):.{places}f}" for row in rows)


def remedies(tables: Tables) -> Iterator[str]:
    """Yield those of the comparison of remedies on digits."""
    removed = Removed(tables, "remedies", 2)
    base = removed.row("baseline")
    yield ran(tables, "remedies/table.json")
    yield f"loses {removed.lost('baseline'):.2f} nats per held-out image, two thirds of it"
    yield f"({removed.lost('baseline', 'amortization_gap'):.2f}) by amortization"
    yield f"remove {removed('refine', 5)} of the {removed('local VI')} nats that local VI removes on digits"
    yield f"remove {removed('refine', 5)} nats of the {removed('local VI')} that local VI removes with 400; ten remove"
    yield f"ten remove {removed('refine', 10)}. No training"
    parameters = int(removed.row("residual")["parameters"]) / int(base["parameters"])
    yield f"residual layers ({parameters:.0f} times the parameters) remove {removed('residual')}, a hypernetwork"
    yield f"adapts layers to the image {removed('instance adaptive')}, eight times the width {removed('wide')}, four"
    yield f"times the width {removed('width x 4')}; four times the training {removed('longer training')}."
    split = [removed.lost("baseline", gap) - removed.lost("full rank", gap) for gap in SPLIT]
    yield f"full rank alone removes {removed('full rank')}, {split[0]:.2f} of them from the approximation and"
    yield f"and {split[1]:.2f} from the amortization gap"
    yield f"one hidden layer of 32 units trained for {_steps(tables, 'remedies')} steps"
    yield f"certified on {_certified(removed)} of these images, and it states that it misses"
    yield f"misses {removed.lost('local VI', 'local_suboptimality'):.3f} nats on average"
    yield f"brings the total to {removed('residual full rank')}. Flows remove {removed.span(*FLOWS)} here"


def fashion(tables: Tables) -> Iterator[str]:
    """Yield those of the comparison of remedies on Fashion-MNIST, and of both data sets."""
    digits, removed = Removed(tables, "remedies", 2), Removed(tables, "remedies_fashion_mnist", 1)
    yield ran(tables, "remedies_fashion_mnist/table.json")
    split = removed.lost("baseline"), removed.lost("baseline", "amortization_gap")
    yield f"{split[0]:.1f} nats are lost, {split[1]:.1f} of them by amortization"
    yield f"on digits, {removed('refine', 5)} of {removed('local VI')} on Fashion-MNIST"
    yield f"five refinement steps remove {removed('refine', 5)} nats of the {removed('local VI')} of local VI, twenty"
    yield f"twenty {removed('refine', 20)}; residual layers {removed('residual')}, with five steps after them"
    yield f"with five steps after them {removed('residual + refine', 5)}; four times the training"
    yield f"the training {removed('longer training')}, eight times the width {removed('wide')}. Flows remove"
    yield f"Flows remove {removed.span(*FLOWS)}."
    yield f"certified on {_certified(removed)} of these images, and it states that it misses"
    yield f"misses {removed.lost('local VI', 'local_suboptimality'):.3f} nats on average"
    assert _steps(tables, "remedies") == _steps(tables, "remedies_fashion_mnist")
    yield f"trained for {_steps(tables, 'remedies')} steps; a better one"
    yield f"certified on {_certified(digits)} of the digits and {_certified(removed)} of the Fashion-MNIST images only"
    yield f"residual layers remove {digits('residual')} and {removed('residual')} nats, four times the training"
    yield f"four times the training {digits('longer training')} and {removed('longer training')} ("


def cremer(tables: Tables) -> Iterator[str]:
    """Yield the table of the three gaps, and what else its layout says."""
    path = "cremer2018/tables.csv"
    below = {}
    yield ran(tables, "cremer2018/table.json")
    for data, model in (("mnist", "FFG"), ("mnist", "AF"), ("fashion_mnist", "FFG"), ("fashion_mnist", "AF")):
        where = {"table": "inference-gaps", "data": data, "model": model, "split": "train"}
        rows = [
            tables.row(path, quantity=f"{of} gap", **where) for of in ("approximation", "amortization", "inference")
        ]
        cells = [plus(float(row["ours"]), (float(row["high"]) - float(row["low"])) / 2 / QUANTILE, 3) for row in rows]
        recalled = ", ".join(f"{float(row['published_recalled']):.2f}" for row in rows)
        yield f"| {NAMES[data]}, {model} | {' | '.join(cells)} | {recalled} |"
        row = tables.row(path, quantity="log p(x)", **where)
        below[data, model] = float(row["published_recalled"]) - float(row["ours"])
    low, high = (sorted(f"{below[data, model]:.0f}" for model in ("FFG", "AF")) for data in NAMES)
    yield f"{low[0]} to {low[1]} nats (MNIST) and {high[0]} to {high[1]} nats (Fashion-MNIST) below the published"
    count, steps = verdicts(tables), tables.sidecar("cremer2018/table.json")["config"]["study"]["train_steps"]
    total, claims = sum(count.values()), tables.rows("cremer2018/claims.csv")
    assert len({row["claim"].split(".")[0] for row in claims}) == 6
    yield f"`claims.csv` six claims as {total} tests with intervals"
    yield f"Of {total} tests of six claims of Cremer et al. (2018), {count['not resolved']} are not resolved"
    yield f"for {100 * steps / PUBLISHED_STEPS:.1f} % of the published steps"
    yield f"trained for {steps} steps, not {PUBLISHED_STEPS:,}, that is {100 * steps / PUBLISHED_STEPS:.1f} % of the"
    yield f"Not resolved: {count['not resolved']} of {total} tests"


def verdicts(tables: Tables) -> dict[str, int]:
    """Return how many claims of Cremer et al. have each verdict."""
    found = [row["verdict"] for row in tables.rows("cremer2018/claims.csv")]
    return {verdict: found.count(verdict) for verdict in ("holds", "does not hold", "not resolved")}


def when_and_why(tables: Tables) -> Iterator[str]:
    """Yield those of "When and why"."""
    path = "when_and_why/table.csv"
    claims = tables.rows("when_and_why/claims.csv")
    yield ran(tables, "when_and_why/table.json")
    yield f"{tables.met(path)} targets met"
    yield f"`claims.csv` holds {len(claims)} claims and errata"
    yield f"a command; {sum(row['verdict'] == 'not resolved' for row in claims)} are not resolved"

    def numbers(start: str, pattern: str) -> tuple[str, ...]:
        """Return the numbers in the evidence of the only claim that starts so."""
        (row,) = (row for row in claims if row["claim"].startswith(start))
        found = re.search(pattern, row["evidence"])
        if found is None:
            raise LookupError(f"{pattern!r} is not in {row['evidence']!r}")
        return found.groups()

    noise, derived = numbers("trained encoders reach", r"leaves F-VI (\S+) nats .*\(([\d.]+) derived")
    where = {"method": "F-VI, published", "part": "nonlinear"}
    spread = tables.value(path, quantity="stationary noise of all data, standard deviation in time", **where)
    yield f"leaves {noise} nats (every 20th datum, scaled up; standard deviation in time {spread:.1f}; derived"
    yield f"derived from a published loss: {derived})"
    yield f"it stays {noise} nats off it (every 20th datum, scaled up)"
    yield f"lies {numbers('descent from the prior', r'loss ([0-9.]+) nats')[0]} nats below the best one"
    where = {"part": "nonlinear", "method": "A-VI, default", "quantity": "median gap, nats"}
    gaps = [tables.value(path, size=size, **where) for size in (1, 2, 4, 8, 16, 32)]
    *first, last = (f"{gap:.{places}f}" for gap, places in zip(gaps, (0, 0, 1, 1, 2, 2), strict=True))
    yield f"{', '.join(first)} and {last} nats at widths 1 to 32"
    ours, of = numbers("amortized VI is sensitive", r", (\d+) of (\d+) seeds")
    yield f"By this recipe {ours} of {of} networks of the nonlinear model and the saw series die or diverge"
    alone, both = numbers("with x_n alone no width closes", r": ([\d.]+) nats with x_n, ([\d.]+) with")
    yield f"({alone} nats are left at width 20), with (x_{{n-1}}, x_n) {both} are."
    value, equal = numbers("the published HMM example", r"is (\S+); .* agree to (\S+)")
    yield f"(an eigenvalue is {value}), and with the right one all means agree to {equal}"
    window, single = numbers("there are HMMs", r"copied: ([\d.]+) apart; .*: ([\d.]+) apart")
    yield f"{window} apart where a window of three is copied, {single} apart where one observation is"
    found = [abs(float(row["value"])) for row in tables.rows(path, part="linear", method="A-VI", size=1)]
    yield f"an affine encoder leaves less than {max(found) + 5e-9:.0e} nats at".replace("e-0", "e-")
