"""One YAML, its overrides, and what is said about a wrong one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flmrec_spark import errors
from flmrec_spark.config import Config, known_keys, load_config
from flmrec_spark.errors import ConfigError, FlmrecError
from flmrec_spark.sections import EvaluateConfig

ROOT = Path(__file__).parent.parent
OWN = ROOT / "conf/own.yaml"  # a start for data of one's own: some keys alone
CONFIGS = sorted({*(ROOT / "conf").glob("*.yaml")} - {OWN})
SMALLEST: dict[str, Any] = {
    "tables": {"root": "t"},
    "prepare": {"interactions": {"path": "i.csv", "format": "csv"}},
    "model": {"path": "m"},
    "checkpoint": "c",
}


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    return written(tmp_path, yaml.safe_dump(SMALLEST))


def written(folder: Path, text: str) -> Path:
    file = folder / "c.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def message(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value)


def test_what_is_left_out_has_its_default(smallest: Path) -> None:
    config = load_config(smallest)
    assert (config.score.n, config.score.staged_n, config.prepare.split.by) == (10, 10, "user_time")
    assert config.score.history_splits == ["train", "valid", "test"]


def test_factors_have_by_default_the_settings_that_movielens_chose(smallest: Path) -> None:
    config, shipped = load_config(smallest), load_config(ROOT / "conf/movielens.yaml")
    assert config.model.collaborative == shipped.model.collaborative
    assert config.finetune.factors == shipped.finetune.factors


def test_every_fault_of_file_and_overrides_is_told_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, "tables: {}\nprepare: {interactions: {path: a}}\nmodel: {join: ful}\nscore: {n: 0}\n")
    told = message(file, "score.depht=3", "checkpoint", "evaluate.k=[]")
    for part in (
        "prepare.interactions: `format` goes with `path`",
        "model.path: missing",
        "model.join: got 'ful', expected 'attention', 'layer' or 'full'",
        "checkpoint: missing",
        "score.n: got 0, expected greater than or equal to 1",
        "score.depht: unknown key, did you mean score.depth?",
        "evaluate.k: got []",
        "override: got 'checkpoint', expected section.key=value",
    ):
        assert part in told
    assert told.startswith(f"{file}: ")
    assert "\n" not in told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("scor.n=3", "scor: unknown key, did you mean score?"),
        ("score.exclude_sen=true", "score.exclude_sen: unknown key, did you mean score.exclude_seen?"),
        ("finetune.sead=3", "finetune.sead: unknown key, did you mean finetune.seed?"),
        ("evaluate.sed=3", "evaluate.sed: unknown key, did you mean evaluate.seed?"),
        ("score.zzz=3", "score.zzz: unknown key"),
        ("score.n.m=3", "score.n: got {'m': 3}, expected a valid integer"),
        ("checkpoint.x=3", "override checkpoint.x: checkpoint is no section"),
        ("score=", "score: got None, expected a section of keys"),
        ("score.n=ten", "score.n: got 'ten', expected a valid integer"),
        ("score.n=1.5", "score.n: got 1.5, expected a valid integer"),
        ("score.n=true", "score.n: got True, expected a valid integer"),
        ("score.exclude_seen=1", "score.exclude_seen: got 1, expected a valid boolean"),
        ("score.item_filter=title = 'a: b'", 'score.item_filter: got {"title = \'a": "b\'"}, expected a valid string'),
        ("score.n=[", "override score.n: got '[', expected a YAML value"),
        ("=3", "override: got '=3', expected section.key=value"),
        ("model.join_layer=first", "model.join_layer: got 'first', expected a valid integer or 'last'"),
        ("model.join_layer=-1", "model.join_layer: got -1, expected greater than or equal to 0 or 'last'"),
        ("score.depth=3", "score: depth: got 3, expected >= n = 10"),
        ("score.history_splits=[train, train]", "expected each split once"),
        ("prepare.split.valid_share=0.95", "prepare.split: valid_share + test_share: got 1.05, expected below 1"),
        ("prepare.rating_range=[5, 1]", "prepare: rating_range: got [5.0, 1.0], expected [lowest, highest]"),
        ("prepare.rating_range=[.nan, 1]", "prepare: rating_range: got [nan, 1.0], expected [lowest, highest]"),
        ("finetune.learning_rate=.inf", "finetune.learning_rate: got inf, expected a finite number"),
        ("score.topn=5", "score.topn: unknown key, known: strategy, n, depth, "),
        ("tune.space.finetune.learning_rat=5", "tune.space.finetune.learning_rat: got 5, expected"),
        ("prepare.event_values={buy: 1}", "prepare.liked_at_least: got null, expected a worth"),
        ("prepare.event_values={yes: 1}", "got the event true, expected names: put yes, no, true, 1.50 and"),
        ("prepare.event_values={1.50: 1}", "got the event 1.5, expected names: put yes, no, true, 1.50 and"),
        ("prepare.event_values={null: 1}", "got the event null, expected names: put yes, no, true, 1.50 and"),
        ("prepare.liked_at_least=.nan", "prepare.liked_at_least: got nan, expected a finite number"),
        ("prepare.interactions.table=x", "prepare.interactions: give either `path` or `table`"),
        ("tables.database=my-db; DROP", "tables.database: got 'my-db; DROP'"),
        (
            "finetune.adapter.method=prefix_tuning",
            "finetune.adapter.method: got prefix_tuning, expected none, lora, dora or adalora: keys and values in "
            "front of a prompt are no part of a stock model's weights, so they could not be merged into them",
        ),
        (
            "finetune.adapter.method=ia3",
            "finetune.adapter.method: got 'ia3', expected 'none', 'lora', 'dora' or 'adalora'",
        ),
        ("evaluate.seed=-1", "evaluate.seed: got -1, expected greater than or equal to 0"),
        ("tune.seed=-1", "tune.seed: got -1, expected greater than or equal to 0"),
        ("tune.space={finetune.seed: {low: 1}}", "tune.space.finetune.seed.high: missing"),
        ("finetune.adapter.modules=5", "finetune.adapter.modules: got 5, expected 'auto' or a valid list"),
        ("finetune.negatives=0", "finetune: negatives: got 0, expected >= 1 as ranking_weight is above 0"),
    ],
)
def test_a_wrong_override_is_told_with_what_was_expected(smallest: Path, override: str, told: str) -> None:
    assert told in message(smallest, override)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("score.n=20", 20),
        ("score.item_filter=year > 1990", "year > 1990"),
        ("score.item_filter='title = ''a: b'''", "title = 'a: b'"),
        ("score.item_filter=a=b", "a=b"),
        ("score.item_filter=", None),
        ("finetune.learning_rate=1e-3", 0.001),
        ("finetune.learning_rate=1", 1.0),
        ("evaluate.k=[1, 2]", [1, 2]),
        ("prepare.interactions.columns.user_id=uid", "uid"),
        ("prepare.split.seed=7", 7),
        ("model.head=answer", "answer"),
    ],
)
def test_an_override_is_a_yaml_value_of_the_keys_type(smallest: Path, override: str, value: object) -> None:
    found: Any = load_config(smallest, [override])
    for name in override.partition("=")[0].split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("join", ["attention", "full"])
def test_a_join_that_has_its_own_layer_refuses_another(smallest: Path, join: str) -> None:
    told = message(smallest, f"model.join={join}", "model.join_layer=1")
    assert f"model: join_layer: got 1, expected last, or join: layer; got {join}" in told
    assert load_config(smallest, ["model.join=layer", "model.join_layer=1"]).model.join_layer == 1


def test_a_hybrid_of_nothing_is_refused(smallest: Path) -> None:
    told = "evaluate.baselines: got none, expected some, as score.strategy: hybrid is made of them"
    assert told in message(smallest, "score.strategy=hybrid", "evaluate.baselines=[]")


def test_an_override_where_an_alias_stands_is_of_that_section_alone(smallest: Path) -> None:
    candidates = "{path: c.csv, format: csv, options: &more {sep: ';'}}"
    users = "{path: u.csv, format: csv, options: *more}"
    text = smallest.read_text().replace("prepare:\n", f"prepare:\n  users: {users}\n", 1)
    smallest.write_text(f"score:\n  candidates: {candidates}\n{text}")
    config = load_config(smallest, ["prepare.users.options.encoding=GBK"])
    assert config.prepare.users is not None and config.score.candidates is not None
    assert config.prepare.users.options == {"sep": ";", "encoding": "GBK"}
    assert config.score.candidates.options == {"sep": ";"}


def test_the_last_override_of_a_key_counts(smallest: Path) -> None:
    assert load_config(smallest, ["score.n=3", "score.n=4"]).score.n == 4


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    told = message(written(tmp_path, yaml.safe_dump(SMALLEST) + "score:\n  n: 3\n  n: 4\n"))
    assert re.search(r"not readable as YAML: key n stands twice .*line 12", told)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "got NoneType, expected sections such as `score:`"),
        (b"- 1\n", "got list, expected sections"),
        (b"a: [\n", "not readable as YAML"),
        (b"\xff\xfe\x00", "not readable as YAML"),
        (b"a: !!python/object:os.system x\n", "not readable as YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    assert told in message(file)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "expected a YAML file; there is none" in message(tmp_path / "none.yaml")
    assert f"{tmp_path}: not readable as YAML" in message(tmp_path)


def test_a_config_is_frozen(smallest: Path) -> None:
    config = load_config(smallest)
    with pytest.raises(ValidationError, match="frozen"):
        config.score.n = 3  # type: ignore[misc]


def test_the_digest_depends_on_values_alone_and_on_the_sections_asked_for(smallest: Path, tmp_path: Path) -> None:
    config = load_config(smallest)
    turned = written(tmp_path, yaml.safe_dump(dict(reversed(SMALLEST.items())), sort_keys=False))
    other = load_config(smallest, ["score.n=11"])
    assert load_config(turned).digest() == config.digest()
    assert re.fullmatch("[0-9a-f]{12}", config.digest())
    assert other.digest() != config.digest()
    assert other.digest("prepare", "model") == config.digest("prepare", "model")
    assert other.digest("score") != config.digest("score")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
PRINTABLE = TEXT | st.sampled_from(["1e-3", "null", "yes", "~", "007", "a: b", "# c", "'", "\n", "\u2028", "é"])


@given(
    place=PRINTABLE,
    columns=st.dictionaries(PRINTABLE, PRINTABLE, max_size=3),
    item_filter=st.none() | PRINTABLE,
    rate=st.floats(min_value=1e-12, max_value=1e3, exclude_min=True),
    n=st.integers(1, 10**9),
    join_layer=st.integers(0, 99) | st.just("last"),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_config_survives_the_way_to_yaml_and_back(
    tmp_path_factory: pytest.TempPathFactory,
    place: str,
    columns: dict[str, str],
    item_filter: str | None,
    rate: float,
    n: int,
    join_layer: int | str,
    seed: int,
) -> None:
    values = SMALLEST | {
        "prepare": {"interactions": {"path": place, "format": "csv", "columns": columns}},
        "model": {"path": place, "join": "layer", "join_layer": join_layer},
        "finetune": {"learning_rate": rate, "seed": seed},
        "score": {"n": n, "item_filter": item_filter},
    }
    config = Config.model_validate(values)
    back = load_config(written(tmp_path_factory.mktemp("way"), config.to_yaml()))
    assert back == config
    assert back.digest() == config.digest()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_a_shipped_config_loads_and_finds_its_template(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flmrec_spark.prompts import load_template

    monkeypatch.chdir(ROOT)
    config = load_config(file)
    items, users = config.prepare.items, config.prepare.users
    assert items is not None
    assert users is not None
    item_fields, user_fields = ["title", *(items.attributes or {})], [*(users.attributes or {})]
    load_template(config.prompts.template).check(item_fields=item_fields, user_fields=user_fields)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_a_shipped_config_has_every_key_with_a_comment_and_the_commands(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    found, path = {}, []
    for line in lines:
        key = re.match(r"^( *)([a-z_]+):(.*)$", line)
        if key:
            path = [*path[: len(key.group(1)) // 2], key.group(2)]
            found[".".join(path)] = key.group(3)
    within_null = tuple(f"{name}." for name, rest in found.items() if re.match(r" null\b", rest))
    expected = {name for name in known_keys() if not name.startswith(within_null)}
    assert set(found) == expected
    assert [name for name, rest in found.items() if not re.search(r"(^|\s)# \S", rest)] == []
    assert f"#   spark-submit jobs/score.py --config conf/{file.name}" in lines


def test_every_error_has_its_documented_exit_code() -> None:
    documented = dict(re.findall(r"^(?:  )?(\w+) +(\d)  ", errors.__doc__ or "", re.MULTILINE))
    kinds = [FlmrecError, *FlmrecError.__subclasses__()]
    assert {kind.__name__: str(kind.exit_code) for kind in kinds} == documented
    assert len({kind.exit_code for kind in kinds}) == len(kinds) == 8


def test_differences_are_taken_to_the_named_baseline_or_where_it_could_not_be_fitted_to_another() -> None:
    named, default = EvaluateConfig(against="ease"), EvaluateConfig()
    assert named.compared_with(["ease", "item_mean"]) == "ease"
    assert named.compared_with(["als", "item_mean"]) == default.compared_with(["als", "item_mean"]) == "item_mean"
    assert default.compared_with(["als", "popularity"]) == "als"
    assert default.compared_with([]) == "flm"


def test_tokens_of_no_factors_are_refused(smallest: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.collaborative: tokens: got true, expected false, as dimension is 0"):
        load_config(smallest, ["model.collaborative.tokens=true", "model.collaborative.dimension=0"])


def test_events_that_yaml_reads_as_numbers_are_names(smallest: Path) -> None:
    found = load_config(smallest, ["prepare.event_values={0: 1, 'true': 2, view: 3}", "prepare.liked_at_least=2"])
    assert found.prepare.event_values == {"0": 1.0, "true": 2.0, "view": 3.0}


def test_a_number_is_decimal_and_what_begins_with_a_zero_is_text(smallest: Path) -> None:
    given = "prepare.event_values={01: 1, 010: 2, 0x10: 3, 12:30: 4, 7: 5, 0: 6}"
    config = load_config(smallest, [given, "prepare.liked_at_least=1"])
    assert config.prepare.event_values == {"01": 1.0, "010": 2.0, "0x10": 3.0, "12:30": 4.0, "7": 5.0, "0": 6.0}
    assert load_config(smallest, ["score.n=1_0"]).score.n == 10
    again = smallest.parent / "again.yaml"
    again.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(again, []).prepare.event_values == config.prepare.event_values


def test_a_name_with_dots_is_one_key_where_names_are_of_ones_own(smallest: Path) -> None:
    given = ["tune.space.finetune.learning_rate=[1.0e-5, 1.0e-4]", "prepare.event_values.add.cart=2"]
    found = load_config(smallest, [*given, "prepare.liked_at_least=2"])
    assert found.tune.space == {"finetune.learning_rate": [1e-5, 1e-4]}
    assert found.prepare.event_values == {"add.cart": 2.0}


def test_the_start_for_data_of_ones_own_loads_and_says_little_but_what_is_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    found = load_config(OWN)
    assert found.prepare.liked_at_least in found.prepare.event_values.values()
    assert len(OWN.read_text(encoding="utf-8").splitlines()) < 50
    assert f"#   spark-submit jobs/score.py --config conf/{OWN.name}" in OWN.read_text(encoding="utf-8").splitlines()
