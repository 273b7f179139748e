"""Sentences that the tables of the larger studies imply: remedies, and the two papers measured again."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pages.tables import Row, Tables, interval, plus, ran

# Half the width of a 95 % interval is so many standard errors.
QUANTILE = 1.959964
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


FLOWS = ("coupling flow", "autoregressive flow", "auxiliary flow")
OBJECTIVES = ("sleep", "reverse half-asleep", "IWAE", "denoising", "weight norm")


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
    yield f"full rank alone removes {removed('full rank')}, since"
    yield f"brings the total to {removed('residual full rank')}. Flows remove {removed.span(*FLOWS)} here"
    worse = [-float(removed.row(name)["removed"]) for name in OBJECTIVES]
    yield f"made the gap wider, by {min(worse):.2f} to {max(worse):.2f} nats"


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
    yield f"one loses {removed.lost('full rank'):.0f} nats"
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

    def normals(table: str, data: str, model: str, column: str = "ours") -> float:
        where = {"table": table, "data": data, "model": model, "split": "train"}
        flow, normal = (tables.value(path, column, quantity=f"L[q*_{of}]", **where) for of in ("AF", "FFG"))
        return flow - normal

    lost = [f"{normals('inference-gaps', data, 'AF'):.1f}" for data in NAMES]
    yield f"one trained with AF loses {lost[0]} nats on MNIST, and {lost[1]} on Fashion-MNIST, if its best FFG"
    lost = [f"{normals('no-warm-up', data, 'AF'):.1f}" for data in NAMES]
    yield f"one trained so still loses {lost[0]} nats on MNIST, and {lost[1]} on Fashion-MNIST"
    above, published = (normals("inference-gaps", "mnist", "FFG", name) for name in ("ours", "published_recalled"))
    yield f"it is {above:.1f} nats above that of the best FFG (published: {published:.2f})"
    where = {"table": "inference-gaps", "data": "mnist", "model": "AF", "split": "train"}
    left = tables.row(path, quantity="approximation gap", **where)
    yield f"is {float(left['ours']):.1f} nats, not {float(left['published_recalled']):.1f}"


def verdicts(tables: Tables) -> dict[str, int]:
    """Return how many claims of Cremer et al. have each verdict."""
    found = [row["verdict"] for row in tables.rows("cremer2018/claims.csv")]
    return {verdict: found.count(verdict) for verdict in ("holds", "does not hold", "not resolved")}


def cremer_claims(tables: Tables) -> Iterator[str]:
    """Yield the verdicts with their intervals, and the gaps they are about."""
    rows = {row["claim"]: row for row in tables.rows("cremer2018/claims.csv")}
    count = verdicts(tables)
    yield f"`claims.csv` six claims as {len(rows)} tests with intervals"
    assert len({claim.split(".")[0] for claim in rows}) == 6
    yield f"Of {len(rows)} tests of six claims of Cremer et al. (2018), {count['holds']} hold"
    yield f"{count['does not hold']} do not and {count['not resolved']} is not resolved"
    yield f"What holds: {count['holds']} of {len(rows)}"
    yield f"What does not hold here: {count['does not hold']} of {len(rows)}"
    yield f"Not resolved, {count['not resolved']} of {len(rows)}"
    larger = {
        (data, model): interval(rows[f"3. on {data} a larger encoder cuts the amortization gap ({model})"], sign)
        for data in NAMES
        for model, sign in (("FFG", 1), ("AF", -1))
    }
    yield f"by {larger['mnist', 'FFG']} nats on MNIST, but not that of a flow"
    yield f"not that of a flow, whose gap grows by {larger['mnist', 'AF']}"
    yield f"by {larger['mnist', 'FFG']} nats on MNIST and {larger['fashion_mnist', 'FFG']} on"
    yield f"it grows by {larger['mnist', 'AF']} on MNIST and {larger['fashion_mnist', 'AF']} on"
    flow, auxiliary = (
        f"4. on a frozen decoder the parameters of {of} reduce the amortization gap" for of in ("Flow", "AF")
    )
    yield f"a coupling flow loses {interval(rows[flow])} nats less to amortization"
    yield f"and AF {interval(rows[auxiliary])}."
    yield f"by {interval(rows['3. warm-up improves log p(x) on fashion_mnist (AF)'])}."
    yield f"on Fashion-MNIST: {interval(rows['3. warm-up improves log p(x) on fashion_mnist (FFG)'])}."
    yield f"over training, {interval(rows['6. over training the amortization gap of held-out images grows'])}."
    path = "cremer2018/table.csv"
    depths = ("0 hidden layers", "", "4 hidden layers")
    where = {"data": "mnist", "model": "FFG", "split": "train", "quantity": "approximation gap"}
    experiments = ("decoder-size", "inference-gaps", "decoder-size")
    gaps = [
        tables.value(path, "mean", experiment=experiment, variant=variant, **where)
        for experiment, variant in zip(experiments, depths, strict=True)
    ]
    yield f"{gaps[0]:.1f}, {gaps[1]:.1f} and {gaps[2]:.1f} nats with 0, 2 and 4 hidden layers"
    where = {"experiment": "over-training", "model": "FFG", "split": "test"}
    for what, variant, words in (("approximation", "", "it falls"), ("amortization", "large decoder", "it grows")):
        where |= {"variant": variant, "quantity": f"{what} gap"}
        first, last = (tables.value(path, "mean", step=step, **where) for step in (1000, 4000))
        yield f"{words} from {first:.1f} to {last:.1f}"


def estimators(tables: Tables) -> Iterator[str]:
    """Yield what the original estimators got wrong."""

    def value(
        quantity: str, experiment: str = "estimators", data: str = "mnist", places: int = 3, sign: int = 1
    ) -> str:
        where = {"experiment": experiment, "data": data, "quantity": quantity}
        row = tables.row("cremer2018/table.csv", **where)
        # The sentences say which is below which; of another sign they would have to be others.
        return plus(sign * float(row["mean"]), float(row["standard_error"]), places)

    yield f"ends {value('certified - adam-1e-3')} below the certified optimum"
    yield f"and {value('certified - first copy')} with one"
    yield f"one draw each, is {value('certified - independent-copies', places=2)} below"
    yield f"what it may miss, {value('certified: what it may miss')} here"
    short = [value("IWAE - lower", "simulated-data", data, 1, sign=-1) for data in NAMES]
    yield f"500 importance draws from the encoder are {short[0]} (MNIST) and {short[1]} nats (Fashion-MNIST) below"
    apart = [value("upper - lower", "simulated-data", data, 1) for data in NAMES]
    yield f"whose own two bounds are {apart[0]} and {apart[1]} nats apart"


def when_and_why(tables: Tables) -> Iterator[str]:
    """Yield those of "When and why"."""
    path = "when_and_why/table.csv"
    claims = tables.rows("when_and_why/claims.csv")
    yield ran(tables, "when_and_why/table.json")
    yield f"{tables.met(path)} targets met"
    yield f"`claims.csv` holds {len(claims)} claims and errata"

    def numbers(start: str, pattern: str) -> tuple[str, ...]:
        """Return the numbers in the evidence of the only claim that starts so."""
        (row,) = (row for row in claims if row["claim"].startswith(start))
        found = re.search(pattern, row["evidence"])
        if found is None:
            raise LookupError(f"{pattern!r} is not in {row['evidence']!r}")
        return found.groups()

    noise, published = numbers("trained encoders reach", r"leaves F-VI (\S+) nats .*published: ([\d.]+)\)")
    where = {"method": "F-VI, published", "part": "nonlinear"}
    spread = tables.value(path, quantity="stationary noise of all data, standard deviation in time", **where)
    yield f"leaves {noise} nats (every 20th datum, scaled up; standard deviation in time {spread:.1f}; published"
    yield f"published value: {published})"
    yield f"it stays {noise} nats off it (every 20th datum, scaled up)"
    yield f"lies {numbers('descent from the prior', r'loss ([0-9.]+) nats')[0]} nats below the best one"
    where = {"part": "nonlinear", "method": "A-VI, default", "quantity": "median gap, nats"}
    gaps = [tables.value(path, size=size, **where) for size in (1, 2, 4, 8, 16, 32)]
    *first, last = (f"{gap:.{places}f}" for gap, places in zip(gaps, (0, 0, 1, 1, 2, 2), strict=True))
    yield f"{', '.join(first)} and {last} nats at widths 1 to 32"
    died, of, ours, ours_of = numbers("amortized VI is sensitive", r"(\d+) of (\d+) .* (\d+) of (\d+)")
    yield f"{died} of {of} networks of the nonlinear model and the saw series die or diverge"
    yield f"with tanh, a cosine and L-BFGS {ours} of {ours_of}."
    alone, both = numbers("with x_n alone no width closes", r": ([\d.]+) nats with x_n, ([\d.]+) with")
    yield f"({alone} nats are left at width 20), with (x_{{n-1}}, x_n) {both} are."
    value, equal = numbers("the published HMM example", r"is (\S+); .* agree to (\S+)")
    yield f"(an eigenvalue is {value}), and with the right one all means agree to {equal}"
    window, single = numbers("there are HMMs", r"copied: ([\d.]+) apart; .*: ([\d.]+) apart")
    yield f"{window} apart where a window of three is copied, {single} apart where one observation is"
    found = [abs(float(row["value"])) for row in tables.rows(path, part="linear", method="A-VI", size=1)]
    yield f"an affine encoder leaves less than {max(found) + 5e-9:.0e} nats at".replace("e-0", "e-")
    where = {"part": "regression", "num_data": 100000}
    branch = tables.value(path, method="amortized branch", quantity="gap per group, nats", **where)
    diagonal = tables.value(path, method="joint diagonal", quantity="exact gap to the evidence, nats", **where)
    yield f"they end {branch:.2f} nats a group short of the evidence at N = 100,000"
    yield f"diagonal normal, whose optimum is {diagonal / 100000:.3f} short"
