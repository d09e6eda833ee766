"""The sections of a config: every key with its type, its default and what it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from flmrec_spark.fields import Count, Finite, Place, Section, Share

Baseline = Literal[
    "popularity",
    "item_mean",
    "user_mean",
    "user_item_mean",
    "logistic_regression",
    "als",
    "item_knn",
    "ease",
    "markov",
    "content_tfidf",
    "content_lm",
]
# What can list: all but user_mean, which has one score for all items.
Strategy = Literal[
    "flm",
    "hybrid",
    "popularity",
    "item_mean",
    "user_item_mean",
    "logistic_regression",
    "als",
    "item_knn",
    "ease",
    "markov",
    "content_tfidf",
    "content_lm",
]
Repeats = Literal["best", "last", "all"]
CHEAP: list[Baseline] = [name for name in get_args(Baseline) if name != "content_lm"]  # whose fit runs no model


class Source(Section):
    """Where rows come from: a path with its format, or a table by its catalog name."""

    path: Place | None = Field(None, description="file, folder or URI; needs `format`")
    table: str | None = Field(None, description="catalog name, instead of `path`")
    format: Literal["csv", "tsv", "parquet", "delta"] | None = None
    columns: dict[str, str | None] = Field(default_factory=dict, description="our column: theirs; null: there is none")
    attributes: dict[str, str] | None = Field(
        None, description="items and users: our attribute: their column; null takes every further column"
    )
    types: dict[str, Literal["string", "int", "double", "boolean"]] = Field(
        default_factory=dict, description="type of an attribute; else as in the source (csv and tsv: string)"
    )
    options: dict[str, str | int | bool] = Field(default_factory=dict, description="options of Spark's reader")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.table is None):
            raise ValueError("give either `path` or `table`")
        if (self.path is None) != (self.format is None):
            raise ValueError("`format` goes with `path`: csv, tsv, parquet or delta")
        return self

    @property
    def place(self) -> str:
        return self.path or self.table or ""


class TablesConfig(Section):
    root: Place | None = Field(None, description="folder or URI of the Delta tables, each in <root>/<name>")
    database: str = Field(
        "default",
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)?$",
        description="catalog database (or catalog.database) that names the tables",
    )
    metastore: Place | None = Field(None, description="folder of the embedded catalog; local masters only")


class SplitConfig(Section):
    by: Literal["user_time", "global_time", "leave_last_out", "random", "cold_users", "cold_items", "column"] = (
        "user_time"
    )
    valid_share: Share = Field(
        0.1,
        description="share of the rows between train and test, of users or items; column without any: of train; "
        "user_time: a user of five rows or fewer has none",
    )
    test_share: Share = Field(
        0.1, description="share of the rows, the last ones, or of the users or items; user_time: one at least"
    )
    seed: int = Field(
        1, description="for `random` and the cold splits, and for the order of rows that carry no timestamp"
    )

    @model_validator(mode="after")
    def _room_for_train(self) -> SplitConfig:
        if self.valid_share + self.test_share >= 1.0:
            raise ValueError(f"valid_share + test_share: got {self.valid_share + self.test_share}, expected below 1")
        return self


class PrepareConfig(Section):
    interactions: Source
    items: Source | None = Field(None, description="null: items are the ids in the interactions, titled by their id")
    users: Source | None = Field(None, description="null: users are the ids in the interactions")
    rating_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        None, description="lowest and highest rating; rows outside are refused"
    )
    event_values: dict[str, Finite] = Field(default_factory=dict, description="what each event is worth")
    liked_at_least: Finite | None = Field(None, description="liked: rating (or worth) >= this; null: all are")
    timestamp_format: str = Field(
        "auto",
        description="auto (times, ISO text, and numbers in the unit that their size speaks for: seconds, milli-, "
        "micro- or nanoseconds), seconds, milliseconds, or a Spark datetime pattern",
    )
    max_text_chars: Count = Field(10_000, description="longer ids, titles or attributes are refused")
    max_reject_share: Share = Field(0.05, description="refused share of a source's rows above which the job stops")
    repeats: Repeats = Field(
        "best",
        description="rows kept of a user, an item and a split: the first of the highest value, the last one, or all",
    )
    targets_per_example: Count = Field(16, description="interactions that share one user prefix in training")
    split: SplitConfig = SplitConfig()

    @field_validator("event_values", mode="before")
    @classmethod
    def _names_as_text(cls, given: Any) -> Any:
        """YAML reads the event 0 as a number, 1.50 as 1.5, and yes, no, on, off, true, false and null as others yet."""
        if not isinstance(given, dict):
            return given
        if others := [name for name in given if isinstance(name, bool | float) or name is None]:
            got = "null" if others[0] is None else str(others[0]).lower()
            raise ValueError(f"got the event {got}, expected names: put yes, no, true, 1.50 and the like in quotes")
        return {str(name): worth for name, worth in given.items()}

    @model_validator(mode="after")
    def _range_ascends(self) -> PrepareConfig:
        if self.rating_range is not None and not self.rating_range[0] < self.rating_range[1]:
            raise ValueError(f"rating_range: got {self.rating_range}, expected [lowest, highest]")
        return self


class PromptsConfig(Section):
    template: Place = Field("en", description="en, zh, or a path to your own YAML")
    user_tokens: Count = Field(96, description="user segment, tokens; only the oldest history is cut to fit")
    item_tokens: Count = Field(32, description="item segment, tokens; longer items are refused")
    history_length: Count = Field(30, description="interactions in a prompt at most, before tokens are counted")


class DiversityConfig(Section):
    relevance: Share = Field(
        1.0, description="maximal marginal relevance: weight of the score; the rest is of being unlike the list; 1: off"
    )
    pool: Count = Field(100, description="best candidates of a user that a list is chosen from")
    caps: dict[str, Count] = Field(
        default_factory=dict, description="attribute of items: at most this many items of one value in a list"
    )
    separators: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict, description="capped attribute: what stands between its values; else it is one value"
    )

    @model_validator(mode="after")
    def _separates_what_is_capped(self) -> DiversityConfig:
        free = sorted(set(self.separators) - set(self.caps))
        if free:
            raise ValueError(f"separators: got {free[0]}, expected an attribute of caps: {sorted(self.caps)}")
        return self

    @property
    def is_on(self) -> bool:
        return self.relevance < 1.0 or bool(self.caps)


class ScoreConfig(Section):
    strategy: Strategy = Field("flm", description="who makes the lists; but flm and hybrid, none needs a checkpoint")
    n: Count = Field(10, description="length of a published list")
    depth: Count | None = Field(None, description="length of a staged list in top_n; null: n")
    exclude_seen: bool = True
    item_filter: str | None = Field(None, description="SQL predicate over items, such as in_stock = true")
    candidates: Source | None = Field(None, description="pairs to score instead of all: user_id, item_id")
    history_splits: Annotated[list[Literal["train", "valid", "test"]], Field(min_length=1)] = Field(
        ["train", "valid", "test"], description="splits that history and seen items are from"
    )
    min_coverage: Share = Field(0.99, description="audit: share of the users that must get a list")
    max_reject_share: Share = Field(0.01, description="audit: share of the items that may be refused")
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "fp32", description="auto: the fastest here whose lists of a few users are not significantly worse"
    )
    partitions: Count | None = Field(None, description="tasks of the score stage, all equal; null: smaller ones last")
    broadcast_limit_mb: Annotated[int, Field(ge=0)] = Field(512, description="larger checkpoints travel as a file")
    gpus_per_task: Annotated[int, Field(ge=0, le=1)] = Field(0, description="1: a score task asks Spark for a GPU")
    diversity: DiversityConfig = Field(
        DiversityConfig(), description="which of the best items stand in a list together"
    )

    @model_validator(mode="after")
    def _deep_enough(self) -> ScoreConfig:
        if self.depth is not None and self.depth < self.n:
            raise ValueError(f"depth: got {self.depth}, expected >= n = {self.n}")
        if len(set(self.history_splits)) != len(self.history_splits):
            raise ValueError(f"history_splits: got {self.history_splits}, expected each split once")
        return self

    @model_validator(mode="after")
    def _diverse_lists_are_whole(self) -> ScoreConfig:
        if self.diversity.is_on and self.diversity.pool < self.n:
            raise ValueError(f"diversity.pool: got {self.diversity.pool}, expected >= n = {self.n}")
        if self.diversity.is_on and self.staged_n != self.n:
            raise ValueError(f"depth: got {self.depth}, expected null with diversity: its lists are chosen as a whole")
        return self

    @property
    def staged_n(self) -> int:
        return self.depth or self.n


class EvaluateConfig(Section):
    split: Literal["valid", "test"] = "test"
    k: Annotated[list[Count], Field(min_length=1)] = Field(default_factory=lambda: [5, 10, 20], description="cut-offs")
    max_users: Count = Field(100_000, description="held-out users measured, drawn by seed when there are more")
    against: str | None = Field(
        None, description="baseline that the others' paired differences are taken to; null: item_mean, or the first"
    )
    bootstrap: Annotated[int, Field(ge=0)] = Field(200, description="resamples of users for 95 % intervals; 0: none")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    report_users: Annotated[int, Field(ge=0)] = Field(
        3, description="users whose history and list the report shows; histories are personal: 0 shows none"
    )
    baselines: list[Baseline] = Field(
        default_factory=lambda: [*CHEAP], description="who is measured beside flm, and what a hybrid is made of"
    )
    hybrid: bool = Field(True, description="measure a stack of flm and the baselines too; for split test")

    @model_validator(mode="after")
    def _each_once(self) -> EvaluateConfig:
        if len(set(self.baselines)) != len(self.baselines):
            raise ValueError(f"baselines: got {self.baselines}, expected each name once")
        if self.against is not None and self.against not in self.baselines:
            raise ValueError(f"against: got {self.against!r}, expected one of the baselines {self.baselines}")
        return self

    def compared_with(self, fitted: Sequence[str]) -> str:
        """Of the baselines that could be fitted, the one that the others are compared with; flm when there is none."""
        if self.against is not None and self.against in fitted:
            return self.against
        return "item_mean" if "item_mean" in fitted else [*fitted, "flm"][0]
