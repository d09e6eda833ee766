"""The rows of an evaluation -> what the page's sections show."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flmrec_spark import metrics
from flmrec_spark.report import charts, found, parts
from flmrec_spark.report.charts import OTHER, OURS, THEIRS, Dot, Series
from flmrec_spark.report.found import NOTHING, Found
from flmrec_spark.report.parts import Cell, Figure, Grid, Headline
from flmrec_spark.report.words import HISTORY, LIST_QUALITIES, metric_name, model_name
from flmrec_spark.stages.measurements import Measurement, difference
from flmrec_spark.stages.segments import (
    ALL,
    COLD_ITEMS,
    COLD_USERS,
    HEAD_ITEMS,
    TAIL_ITEMS,
    WARM_ITEMS,
    WARM_USERS,
)

_SEGMENTS = (
    ALL,
    WARM_USERS,
    COLD_USERS,
    *HISTORY,
    WARM_ITEMS,
    COLD_ITEMS,
    HEAD_ITEMS,
    TAIL_ITEMS,
    *(f"{users}, {items}" for users in (WARM_USERS, COLD_USERS) for items in (WARM_ITEMS, COLD_ITEMS)),
)
_BY_LENGTH = ("ndcg", "recall", "coverage")


@dataclass(frozen=True)
class Result:
    """The measurements of a run, ready to be shown.

    `models` as measured, the one in question first. `stacks` are made of it, and so no baselines of it.
    """

    rows: Sequence[Measurement]
    models: Sequence[str]
    against: str
    stacks: Collection[str] = ()
    diverse: Mapping[str, str] = field(default_factory=dict)  # chosen lists -> whose they are
    diversity: str = ""  # how

    @property
    def baselines(self) -> list[str]:
        return [model for model in self.models[1:] if model not in self.stacks]

    @property
    def every(self) -> Found:
        return found.of_all(self.rows)

    @property
    def keys(self) -> list[tuple[str, int]]:
        """What the headline and the charts are about, as far as it was measured."""
        k = found.middle_cutoff(self.every)
        wanted = (("auc", 0), ("uauc", 0), ("log_loss", 0), ("ndcg", k), ("recall", k))
        return [key for key in wanted if self._value(self.models[0], key) is not None]

    @property
    def drawn(self) -> list[tuple[str, int]]:
        calibration = ("calibration_error", 0)
        place = sum(k == 0 for _, k in self.keys)
        has_it = self._value(self.models[0], calibration) is not None
        return [*self.keys[:place], *([calibration] * has_it), *self.keys[place:]]

    def headlines(self) -> Iterator[Headline]:
        """Of each key, where a baseline was measured too."""
        for key in self.keys:
            rival = found.best_model(self.every, key, self.baselines)
            if rival is None:
                continue
            row = self.every[difference(self.models[0], rival), *key]
            yield Headline(
                metric_name(*key),
                self._cell(self.models[0], key),
                model_name(rival),
                self._cell(rival, key),
                parts.signed(row.value),
                parts.around(row),
                found.verdict(row),
            )

    def figures(self) -> Iterator[Figure]:
        """Every model at each key, with error bars."""
        for key in self.drawn:
            named = [model for model in self.models if self._value(model, key) is not None]
            rows = [(model_name(model), [self._dot(model, key)]) for model in named]
            drawing = charts.dots(rows, label=metric_name(*key))
            if drawing is not None:
                yield Figure(metric_name(*key) + parts.direction(key[0]), drawing)

    def grids(self) -> Iterator[Grid]:
        """Pointwise, then the list metrics and what lists are like at each cut-off."""
        yield self._grid("Is a held-out item liked?", [(metric, 0) for metric in metrics.POINTWISE])
        for k in found.cutoffs(self.every):
            yield self._grid(f"Lists of {k}: hits", [(metric, k) for metric in metrics.LIST_METRICS])
            yield self.beyond_hits(k)

    def beyond_hits(self, k: int | None = None) -> Grid:
        """What the lists are like, at the middle cut-off unless another is given."""
        k = found.middle_cutoff(self.every) if k is None else k
        return self._grid(f"Lists of {k}: beyond hits", [(metric, k) for metric in LIST_QUALITIES])

    def costs_of_diversity(self) -> Iterator[Grid]:
        """Of each model that has diverse lists too: both, and the paired difference."""
        for chosen, plain in self.diverse.items():
            keys = found.traded(self.every, chosen)
            rows = [
                (model_name(model), [self._cell(model, key, marks_best=False) for key in keys])
                for model in (plain, chosen)
            ]
            rows.append(("difference", self._differing((chosen, plain), keys)))
            yield Grid(f"{model_name(chosen)} beside {model_name(plain)}", [metric_name(*key) for key in keys], rows)

    def cutoff_figures(self) -> Iterator[Figure]:
        """Some list metrics over the cut-offs, of the model and the baseline with the best NDCG."""
        every = found.cutoffs(self.every)
        rival = found.best_model(self.every, ("ndcg", found.middle_cutoff(self.every)), self.baselines)
        shown = [(self.models[0], OURS)] + ([(rival, THEIRS)] if rival else [])
        for metric in _BY_LENGTH if len(every) > 1 else ():
            series = []
            for model, kind in shown:
                values = [(float(k), self._value(model, (metric, k))) for k in every]
                series.append(Series(model_name(model), kind, [(k, value) for k, value in values if value is not None]))
            title = metric_name(metric)
            drawing = charts.lines(series, label=title, x_name="length of list", x_ticks=every)
            if drawing is not None:
                yield Figure(title, drawing, parts.legend(series))

    def differences(self) -> Iterator[Grid]:
        """Paired differences at each key: the model to each other, a stack to each baseline, these to `against`."""
        ours = self.models[0]
        for one in (ours, *(model for model in self.models if model in self.stacks)):
            others = [model for model in self.models if model != one and (one == ours or model != ours)]
            yield from self._differences(
                f"{model_name(one)} less each other", {other: (one, other) for other in others}
            )
        others = [model for model in self.baselines if model != self.against]
        title = f"Each other baseline less {model_name(self.against)}"
        yield from self._differences(title, {other: (other, self.against) for other in others})

    def _differences(self, title: str, compared: Mapping[str, tuple[str, str]]) -> Iterator[Grid]:
        rows = [(model_name(name), self._differing(pair, self.keys)) for name, pair in compared.items()]
        if any(cell.value != NOTHING for _, cells in rows for cell in cells):
            yield Grid(title, [metric_name(*key) + parts.direction(key[0]) for key in self.keys], rows)

    def _differing(self, pair: tuple[str, str], keys: Sequence[tuple[str, int]]) -> list[Cell]:
        found_at = [self.every.get((difference(*pair), *key)) for key in keys]
        return [Cell(NOTHING) if row is None else parts.differing(row) for row in found_at]

    def calibration(self) -> tuple[Figure, Grid] | None:
        """The model's probabilities and those of the baseline with the least log-loss; the model's as numbers."""
        rival = found.best_model(self.every, ("log_loss", 0), self.baselines)
        shown = [(self.models[0], OURS)] + ([(rival, THEIRS)] if rival else [])
        series = [Series(model_name(model), kind, self._curve(model)) for model, kind in shown]
        numbers = range(1, metrics.CALIBRATION_BINS + 1)
        shares = [self._value(self.models[0], ("calibration_rows", number)) or 0.0 for number in numbers]
        drawing = charts.calibration(series, shares, label="Calibration")
        if drawing is None:
            return None
        rows = []
        for number, share in zip(numbers, shares, strict=True):
            cells = [self._cell(self.models[0], (name, number)) for name in metrics.CALIBRATION[:2]]
            low, high = ((number + place) / metrics.CALIBRATION_BINS for place in (-1, 0))
            plain = [Cell(cell.value, cell.interval) for cell in cells]
            rows.append((f"{low:.1f} to {high:.1f}", [*plain, Cell(f"{share:.1%}")]))
        title = f"Probabilities of {model_name(self.models[0])}"
        return Figure("Predicted and observed", drawing, parts.legend(series)), Grid(
            title, ["mean", "liked", "rows"], rows
        )

    def segments(self) -> Iterator[tuple[Figure, Grid]]:
        """The model beside its best baseline over all users, if any, in each segment that somebody is in."""
        k = found.middle_cutoff(self.every)
        for key in (("auc", 0), ("uauc", 0), ("ndcg", k)):
            rival = found.best_model(self.every, key, self.baselines)
            if key not in self.keys:
                continue
            shown = {OURS: self.models[0]} | ({} if rival is None else {THEIRS: rival})
            every = {name: found.of_segment(self.rows, name) for name in _SEGMENTS}
            found_in = {
                name: part for name, part in every.items() if parts.number(part, self.models[0], key) is not None
            }
            rows = [
                (name, [parts.dot(part[model, *key], kind) for kind, model in shown.items()])
                for name, part in found_in.items()
            ]
            drawing = charts.dots(rows, label=f"{metric_name(*key)} by segment")
            if drawing is not None:
                names = [(kind, model_name(model)) for kind, model in shown.items()]
                yield Figure(metric_name(*key), drawing, names), self._segment_grid(found_in, key, [*shown.values()])

    def _segment_grid(self, found_in: Mapping[str, Found], key: tuple[str, int], models: Sequence[str]) -> Grid:
        """The models, and the difference where they are two."""
        rows, decimals = [], found.decimals(self.every, key, models)
        for name, part in found_in.items():
            cells = [Cell(f"{part[models[0], *key].n_users:,}")]
            cells += [parts.cell(part[model, *key], decimals=decimals) for model in models]
            cells += [parts.differing(part[difference(*models), *key])] if len(models) > 1 else []
            rows.append((name, cells))
        columns = ["users", *map(model_name, models), *(["difference"] if len(models) > 1 else [])]
        return Grid(metric_name(*key), columns, rows)

    def _grid(self, title: str, keys: Sequence[tuple[str, int]]) -> Grid:
        shown = [key for key in keys if any(self._value(model, key) is not None for model in self.models)]
        every = (*self.models, *self.diverse)
        named = [model for model in every if any(self._value(model, key) is not None for key in shown)]
        rows = [(model_name(model), [self._cell(model, key) for key in shown]) for model in named]
        return Grid(title, [metric_name(metric) + parts.direction(metric) for metric, _ in shown], rows)

    def _curve(self, model: str) -> list[tuple[float, float]]:
        points = []
        for number in range(1, metrics.CALIBRATION_BINS + 1):
            x, y = (self._value(model, (name, number)) for name in ("calibration_predicted", "calibration_liked"))
            if x is not None and y is not None:
                points.append((x, y))
        return points

    def _value(self, model: str, key: tuple[str, int]) -> float | None:
        return parts.number(self.every, model, key)

    def _cell(self, model: str, key: tuple[str, int], *, marks_best: bool = True) -> Cell:
        row = self.every.get((model, *key))
        if row is None:
            return Cell(NOTHING)
        best = found.best(self.every, key, self.models) if marks_best and key[0] not in LIST_QUALITIES else None
        return parts.cell(row, best, decimals=found.decimals(self.every, key, [*self.models, *self.diverse]))

    def _dot(self, model: str, key: tuple[str, int]) -> Dot:
        kind = OURS if model == self.models[0] else THEIRS if model == self.against else OTHER
        return parts.dot(self.every[model, *key], kind)
