"""Batches by the number of the step: mixtures in proportion, processes that share, evaluation of every row once."""

import numpy as np
import pytest

from flaxbert.data.pipeline import StepPipeline
from flaxbert.data.pretraining_batches import EvaluationRows, Phase, PretrainingBatches, RowMixture, split_steps
from flaxbert.data.pretraining_rows import RowSource, hold_out_documents
from flaxbert.errors import ConfigError, DataError
from tests.data.test_pretraining_rows import SPECIAL, masker, write_corpus


def make_source(folder, sizes, **options):
    folder.mkdir()
    corpus = write_corpus(folder, sizes)
    return RowSource(corpus, SPECIAL, masker(corpus), row_length=16, **options)


@pytest.fixture
def sources(tmp_path):
    return make_source(tmp_path / "a", [14] * 10), make_source(tmp_path / "b", [14] * 30)


def test_a_mixture_keeps_its_proportion_everywhere(sources):
    mixture = RowMixture(sources, [1.0, 3.0])
    places = [mixture.place(number) for number in range(2000)]
    for start in (0, 500, 1500):
        assert sum(which for which, _, _ in places[start : start + 100]) == pytest.approx(75, abs=2)
    for which, size in ((0, 10), (1, 30)):
        seen = [epoch * size + place for found, epoch, place in places if found == which]
        assert seen == list(range(len(seen))), "every source is read in its own order, epoch after epoch"


def test_without_weights_every_row_counts_alike(sources):
    mixture = RowMixture(sources)
    assert mixture.counts == [256, 768]
    assert mixture.num_rows == 40
    with pytest.raises(ConfigError, match="one positive weight for each"):
        RowMixture(sources, [1.0])
    with pytest.raises(ConfigError, match=r"The weights \[1\.0, 10000000\.0\] of the corpora are too far apart"):
        RowMixture(sources, [1.0, 1e7])


@pytest.mark.parametrize("rare", [1 / 2000, pytest.param(1 / 50_000, marks=pytest.mark.slow)])
def test_a_rare_source_comes_as_often_as_its_weight_says(rare, sources):
    mixture = RowMixture(sources, [rare, 1.0 - rare])
    which = [mixture.place(number)[0] for number in range(round(20 / rare))]
    assert which.count(0) == pytest.approx(20, abs=1)


def test_rows_of_corpora_with_more_and_fewer_pieces_go_into_one_batch(tmp_path):
    def make(name, sizes):
        corpus = write_corpus(tmp_path / name, sizes)
        return RowSource(corpus, SPECIAL, masker(corpus), row_length=64, pairs="next_sentence")

    few, many = make("few", [50] * 20), make("many", [12] * 60)
    assert few.max_pieces < many.max_pieces
    mixture = RowMixture((few, many))
    batches = PretrainingBatches([Phase(mixture, 8, 4)])
    assert {batches[step]["pair_labels"].shape for step in range(4)} == {(8, many.max_pieces)}
    alone = few.rows([0], 0)["pair_labels"]
    wide = mixture.sources[0].rows([0], 0)["pair_labels"]
    assert np.array_equal(wide[:, : alone.shape[1]], alone)
    assert (wide[:, alone.shape[1] :] < 0).all()


def test_processes_share_the_batch(sources):
    mixture = RowMixture(sources)
    whole = PretrainingBatches([Phase(mixture, 8, 10)])
    parts = [PretrainingBatches([Phase(mixture, 8, 10)], index, 4) for index in range(4)]
    for step in (0, 7):
        together = [part[step] for part in parts]
        for name, array in whole[step].items():
            assert np.array_equal(array, np.concatenate([part[name] for part in together]))


def test_a_run_goes_on_where_it_stood(sources):
    mixture = RowMixture(sources)
    expected = [PretrainingBatches([Phase(mixture, 4, 30)])[step]["input_ids"] for step in range(30)]
    pipeline = StepPipeline(PretrainingBatches([Phase(mixture, 4, 30)]))
    for _ in range(11):
        next(pipeline)
    state = pipeline.get_state()
    again = StepPipeline(PretrainingBatches([Phase(mixture, 4, 30)]))
    again.set_state(state)
    rest = [batch["input_ids"] for batch in again]
    assert len(rest) == 19
    assert all(np.array_equal(a, b) for a, b in zip(rest, expected[11:], strict=True))
    other = StepPipeline(PretrainingBatches([Phase(mixture, 8, 30)]))
    with pytest.raises(DataError, match=r"batches: phases\.0\.batch_size was 4 and is 8\. Resume"):
        other.set_state(state)
    for pipe in (pipeline, again, other):
        pipe.close()


def test_another_tokenizer_or_other_masks_are_told_by_name(sources):
    def pipeline(tokenizer, source=sources[0]):
        return StepPipeline(PretrainingBatches([Phase(RowMixture([source]), 4, 30)], tokenizer=tokenizer))

    state = pipeline("one").get_state()
    pipeline("one").check_state(state)
    with pytest.raises(DataError, match=r"batches: tokenizer was 'one' and is 'other'\. Resume"):
        pipeline("other").check_state(state)
    pipeline("one").check_state({name: value for name, value in state.items() if name != "tokenizer"})
    corpus = sources[0].corpus
    changed = RowSource(corpus, SPECIAL, masker(corpus, rate=0.5), row_length=16)
    with pytest.raises(
        DataError, match=r"batches: phases\.0\.sources\.0\.masking\.rate was 0\.15 and is 0\.5\. Resume"
    ):
        pipeline("one", changed).check_state(state)
    both = StepPipeline(PretrainingBatches([Phase(RowMixture(sources), 4, 30)], tokenizer="one"))
    with pytest.raises(DataError, match=r"phases\.0\.sources\.1\.row_length was 16 and is None"):
        pipeline("one").check_state(both.get_state())


def test_every_row_of_an_epoch_comes_once(sources):
    mixture = RowMixture(sources[:1])
    batches = PretrainingBatches([Phase(mixture, 5, 4)])
    first = np.concatenate([batches[0]["position_ids"], batches[1]["position_ids"]])
    assert len(first) == 10
    orders = [sources[0].order(epoch).tolist() for epoch in (0, 1)]
    assert [mixture.place(number)[1:] for number in (0, 9, 10, 19)] == [(0, 0), (0, 9), (1, 0), (1, 9)]
    assert orders[0] != orders[1]
    assert batches.steps_per_epoch == 2


def test_evaluation_shows_every_row_once(sources):
    rows = EvaluationRows(sources[0], 4)
    batches = list(rows)
    assert len(batches) == len(rows) == 3
    assert sum(batch["example_weight"].sum() for batch in batches) == 10
    labels = np.concatenate([batch["labels"] for batch in batches])
    expected = sources[0].rows(range(10), -1)["labels"]
    assert np.array_equal(labels[:10], expected)
    assert (labels[10:] < 0).all()
    halves = [list(EvaluationRows(sources[0], 4, 6, index, 2)) for index in range(2)]
    together = [np.concatenate([a["labels"], b["labels"]]) for a, b in zip(*halves, strict=True)]
    assert np.array_equal(np.concatenate(together)[:6], expected[sources[0].sample(6)])
    assert (np.concatenate(together)[6:] < 0).all()


def test_some_rows_stand_for_all(tmp_path):
    source = make_source(tmp_path / "a", [14] * 100 + [2] * 400, min_tokens=2)
    pieces = [
        np.count_nonzero(np.diff(source.rows([number], -1)["segment_ids"][0])) for number in source.sample(60).tolist()
    ]
    assert 0.5 < np.mean(np.array(pieces) > 1) < 0.95, "rows with one long piece lie before those with several"
    assert source.sample(60).tolist() == source.sample(60).tolist() == sorted(set(source.sample(60).tolist()))
    assert source.sample(len(source)).tolist() == list(range(len(source)))


def test_held_out_documents_are_not_trained_on(tmp_path):
    corpus = write_corpus(tmp_path, [14] * 50)
    held = hold_out_documents(50, 0.1, 3)
    assert held.sum() == 5
    train = RowSource(corpus, SPECIAL, masker(corpus), row_length=16, documents=~held)
    rest = RowSource(corpus, SPECIAL, masker(corpus), row_length=16, documents=held)
    assert (len(train), len(rest)) == (45, 5)
    assert not set(train.pieces.documents) & set(rest.pieces.documents)
    assert train.identity != rest.identity
    assert hold_out_documents(1, 0.5, 0).sum() == 0
    assert hold_out_documents(2, 0.9, 0).sum() == 1


def test_phases_follow_each_other_with_shapes_of_their_own(tmp_path, sources):
    longer = RowMixture([RowSource(sources[1].corpus, SPECIAL, sources[1].masker, row_length=32)])
    phases = [Phase(RowMixture(sources), 4, 3), Phase(longer, 2, 5)]
    batches = PretrainingBatches(phases)
    assert len(batches) == 8
    shapes = [batches[step]["input_ids"].shape for step in range(8)]
    assert shapes == [(4, 16)] * 3 + [(2, 32)] * 5
    alone = PretrainingBatches(phases[1:])
    assert np.array_equal(batches[3]["input_ids"], alone[0]["input_ids"])
    assert np.array_equal(batches[7]["labels"], alone[4]["labels"])
    moved = PretrainingBatches([Phase(RowMixture(sources), 4, 2), phases[1]])
    assert moved.identity != batches.identity, "where a phase begins decides what a step holds"
    longer_run = PretrainingBatches([phases[0], Phase(longer, 2, 9)])
    assert longer_run.identity == batches.identity


def test_a_batch_that_grows_goes_on_with_the_rows_that_were_not_shown(sources):
    mixture = RowMixture(sources)
    grown = PretrainingBatches([Phase(mixture, 2, 4), Phase(mixture, 4, 3)])
    alike = PretrainingBatches([Phase(mixture, 2, 10)])

    def rows(batches):
        return np.concatenate([batches[step]["input_ids"] for step in range(len(batches))])

    np.testing.assert_array_equal(rows(grown), rows(alike))
    for process in range(2):
        share = PretrainingBatches([Phase(mixture, 2, 4), Phase(mixture, 4, 3)], process, 2)
        np.testing.assert_array_equal(share[5]["input_ids"], grown[5]["input_ids"][2 * process : 2 * process + 2])
    assert "phases.1.first_row" in grown.identity
    assert not any(name.endswith("first_row") for name in alike.identity)


def test_steps_are_split_by_shares():
    assert split_steps(100, [9, 1]) == [90, 10]
    assert split_steps(10, [1000, 1]) == [9, 1]
    assert sum(split_steps(17, [0.3, 0.3, 0.4])) == 17
    with pytest.raises(ConfigError, match="2 steps can not have 3 phases"):
        split_steps(2, [1, 1, 1])
