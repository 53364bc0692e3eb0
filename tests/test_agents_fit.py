"""Training of next-item models: what is learned, which epoch is kept, when it stops, and how it goes on."""

from types import SimpleNamespace

import pytest
import torch
from toy_agents import toy_histories

from feedgym.agents.fit import RECORD, BestEpoch, FitConfig, fit
from feedgym.agents.sasrec import SASRec, SASRecConfig
from feedgym.agents.sequences import SequenceDataset
from feedgym.data.whole import read_sealed, write_sealed

NUM_ITEMS = 10


pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(seed=0, **sizes):
    torch.manual_seed(seed)
    given = dict(d_model=16, d_ff=16, num_items=NUM_ITEMS, history_length=6, session_length=2, only_positives=False)
    return SASRec(SASRecConfig(**given | sizes))


def cycles(num, seed=0):
    """Users who take item after item in order, from anywhere."""
    histories = toy_histories(num, seed, NUM_ITEMS)
    first_U1 = torch.randint(NUM_ITEMS, (num, 1), generator=torch.Generator().manual_seed(seed))
    items_UT = (first_U1 + torch.arange(6)) % NUM_ITEMS
    return type(histories)(
        **vars(histories)
        | {"item_ids_UT": items_UT * histories.mask_UT, "behaviours_UTB": torch.ones_like(histories.behaviours_UTB)}
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


# BCE never draws what the user took later as a negative, so it can hardly tell the next item from those that follow.
@pytest.mark.parametrize(("loss", "first"), [("bce", 4), ("ce", 1), ("sampled_softmax", 1)])
def test_every_loss_learns_what_comes_next(loss, first, tmp_path):
    model, seen = model_of(loss=loss, num_negatives=8, dropout=0.0), cycles(64, seed=1)
    last_U = (seen.mask_UT.sum(1) - 1).clamp_min(0)
    next_U = (seen.item_ids_UT[torch.arange(64), last_U] + 1) % NUM_ITEMS
    known_U = seen.mask_UT.any(1)

    def accuracy(model):
        hit_U = (model.scores(seen).topk(first, dim=1).indices == next_U[:, None]).any(1)
        return float(hit_U[known_U].float().mean())

    examples = SequenceDataset(histories=cycles(400))
    fit(model, examples, FitConfig(batch_size=40, lr=2e-2), 10, 0, accuracy, tmp_path)
    assert accuracy(model) > 0.9


@pytest.mark.parametrize(("patience", "epochs_run"), [(2, 4), (0, 6)])
def test_the_best_epoch_is_kept_and_patience_ends_the_training(patience, epochs_run, tmp_path):
    figures, known = iter([0.1, 0.5, 0.5, 0.2, 0.3, 0.4]), []

    def validate(model):
        known.append(weights(model))
        return next(figures)

    examples, config = SequenceDataset(histories=cycles(20)), FitConfig(batch_size=8, patience=patience)
    model, curve = fit(model_of(), examples, config, 6, 0, validate, tmp_path)
    assert len(known) == len(curve) == epochs_run and [row["epoch"] for row in curve] == list(range(1, epochs_run + 1))
    assert same(weights(model), known[1]) and not same(known[1], known[2])
    # Asked again, it is only read.
    again, curve_again = fit(model_of(1), examples, config, 6, 0, lambda model: pytest.fail("validated"), tmp_path)
    assert same(weights(again), known[1]) and curve_again == curve


@pytest.mark.parametrize("dies_at", [7, 9])  # an epoch has 3 steps: amid the third, and right after it
def test_a_killed_run_ends_in_the_same_weights(dies_at, tmp_path):
    examples, config = SequenceDataset(histories=cycles(20)), FitConfig(batch_size=8, lr=1e-2, patience=3)

    def validate(model):
        return float(model.scores(cycles(9, 3)).std())

    def dies(step, steps, metrics):
        if step == dies_at:
            raise KeyboardInterrupt

    calm, curve = fit(model_of(), examples, config, 5, 0, validate, tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(), examples, config, 5, 0, validate, tmp_path / "killed", dies)
    assert len(read_sealed(tmp_path / "killed" / RECORD)["curve"]) == 2
    torch.rand(5)
    resumed, curve_resumed = fit(model_of(4), examples, config, 5, 0, validate, tmp_path / "killed")
    assert same(weights(resumed), weights(calm))
    assert [row["validation"] for row in curve_resumed] == [row["validation"] for row in curve]


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_killed_while_it_validates_misses_no_validation(epoch, tmp_path):
    config = FitConfig(batch_size=8, lr=1e-2, checkpoint_steps=1)  # also at the end of each epoch
    examples, calls = SequenceDataset(histories=cycles(20)), []

    def validate(model):
        return float(model.scores(cycles(9, 3)).std())

    def dies(model):
        calls.append(model)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return validate(model)

    calm, curve = fit(model_of(), examples, config, 3, 0, validate, tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(), examples, config, 3, 0, dies, tmp_path / "killed")
    again, curve_again = fit(model_of(), examples, config, 3, 0, validate, tmp_path / "killed")
    assert curve_again == curve and same(weights(again), weights(calm))


@pytest.mark.parametrize("damage", ["the record", "the best weights", "no record", "another record"])
def test_a_killed_run_with_a_damaged_record_begins_again_and_ends_in_the_same_weights(damage, tmp_path):
    examples, config, steps = SequenceDataset(histories=cycles(20)), FitConfig(batch_size=8, lr=1e-2), []

    def validate(model):
        return float(model.scores(cycles(9, 3)).std())

    def dies(step, total, metrics):
        if step == 7:
            raise KeyboardInterrupt

    calm, curve = fit(model_of(), examples, config, 3, 0, validate, tmp_path / "calm")
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(), examples, config, 3, 0, validate, killed, dies)
    file = next(killed.glob("best-*")) if damage == "the best weights" else killed / RECORD
    data = file.read_bytes()
    if damage == "another record":
        write_sealed(file, {"key": "of a stage"})
    elif damage == "no record":
        file.unlink()
    else:
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    again, curve_again = fit(model_of(), examples, config, 3, 0, validate, killed, lambda *step: steps.append(step[0]))
    assert steps == list(range(1, 10)) and curve_again == curve and same(weights(again), weights(calm))


def test_validation_can_be_rarer_but_the_last_epoch_always_has_one(tmp_path):
    examples, config = SequenceDataset(histories=cycles(20)), FitConfig(batch_size=8, validate_every=3)
    _, curve = fit(model_of(), examples, config, 5, 0, lambda model: 1.0, tmp_path)
    assert [row["epoch"] for row in curve] == [3, 5]
    with pytest.raises(ValueError, match="validate_every=0"):
        FitConfig(validate_every=0)


def test_a_loss_in_the_record_is_that_of_its_epoch(tmp_path):
    """Batches of like lengths have losses that rise and fall with the lengths, so the last one tells nothing."""
    logged = {1: [(20, 4.0), (40, 2.0)], 2: [(60, 1.0), (80, 3.0), (100, 5.0)], 3: []}
    best, state = (
        BestEpoch(model_of(), lambda: 1.0, FitConfig(), tmp_path),
        SimpleNamespace(max_steps=150, log_history=[]),
    )
    for epoch, rows in logged.items():
        state.epoch, state.global_step = epoch, 50 * epoch
        state.log_history += [{"loss": loss, "step": step} for step, loss in rows] + [{"train_runtime": 1.0, "step": 1}]
        best.on_epoch_end(None, state, SimpleNamespace(should_save=False, should_training_stop=False))
    assert [row.get("loss") for row in best.curve] == [3.0, 3.0, None]
